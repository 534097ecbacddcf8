"""A bad sample is an error that names it, at its step; or it is replaced, counted, and the same batches come again."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.batches import Open, same_batch
from helpers.images import encoded, picture
from helpers.samples import folder_from_environment, write_shards
from multimix_pipe import (
    BadSampleError,
    Batch,
    ConfigError,
    EvalTransform,
    Loader,
    MultiMix,
    MultiMixError,
    ShardError,
    TrainTransform,
)
from multimix_pipe.shards import PROBLEMS

Samples = list[tuple[str, str, bytes]]

N = 24
BATCH = 4
WHOLE = TrainTransform(size=16, scale=(1.0, 1.0), ratio=(0.2, 5.0))
"""Windows that reach to the last line of an image, so that a cut one cannot be decoded by any backend."""


def good(number: int) -> bytes:
    return encoded(picture(number, 64 + number, 48), "JPEG", quality=95)


def cut(data: bytes) -> bytes:
    """A JPEG with a good header and 70% of its data."""
    return data[: len(data) * 7 // 10]


def without_scan(data: bytes) -> bytes:
    """A JPEG whose header is all there is."""
    return data[: data.index(b"\xff\xda") + 14]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut at 70%": cut,
    "no scan data": without_scan,
    "broken header": lambda data: data[2:],
    "cut in the header": lambda data: data[:100],
    "not an image": lambda data: b"hello " * 200,
    "zero bytes": lambda data: b"",
}
KNOWN = ("broken header", "cut in the header", "not an image", "zero bytes")
"""What the index finds out already."""


def shards_with(folder: Path, bad: dict[int, str], count: int = N) -> Path:
    """One shard of `count` samples in stored order, those in `bad` damaged so."""
    samples: Samples = []
    for number in range(count):
        data = good(number)
        samples.append((f"s{number:02d}", "jpg", DAMAGE[bad[number]](data) if number in bad else data))
    return write_shards(folder, samples, shards=1)


def open_in_order(opened: Open, folder: Path, backend: str, **options: object) -> Loader:
    settings: dict[str, object] = {"batch_size": BATCH, "shuffle": "none", "transform": WHOLE, "mix": MultiMix(k=2)}
    return opened(folder, backend=backend, **settings | options)


def run_to_error(loader: Loader) -> tuple[list[Batch], Exception | None]:
    batches: list[Batch] = []
    try:
        for batch in loader:
            batches.append(batch)
    except (BadSampleError, ShardError) as error:
        return batches, error
    return batches, None


# on_bad_sample="raise"


@pytest.mark.parametrize("damage", KNOWN)
def test_what_the_index_knows_is_logged_at_the_opening_and_an_error_at_its_step(
    opened: Open, tmp_path: Path, backend: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shards_with(tmp_path, {9: damage, 17: damage})
    loader = open_in_order(opened, folder, backend)
    assert "2 of 24 samples cannot be used, the first: set-000.tar : s09: " in caplog.text
    batches, error = run_to_error(loader)
    assert isinstance(error, BadSampleError)
    assert str(error).startswith("set-000.tar : s09: ")
    assert len(batches) == 9 // BATCH, "the batches before it come first"
    left = open_in_order(opened, folder, backend, exclude=["s09", "s17"], last_batch="partial")
    assert sum(len(batch.labels) for batch in left) == N - 2


@pytest.mark.parametrize("bad", [0, 9, 23])
@pytest.mark.parametrize("damage", ["cut at 70%", "no scan data"])
def test_a_decoding_error_names_its_sample_at_its_step(
    opened: Open, tmp_path: Path, backend: str, damage: str, bad: int
) -> None:
    loader = open_in_order(opened, shards_with(tmp_path, {bad: damage}), backend, prefetch=3)
    batches, error = run_to_error(loader)
    assert isinstance(error, BadSampleError)
    assert str(error).startswith(f"set-000.tar : s{bad:02d}: ")
    assert f"exclude=['set-000.tar : s{bad:02d}']" in str(error)
    assert len(batches) == bad // BATCH, "the batches before it come first"
    assert loader.state_dict()["steps"] == len(batches)


def test_after_an_error_a_loader_can_be_used_again(opened: Open, tmp_path: Path, backend: str) -> None:
    loader = open_in_order(opened, shards_with(tmp_path, {9: "cut at 70%"}), backend)
    for epoch in range(3):
        batches, error = run_to_error(loader)
        assert error is not None
        assert [batch.plan.start for batch in batches] == [0, 4]
        assert all(batch.plan.epoch == epoch for batch in batches)


# on_bad_sample="replace"

CASES: dict[str, dict[int, str]] = {
    "first step": {1: "cut at 70%"},
    "last step": {22: "cut at 70%"},
    "consecutive steps": {6: "cut at 70%", 9: "no scan data"},
    "several rows of a step": {8: "cut at 70%", 9: "cut at 70%", 11: "no scan data"},
    "everywhere and of every kind": {2 * i: damage for i, damage in enumerate(list(DAMAGE) * 2)},
}


@pytest.mark.parametrize("case", CASES)
def test_replaced_samples_are_counted_and_the_same_every_time(
    opened: Open, tmp_path: Path, backend: str, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = CASES[case]
    folder = shards_with(tmp_path, bad)
    options: dict[str, object] = {"on_bad_sample": "replace", "prefetch": 3}
    loader = open_in_order(opened, folder, backend, **options)
    states, batches = [], []
    with caplog.at_level(logging.WARNING, "multimix_pipe"):
        for _ in range(2):
            for batch in loader:
                batches.append(batch)
                states.append(loader.state_dict())
    assert len(batches) == 12
    bad_keys = {f"s{number:02d}" for number in bad}
    assert not bad_keys & {key for batch in batches for key in batch.keys}
    assert {name.split(" : ")[1] for name in loader.bad_samples} == bad_keys
    for name in loader.bad_samples:
        assert caplog.text.count(f"bad sample replaced: {name}") == 1

    second = open_in_order(opened, folder, backend, num_threads=1, **options | {"prefetch": 1})
    assert all(map(same_batch, [*second, *second], batches))
    for step in (1, 3, 7):
        second.load_state_dict(json.loads(json.dumps(states[step])))
        assert same_batch(next(iter(second)), batches[step + 1])


@pytest.mark.parametrize("transform", [WHOLE, EvalTransform(size=16, resize=18)], ids=["train", "eval"])
def test_good_rows_of_a_step_with_bad_ones_keep_their_samples(
    opened: Open, tmp_path: Path, backend: str, transform: TrainTransform | EvalTransform
) -> None:
    settings: dict[str, object] = {"mix": None, "transform": transform, "on_bad_sample": "replace", "batch_size": 12}
    bad = {1: "cut at 70%", 2: "no scan data", 6: "cut at 70%", 11: "no scan data", 21: "cut at 70%"}
    damaged = open_in_order(opened, shards_with(tmp_path / "a", bad), backend, **settings)
    whole = open_in_order(opened, shards_with(tmp_path / "b", {}), backend, **settings)
    by_key = {key: image for batch in whole for key, image in zip(batch.keys, batch.images, strict=True)}
    for step, found in enumerate(damaged):
        for row, key in enumerate(found.keys):
            number = 12 * step + row
            if number not in bad:
                assert key == f"s{number:02d}"
            if number not in bad or isinstance(transform, EvalTransform):  # else its crop is another one too
                assert found.images[row].equal(by_key[key])
    assert len(damaged.bad_samples) == len(bad)


def test_labels_and_targets_are_those_of_the_replacement(opened: Open, tmp_path: Path, backend: str) -> None:
    folder = shards_with(tmp_path, {number: "cut at 70%" for number in range(0, N, 2)})
    loader = open_in_order(opened, folder, backend, on_bad_sample="replace", mix=None)
    for batch in loader:
        assert [int(key[1:]) % 7 for key in batch.keys] == batch.labels.tolist()
        assert batch.labels.equal(batch.targets)  # type: ignore[arg-type]


def test_past_max_bad_every_further_bad_sample_ends_the_run(opened: Open, tmp_path: Path, backend: str) -> None:
    folder = shards_with(tmp_path, {1: "cut at 70%", 10: "cut at 70%"})
    loader = open_in_order(opened, folder, backend, on_bad_sample="replace", max_bad=1)
    for _ in range(3):  # a loop that goes on after an error must not get around it
        assert isinstance(run_to_error(loader)[1], BadSampleError)


def test_past_max_bad_the_run_ends_at_that_step(opened: Open, tmp_path: Path, backend: str) -> None:
    folder = shards_with(tmp_path, {1: "cut at 70%", 10: "cut at 70%", 18: "cut at 70%"})
    loader = open_in_order(opened, folder, backend, on_bad_sample="replace", max_bad=2, prefetch=5)
    batches, error = run_to_error(loader)
    assert len(batches) == 4
    assert "3 bad samples found, max_bad=2 allowed; the last one: set-000.tar : s18" in str(error)
    assert run_to_error(open_in_order(opened, folder, backend, on_bad_sample="replace", max_bad=3))[1] is None


def test_max_bad_may_be_a_share_and_counts_what_indexing_finds_at_opening(
    opened: Open, tmp_path: Path, backend: str
) -> None:
    folder = shards_with(tmp_path, {1: "zero bytes", 10: "cut at 70%", 18: "cut at 70%"})
    options: dict[str, object] = {"on_bad_sample": "replace"}
    with pytest.raises(
        BadSampleError,
        match=r"^1 bad samples and damaged shards were found by indexing, max_bad=0.04 \(0 samples\) allowed",
    ):
        open_in_order(opened, folder, backend, max_bad=0.04, **options)
    _, error = run_to_error(open_in_order(opened, folder, backend, max_bad=0.1, **options))
    assert "3 bad samples found, max_bad=0.1 (2 samples) allowed; the last one: set-000.tar : s18" in str(error)
    assert run_to_error(open_in_order(opened, folder, backend, max_bad=3 / N, **options))[1] is None
    with pytest.raises(ConfigError, match=r"max_bad, as a share of the samples, must be a finite number in \[0, 1\]"):
        open_in_order(opened, folder, backend, max_bad=1.5, **options)


@pytest.mark.parametrize("damage", ["cut at 70%", "zero bytes"])
def test_where_all_samples_are_bad_the_run_ends(opened: Open, tmp_path: Path, backend: str, damage: str) -> None:
    folder = shards_with(tmp_path, dict.fromkeys(range(3), damage), count=3)
    if damage == "zero bytes":
        with pytest.raises(ConfigError, match="at least one usable sample is required"):
            open_in_order(opened, folder, backend, on_bad_sample="replace")
    else:
        _, error = run_to_error(open_in_order(opened, folder, backend, batch_size=1, on_bad_sample="replace"))
        assert "100 samples in a row are bad" in str(error)


@pytest.mark.parametrize("policy", ["raise", "replace"])
def test_where_no_sample_has_a_label_the_opening_says_so(
    opened: Open, own_shards: Path, backend: str, policy: str
) -> None:
    wanted = f"at least one usable sample is required; 100 of 100 samples cannot be used, .*: {PROBLEMS[3]}"
    with pytest.raises(ConfigError, match=wanted):
        opened(own_shards, backend=backend, label="json:class", on_bad_sample=policy)


@pytest.mark.parametrize(("cls", "reason"), [(None, PROBLEMS[3]), (b"tench", f"{PROBLEMS[4]}; found 'tench'")])
def test_one_label_that_is_missing_or_no_number_is_an_error_before_training_starts(
    opened: Open, tmp_path: Path, backend: str, cls: bytes | None, reason: str
) -> None:
    folder = shards_with(tmp_path, {})
    with tarfile.open(folder / "set-000.tar", "a") as tar:
        for name, data in (("late.jpg", good(1)), ("late.cls", cls)):
            if data is not None:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    with pytest.raises(
        BadSampleError, match=f"^set-000.tar : late: {reason}, as in 1 of {N + 1} samples. Leave them out"
    ):
        open_in_order(opened, folder, backend)
    left = open_in_order(opened, folder, backend, exclude=["late"], last_batch="partial")
    assert sum(len(batch.labels) for batch in left) == N
    replaced = open_in_order(opened, folder, backend, on_bad_sample="replace", last_batch="partial")
    assert sum(len(batch.labels) for batch in replaced) == N + 1
    assert list(replaced.bad_samples) == ["set-000.tar : late"]


# shards that change behind the loader's back


def two_shards(folder: Path) -> Path:
    """Even samples in the first shard, odd ones in the second, which comes after N // 2 samples in stored order."""
    return write_shards(folder, [(f"s{number:02d}", "jpg", good(number)) for number in range(N)], shards=2)


