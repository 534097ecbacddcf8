"""Real processes take equal steps and cover the data as `last_batch` promises; one that leaves does not hang the others."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from helpers.images import KINDS, picture
from helpers.processes import torchrun
from helpers.tars import write_tar
from programs.torchrun import ALARM, BATCH_SIZES, EARLY_LIMIT, LAST_BATCHES

DATA = [(1, 1), (2, 1), (5, 3), (7, 2), (23, 5), (64, 4)]
"""Samples and shards; the first shard of several holds a single sample."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of shards for each of DATA, without any index."""
    for samples, shards in DATA:
        folder = tmp_path / f"{samples}-{shards}"
        folder.mkdir()
        members: dict[int, list[tuple[str, bytes]]] = defaultdict(list)
        for number in range(samples):
            extension, image = KINDS["420"](picture(number, 20, 16))
            shard = 0 if not number or shards == 1 else 1 + number % (shards - 1)
            members[shard] += [(f"{number}.{extension}", image), (f"{number}.cls", b"1")]
        for shard, content in members.items():
            write_tar(folder / f"{shard}.tar", content)
        assert len(members) == shards
    return tmp_path


def run(processes: int, mode: str, folder: Path) -> list[Any]:
    """What each process has found."""
    torchrun(processes, "-m", "programs.torchrun", mode, folder, timeout=ALARM + 50)
    return [json.loads((folder / f"{mode}-{rank}.json").read_text()) for rank in range(processes)]


def test_all_processes_take_equal_steps_and_cover_the_data_as_promised(data: Path) -> None:
    cases: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for found in run(4, "grid", data):
        for case in found:
            cases[case["data"], case["batch_size"], case["last_batch"], case["processes"]].append(case)
    assert len(cases) == len(DATA) * len(BATCH_SIZES) * len(LAST_BATCHES) * 4
    for (name, batch_size, last_batch, processes), ranks in cases.items():
        samples = int(name.split("-")[0])
        assert len(ranks) == processes
        steps = [len(case["steps"]) for case in ranks]
        assert steps == [case["len"] for case in ranks]
        shown = [key for case in ranks for keys in case["steps"] for key in keys]
        counts = [shown.count(str(number)) for number in range(samples)]
        assert sum(counts) == len(shown)
        if last_batch == "partial":
            assert counts == [1] * samples
            assert max(steps) - min(steps) <= 1
            continue
        assert len(set(steps)) == 1
        assert {len(keys) for case in ranks for keys in case["steps"]} <= {batch_size}
        a_step = batch_size * processes
        if last_batch == "drop":
            assert max(counts) <= 1
            assert len(shown) == samples - samples % a_step
        else:
            assert min(counts) >= 1
            assert max(counts) - min(counts) <= 1
            assert len(shown) == -(-samples // a_step) * a_step


def test_a_process_that_leaves_early_does_not_hang_the_others(data: Path) -> None:
    stayed, _ = run(2, "early", data)
    assert stayed.keys() == {"stays away", "exits"}
    for how, found in stayed.items():
        assert found["steps"] == 3, how
        assert found["error"], how
        assert found["seconds"] < EARLY_LIMIT.total_seconds() + 20, how
        assert found["threads left"] == [], how
    assert stayed["stays away"]["seconds"] > 1, "it was waited for"
