"""A process knows its rank under every launcher, and never trains as "0 of 1" beside others in silence."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from helpers.batches import Open, all_same
from helpers.processes import environment, program, start
from helpers.samples import TINY, N
from multimix_pipe import ConfigError
from multimix_pipe.loader.rank import choose_device, find_world, processes_here
from multimix_pipe.shards import cores
from multimix_pipe.shards.launcher import local_rank, local_world_size

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "OMPI_", "PMI_", "MPI_", "SLURM_", "NODE_RANK")
UNKNOWN: dict[str, object] = {"backend": "torch", "rank": None, "world_size": None, "transform": TINY}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide what the tests themselves were started by."""
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, object]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def join_group(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    """Pretend that torch.distributed was initialised."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(dist, "get_world_size", lambda: world_size)


TORCHRUN = {"RANK": 3, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}
SBATCH = {"SLURM_JOB_ID": 7, "SLURM_PROCID": 0, "SLURM_NTASKS": 8, "SLURM_LOCALID": 0}
SRUN = {"SLURM_STEP_ID": 0, "SLURM_PROCID": 5, "SLURM_NTASKS": 8, "SLURM_LOCALID": 1, "SLURM_NODEID": 1}
SRUN_TASKS = {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
OPEN_MPI = {
    f"OMPI_COMM_WORLD_{name}": value for name, value in [("RANK", 2), ("SIZE", 4), ("LOCAL_RANK", 2), ("LOCAL_SIZE", 4)]
}
MPICH = {"PMI_RANK": 1, "PMI_SIZE": 2, "MPI_LOCALRANKID": 1, "MPI_LOCALNRANKS": 2}
LIGHTNING_CHILD = {"WORLD_SIZE": 2, "NODE_RANK": 0, "LOCAL_RANK": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29400}

WORLDS: dict[str, tuple[dict[str, object], tuple[int, int], int, int | None]] = {
    "alone": ({}, (0, 1), 0, None),
    "torchrun": ({**TORCHRUN}, (3, 8), 1, 2),
    "torchrun in srun": ({**SRUN, **TORCHRUN}, (3, 8), 1, 2),
    "mpirun": ({**OPEN_MPI}, (2, 4), 2, 4),
    "MPICH": ({**MPICH}, (1, 2), 1, 2),
    "srun": ({**SRUN}, (5, 8), 1, None),
    "srun, with its tasks": ({**SRUN, **SRUN_TASKS}, (5, 8), 1, 4),
    "srun, uneven nodes": ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "5,3"}, (5, 8), 1, 3),
    "srun, world size exported": ({**SRUN, "WORLD_SIZE": 8, "MASTER_ADDR": "node1"}, (5, 8), 1, None),
    "the script of a batch job": ({**SBATCH, **SRUN_TASKS}, (0, 1), 0, None),
    "the script, a step of its own": ({**SBATCH, "SLURM_STEP_ID": 0xFFFFFFFB}, (0, 1), 0, None),
    "an interactive shell": ({**SBATCH, "SLURM_STEP_ID": 0xFFFFFFFA}, (0, 1), 0, None),
    "a master on this machine": ({"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}, (1, 2), 0, 2),
}


@pytest.mark.parametrize("name", WORLDS)
def test_every_launcher_is_understood(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    variables, world, local, local_size = WORLDS[name]
    set_all(monkeypatch, variables)
    found = find_world()
    assert (found.rank, found.size) == world
    assert not found.missing
    assert local_rank() == local
    assert local_world_size() == local_size


def test_arguments_come_before_torch_distributed_and_that_before_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_all(monkeypatch, TORCHRUN)
    join_group(monkeypatch, 1, 2)
    found = find_world()
    assert (found.rank, found.size) == (1, 2)
    found = find_world(4, 5)
    assert (found.rank, found.size) == (4, 5)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "first", "WORLD_SIZE": 2}, "RANK must be a whole number; found 'first'"),
        ({"RANK": 2, "WORLD_SIZE": 2}, "RANK must be below WORLD_SIZE=2; found 2"),
        ({"LOCAL_WORLD_SIZE": "many"}, "LOCAL_WORLD_SIZE must be a whole number; found 'many'"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused_at_opening(
    opened: Open, monkeypatch: pytest.MonkeyPatch, variables: dict[str, object], message: str
) -> None:
    set_all(monkeypatch, variables)
    with pytest.raises(ConfigError, match=f"the environment variable {message}"):
        opened(**UNKNOWN)


@pytest.mark.parametrize(("rank", "world_size"), [(1, None), (None, 2), (2, 2), (-1, 2), (0, 0)])
def test_arguments_that_make_no_sense_are_refused(opened: Open, rank: int | None, world_size: int | None) -> None:
    with pytest.raises(ConfigError, match="given together" if None in (rank, world_size) else "must be an int"):
        opened(**UNKNOWN | {"rank": rank, "world_size": world_size})


HALVES: dict[str, tuple[dict[str, object], str]] = {
    "a child of Lightning": ({**LIGHTNING_CHILD}, "WORLD_SIZE=2 without RANK"),
    "a rank alone": ({"RANK": 3}, "RANK=3 without WORLD_SIZE"),
    "half of Open MPI's": ({"OMPI_COMM_WORLD_SIZE": 4}, "OMPI_COMM_WORLD_SIZE=4 without OMPI_COMM_WORLD_RANK"),
}


@pytest.mark.parametrize("name", HALVES)
def test_half_an_environment_is_a_warning_and_then_an_error_unless_the_group_exists(
    opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    variables, missing = HALVES[name]
    set_all(monkeypatch, variables)
    loader = opened(**UNKNOWN)
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"the environment has {missing}" in record.message
    iterator = iter(loader)
    with pytest.raises(ConfigError, match=f"the environment has {missing}. Call torch.distributed.init_process_group"):
        next(iterator)
    join_group(monkeypatch, 1, 2)
    assert next(iterator).plan.start == 8, "the same iterator, now that the rank is known"


def test_one_process_of_one_is_no_half(
    opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_all(monkeypatch, {"WORLD_SIZE": 1, "LOCAL_RANK": 0})
    assert len(list(opened(**UNKNOWN))) == 13
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_loader_opened_before_the_group_takes_its_share(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(opened(backend="torch", transform=TINY, rank=1, world_size=2))
    loader = opened(**UNKNOWN)
    join_group(monkeypatch, 1, 2)
    assert len(loader) == 7
    assert all_same(list(loader), expected)
    assert "rank 1 of 2" in repr(loader)


@pytest.mark.parametrize("answer", [len, lambda loader: loader.state_dict()], ids=["len", "state"])
def test_an_answer_for_another_rank_is_an_error_that_names_both(
    opened: Open, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    loader = opened(**UNKNOWN)
    answer(loader)  # type: ignore[operator]
    join_group(monkeypatch, 1, 2)
    with pytest.raises(
        ConfigError,
        match=r"that was for process 0 of 1 \(no launcher found\), this is process 1 of 2 \(torch.distributed\)",
    ):
        next(iter(loader))


def test_given_ranks_are_never_looked_up(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, LIGHTNING_CHILD)
    loader = opened(backend="torch", transform=TINY, rank=0, world_size=3)
    len(loader)
    join_group(monkeypatch, 1, 2)
    assert [batch.plan.start for batch in loader] == [0, 24, 48, 72, 96]


def test_the_cores_are_shared_between_the_processes_of_a_machine(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 16)
    monkeypatch.setattr(cores, "_bound_by_launcher", lambda: False)
    alone = opened(**UNKNOWN, num_threads=None)
    assert alone.context.num_threads == 16
    with monkeypatch.context() as patch:
        set_all(patch, OPEN_MPI)
        assert opened(**UNKNOWN, num_threads=None).context.num_threads == 4
        assert opened(**UNKNOWN, num_threads=7).context.num_threads == 7
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    join_group(monkeypatch, 1, 2)
    next(iter(alone))
    assert alone.context.num_threads == 8, "opened before the group"


def test_at_most_one_process_for_each_gpu_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = find_world(0, 16)
    assert processes_here(world) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert processes_here(world) == 8
    assert processes_here(find_world(0, 1)) == 1


@pytest.mark.parametrize(
    ("gpus", "selected", "variables", "expected"),
    [
        (4, None, {}, 0),
        (4, None, {"LOCAL_RANK": 2}, 2),
        (1, None, {"LOCAL_RANK": 3}, 0),
        (4, 2, {}, 2),
        (4, 2, {"LOCAL_RANK": 1}, 2),
        (4, 0, {"LOCAL_RANK": 1}, 1),
        (4, None, {**OPEN_MPI}, 2),
        (4, None, {**SRUN}, 1),
        (4, None, {**SBATCH, "SLURM_LOCALID": 3}, 0),
    ],
)
def test_cuda_is_the_selected_gpu_or_that_of_the_local_rank(
    monkeypatch: pytest.MonkeyPatch, gpus: int, selected: int | None, variables: dict[str, object], expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: selected is not None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: selected)
    set_all(monkeypatch, variables)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", expected)
    assert choose_device("cuda:0") == torch.device("cuda", 0)


def test_a_local_rank_beyond_several_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ConfigError, match="cuda:4 must be one of the 4 GPUs"):
        choose_device("cuda")


def test_check_ranks_without_a_group_is_for_one_process(opened: Open) -> None:
    opened(**UNKNOWN).check_ranks()
    with pytest.raises(ConfigError, match=r"check_ranks needs torch\.distributed to compare 2"):
        opened(backend="torch", rank=0, world_size=2).check_ranks()


def test_two_processes_share_an_epoch_and_find_out_where_they_differ(small_shards: Path, tmp_path: Path) -> None:
    fewer = Path(shutil.copytree(small_shards, tmp_path / "fewer", ignore=shutil.ignore_patterns("*.index")))
    (fewer / "set-002.tar").unlink()
    runs = [
        start(
            program("ranks", str(tmp_path), str(small_shards), str(fewer), str(rank)),
            env=environment(**{name: str(value) for name, value in LIGHTNING_CHILD.items()} | {"OMP_NUM_THREADS": "1"}),
        )
        for rank in range(2)
    ]
    for run in runs:
        _, errors = run.communicate(timeout=240)
        assert run.returncode == 0, errors
        assert "the environment has WORLD_SIZE=2 without RANK" in errors
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    keys = [one.pop("keys") for one in found]
    assert len(set(keys[0]) | set(keys[1])) == len(keys[0]) + len(keys[1]) == N, "no sample twice"
    assert "the environment has WORLD_SIZE=2 without RANK" in found[0].pop("before the group")
    assert found[0]["agree"] == found[0]["one replica"] == "nothing"
    data = (
        "data: process 0 has 100 samples in 4 shards, process 1 has 75 samples in 3 shards; subset: process 0 has 100 samples in "
        "use, process 1 has 75 samples in use; the first difference: process 0 has set-002.tar with 25 samples, process 1 has "
        "set-003.tar with 25 samples"
    )
    assert data in found[0]["other data"]
    assert "seed: process 0 has 0, process 1 has 1" in found[0]["other seed"]
    assert "class 1 is 'c' in process 0 and 'b' in process 1" in found[0]["other names"]
    assert "position.samples: process 0 has 0, process 1 has 16" in found[0]["other position"]
    assert "found ranks [0, 0]" in found[0]["one rank for two"]
    for name, text in found[0].items():
        assert name.startswith("len") or found[1][name] == text, "every process is told the same"
    assert "that was for process 0 of 1" in found[1]["len before the group"]
    assert "this is process 1 of 2 (torch.distributed)" in found[1]["len before the group"]