def cut_short(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size // 2)


def other_by_rename(shard: Path) -> None:
    """Another valid shard of the same size takes its place, with another time."""
    data = shard.read_bytes()
    other = shard.with_suffix(".new")
    other.write_bytes(data.replace(b"\0\0\x05\0", b"\0\0\x06\0"))
    os.utime(other, ns=(0, shard.stat().st_mtime_ns + 10**9))
    other.rename(shard)


def written_in_place(shard: Path) -> None:
    time = shard.stat().st_mtime_ns
    shard.write_bytes(shard.read_bytes())
    os.utime(shard, ns=(0, time + 1))


CHANGES = [cut_short, other_by_rename, written_in_place]


@pytest.mark.parametrize("change", CHANGES)
def test_a_shard_changed_after_indexing_is_a_shard_error_at_its_step(
    opened: Open, tmp_path: Path, backend: str, change: Callable[[Path], None]
) -> None:
    loader = open_in_order(opened, two_shards(tmp_path), backend)
    change(tmp_path / "set-001.tar")
    batches, error = run_to_error(loader)
    assert isinstance(error, ShardError)
    assert str(error).startswith("set-001.tar : s")
    assert "its shard changed after it was indexed" in str(error)
    assert len(batches) == N // 2 // BATCH, "those of the other shard come first"


@pytest.mark.parametrize("change", CHANGES)
def test_replacing_a_shard_changed_while_the_loader_runs_costs_just_its_samples(
    opened: Open, tmp_path: Path, backend: str, change: Callable[[Path], None]
) -> None:
    loader = open_in_order(opened, two_shards(tmp_path), backend, on_bad_sample="replace")
    assert len(list(loader)) == N // BATCH
    assert not loader.bad_samples
    change(tmp_path / "set-001.tar")
    shown = {key for batch in loader for key in batch.keys}
    lost = {f"set-001.tar : s{number:02d}" for number in range(1, N, 2)}
    if change is other_by_rename:  # where the indexed file is still open, its bytes are the right ones
        assert loader.bad_samples.keys() <= lost
    else:
        assert loader.bad_samples.keys() == lost
        assert shown == {f"s{number:02d}" for number in range(0, N, 2)}


@pytest.mark.parametrize("policy", ["raise", "replace"])
def test_a_shard_deleted_after_indexing_is_an_error_or_costs_its_samples(
    opened: Open, tmp_path: Path, backend: str, policy: str
) -> None:
    loader = open_in_order(opened, two_shards(tmp_path), backend, on_bad_sample=policy)
    (tmp_path / "set-001.tar").unlink()
    batches, error = run_to_error(loader)
    if policy == "raise":
        assert isinstance(error, ShardError)
        assert str(error).startswith("set-001.tar : s")
        assert "the shard must be readable; No such file" in str(error)
        assert len(batches) == N // 2 // BATCH, "those of the shard that is there come first"
    else:
        assert error is None
        assert loader.bad_samples.keys() == {f"set-001.tar : s{number:02d}" for number in range(1, N, 2)}


def test_where_all_shards_are_gone_the_run_ends(opened: Open, tmp_path: Path, backend: str) -> None:
    loader = open_in_order(opened, shards_with(tmp_path, {}), backend, on_bad_sample="replace")
    (tmp_path / "set-000.tar").unlink()
    batches, error = run_to_error(loader)
    assert "100 samples in a row are bad; the last one: set-000.tar : s" in str(error)
    assert not batches


def test_a_process_without_descriptors_does_not_replace_samples(
    opened: Open, tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = open_in_order(opened, shards_with(tmp_path, {}), backend, on_bad_sample="replace")

    def no_descriptor_left(path: str, flags: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("multimix_pipe.shards.files.os.open", no_descriptor_left)
    with pytest.raises(MultiMixError, match=r"no sample can be read: .*Too many open files; raise the limit"):
        next(iter(loader))
    assert not loader.bad_samples


def test_want_of_memory_is_no_fault_of_the_image(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [(f"s{number:02d}", "png", encoded(picture(number, 64, 48), "PNG")) for number in range(N)]
    loader = open_in_order(opened, write_shards(tmp_path, samples), "torch", on_bad_sample="replace")

    def no_memory(data: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr("multimix_pipe.native.decode._check_png", no_memory)
    with pytest.raises(ConfigError, match="needs more memory than is free: MemoryError"):
        next(iter(loader))
    assert not loader.bad_samples


# shards that are damaged before they are indexed


def damaged_shards(folder: Path, damage: str) -> Path:
    """Two shards; of the second what comes before s11 is whole."""
    shard = two_shards(folder) / "set-001.tar"
    with tarfile.open(shard) as tar:
        header = tar.getmember("s11.jpg").offset
    if damage == "cut":
        os.truncate(shard, header + 700)
    elif damage == "cut between members":
        os.truncate(shard, header)
    else:
        at, data = {"checksum": (148, b"123456"), "hole": (0, bytes(512)), "zeros": (0, bytes(2**21))}[damage]
        with open(shard, "r+b") as file:
            file.seek(header + at)
            file.write(data)
    return folder


@pytest.mark.parametrize("damage", ["cut", "cut between members", "checksum", "hole", "zeros"])
def test_a_damaged_shard_is_an_error_that_names_it_or_costs_what_comes_after_the_damage(
    opened: Open, tmp_path: Path, backend: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = damaged_shards(tmp_path, damage)
    wanted = (
        "set-001.tar is cut short: member 's11.jpg'" if damage == "cut" else "set-001.tar is damaged or cut at byte"
    )
    for _ in range(2):  # built, and from its file
        with pytest.raises(ShardError, match=wanted):
            open_in_order(opened, folder, backend)
    for _ in range(2):
        caplog.clear()
        loader = open_in_order(opened, folder, backend, on_bad_sample="replace", last_batch="partial")
        assert wanted in caplog.text
        assert "The samples before that are used" in caplog.text
        shown = {key for batch in loader for key in batch.keys}
        assert shown == {f"s{number:02d}" for number in range(N) if number % 2 == 0 or number < 11}
        assert not loader.bad_samples
    with pytest.raises(
        BadSampleError, match=r"^1 bad samples and damaged shards were found by indexing, max_bad=0 allowed"
    ):
        open_in_order(opened, folder, backend, on_bad_sample="replace", max_bad=0)


def test_a_shard_that_is_no_tar_costs_all_of_its_own(
    opened: Open, tmp_path: Path, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = damaged_shards(tmp_path, "cut")
    (folder / "set-001.tar").write_bytes(b"\xff" * 5000)
    loader = open_in_order(opened, folder, backend, on_bad_sample="replace", last_batch="partial")
    assert "set-001.tar (5,000 bytes) is not a whole tar file" in caplog.text
    assert {key for batch in loader for key in batch.keys} == {f"s{number:02d}" for number in range(0, N, 2)}
    (folder / "set-000.tar").write_bytes(b"")
    with pytest.raises(ShardError, match=r"set-000.tar is not a tar file: it has 0 bytes"):
        open_in_order(opened, folder, backend, on_bad_sample="replace")


@pytest.mark.parametrize("epochs_before", [0, 1])
@pytest.mark.parametrize(
    "transform",
    [WHOLE, TrainTransform(size=8, scale=(0.1, 0.1)), EvalTransform(size=16, resize=18)],
    ids=["whole", "crop", "eval"],
)
def test_an_image_replaced_after_indexing_does_not_enter_with_a_wrong_window(
    opened: Open, tmp_path: Path, backend: str, transform: TrainTransform | EvalTransform, epochs_before: int
) -> None:
    folder = shards_with(tmp_path, {})
    loader = open_in_order(opened, folder, backend, on_bad_sample="replace", mix=None, transform=transform)
    for _ in range(epochs_before):
        assert len(list(loader)) == 6
    other = encoded(picture(1, 20, 20), "JPEG", quality=50)
    size, time = int(loader.index.size[9]), (folder / "set-000.tar").stat().st_mtime_ns
    with open(folder / "set-000.tar", "r+b") as shard:
        shard.seek(int(loader.index.offset[9]))
        shard.write(other.ljust(size, b"\0"))
    os.utime(folder / "set-000.tar", ns=(0, time))  # as a failing disk does it: same time, other bytes
    batches, error = run_to_error(loader)
    assert error is None
    assert len(batches) == 6
    (reason,) = loader.bad_samples.values()
    assert "20x20 pixels" in reason
    assert "73x48" in reason


# real odd images


@pytest.mark.parametrize("exif", [False, True], ids=["as stored", "upright"])
@pytest.mark.parametrize(
    "transform", [TrainTransform(size=32), EvalTransform(size=32, resize=36)], ids=["train", "eval"]
)
def test_a_zoo_of_odd_images_ends_no_run(
    opened: Open, tmp_path: Path, backend: str, transform: TrainTransform | EvalTransform, exif: bool
) -> None:
    zoo = folder_from_environment("MULTIMIX_ODD", "a folder of odd and broken images")
    samples = [
        (
            path.name.replace(".", "_"),
            path.suffix[1:] if path.suffix in (".png", ".jpeg", ".webp") else "jpg",
            path.read_bytes(),
        )
        for path in sorted(zoo.iterdir())
        if path.suffix != ".tsv"
    ]
    folder = write_shards(tmp_path, samples, shards=3)
    settings: dict[str, object] = {"batch_size": 16, "transform": transform, "exif": exif, "shuffle": "global"}
    settings |= {"on_bad_sample": "replace", "last_batch": "wrap", "backend": backend}
    first, second = opened(folder, **settings), opened(folder, **settings)
    for _ in range(2):
        assert all(map(same_batch, first, second))
    assert 10 < len(first.bad_samples) < len(samples) // 2
