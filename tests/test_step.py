"""A step is a pure function of (seed, epoch, position), the processes cover an epoch as promised, and the bits are pinned."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from multimix_pipe.config import EvalTransform, LastBatch, Shuffle, TrainTransform
from multimix_pipe.mixing import CutMix, Mixup, MultiMix
from multimix_pipe.plan import Plan, Samples, Schedule, StepPlan

COLUMNS = ("sample", "window", "flip", "partner", "lam")
MIX = MultiMix(alpha=0.4)
SHUFFLES: tuple[Shuffle, ...] = ("global", "window", "none")
GRID = [(n, b, w) for n in (1, 2, 7, 16, 97) for b in (1, 3, 8, 200) for w in (1, 2, 3, 8)]


def samples(count: int = 1000, weights: list[float] | None = None) -> Samples:
    number = np.arange(count, dtype=np.int64)
    width, height = 20 + 37 * number % 480, 20 + 91 * number % 350
    return Samples(
        sample_id=number + 5,
        shard=(number // 25).astype(np.int32),
        width=width.astype(np.int32),
        height=height.astype(np.int32),
        weights=None if weights is None else np.array(weights),
    )


def plan(of: Samples | None = None, mix: MultiMix | None = MIX, shuffle: Shuffle = "global", seed: int = 0) -> Plan:
    return Plan(of or samples(), TrainTransform(), mix, shuffle, seed, 8)


def same(a: StepPlan, b: StepPlan, columns: tuple[str, ...] = COLUMNS) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in columns)


def processes(count: int, batch_size: int, world_size: int, last_batch: LastBatch, start: int = 0) -> list[Schedule]:
    return [Schedule(count, batch_size, world_size, rank, last_batch, start) for rank in range(world_size)]


def shown(schedules: list[Schedule]) -> Counter[int]:
    return Counter(p % schedules[0].count for one in schedules for bounds in one for p in range(*bounds))


@pytest.mark.parametrize(("count", "batch_size", "world_size"), GRID)
def test_partial_shows_every_sample_exactly_once(count: int, batch_size: int, world_size: int) -> None:
    schedules = processes(count, batch_size, world_size, "partial")
    assert shown(schedules) == Counter(range(count))
    assert max(map(len, schedules)) - min(map(len, schedules)) <= 1
    assert all(first < past for one in schedules for first, past in one)


@pytest.mark.parametrize(("count", "batch_size", "world_size"), GRID)
def test_drop_shows_every_sample_at_most_once_in_equal_full_steps(count: int, batch_size: int, world_size: int) -> None:
    schedules = processes(count, batch_size, world_size, "drop")
    assert max(shown(schedules).values(), default=0) <= 1
    assert shown(schedules).total() == count - count % (batch_size * world_size)
    assert {len(one) for one in schedules} == {count // (batch_size * world_size)}


@pytest.mark.parametrize(("count", "batch_size", "world_size"), GRID)
def test_wrap_shows_every_sample_at_least_once_in_equal_full_steps(
    count: int, batch_size: int, world_size: int
) -> None:
    schedules = processes(count, batch_size, world_size, "wrap")
    seen = shown(schedules)
    assert set(seen) == set(range(count))
    assert max(seen.values()) - min(seen.values()) <= 1
    assert len({len(one) for one in schedules}) == 1
    assert all(past - first == batch_size for one in schedules for first, past in one)


@pytest.mark.parametrize("last_batch", ["wrap", "drop", "partial"])
@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_full_batches_do_not_depend_on_the_number_of_processes(last_batch: LastBatch, world_size: int) -> None:
    whole = set(processes(97, 4, 1, "partial")[0])
    full = {bounds for one in processes(97, 4, world_size, last_batch) for bounds in one if bounds[1] <= 96}
    assert full <= whole
    assert last_batch == "drop" or len(full) == 24


@pytest.mark.parametrize("last_batch", ["wrap", "partial"])
@pytest.mark.parametrize("later_world", [1, 2, 5])
def test_an_epoch_resumed_by_other_processes_is_completed(last_batch: LastBatch, later_world: int) -> None:
    before = processes(97, 4, 3, last_batch)
    done = [bounds for one in before for bounds in list(one)[:2]]
    start = before[0].position_after(2)
    assert sorted(p for bounds in done for p in range(*bounds)) == list(range(start))
    after = processes(97, 4, later_world, last_batch, start)
    assert {p for one in after for bounds in one for p in range(*bounds)} >= set(range(start, 97))


@pytest.mark.parametrize("last_batch", ["wrap", "drop", "partial"])
@pytest.mark.parametrize("start", [97, 98, 2**40])
def test_nothing_is_left_of_a_finished_epoch(last_batch: LastBatch, start: int) -> None:
    assert [len(one) for one in processes(97, 4, 3, last_batch, start)] == [0, 0, 0]


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_an_epoch_of_steps_shows_each_sample_once(shuffle: Shuffle) -> None:
    steps = plan(shuffle=shuffle)
    numbers = [steps.step(2, *bounds).sample for one in processes(1000, 8, 3, "partial") for bounds in one]
    assert np.array_equal(np.sort(np.concatenate(numbers)), np.arange(5, 1005))


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_a_step_does_not_depend_on_what_was_asked_before(shuffle: Shuffle) -> None:
    first = plan(shuffle=shuffle)
    expected = first.step(1, 40, 48)
    second = plan(shuffle=shuffle)
    for epoch, start in [(7, 0), (1, 48), (0, 40), (3, 8)]:
        second.step(epoch, start, start + 8)
    assert same(second.step(1, 40, 48), expected)


def test_samples_crops_and_weights_are_keyed_by_position_partners_by_batch() -> None:
    steps = plan()
    whole, parts = steps.step(0, 0, 16), [steps.step(0, 0, 8), steps.step(0, 8, 16)]
    for part, rows in zip(parts, (slice(0, 8), slice(8, 16)), strict=True):
        assert same(part, whole.rows(rows), ("sample", "window", "flip", "lam"))
        assert part.start == whole.rows(rows).start
        assert part.partner.max() < 8


def test_seeds_and_epochs_up_to_the_largest_all_differ() -> None:
    steps = [plan(seed=seed).step(epoch, 0, 8) for seed in (0, 2**63, 2**63 + 1, 2**64 - 1) for epoch in (0, 1, 2**63)]
    for name in ("sample", "window", "lam"):
        assert len({getattr(step, name).tobytes() for step in steps}) == len(steps), name


def test_a_position_past_the_last_shows_the_first_samples_again_with_draws_of_its_own() -> None:
    steps = plan(samples(10))
    first, again = steps.step(0, 0, 10), steps.step(0, 10, 20)
    assert np.array_equal(first.sample, again.sample)
    assert not np.array_equal(first.window, again.window)
    assert not np.array_equal(first.lam, again.lam)


@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (1, 6), (3, 8), (5, 1)])
def test_a_batch_may_be_larger_than_the_data_set(shuffle: Shuffle, count: int, batch_size: int) -> None:
    step = plan(samples(count), shuffle=shuffle).step(0, 0, batch_size)
    assert len(step) == batch_size
    assert max(Counter(step.sample.tolist()).values()) == -(-batch_size // count)
    assert np.all(step.partner != np.arange(batch_size)) == (batch_size > 1)


def test_evaluation_draws_no_flip_and_no_mixing() -> None:
    steps = Plan(samples(), EvalTransform(), None, "none", 0, 8)
    step = steps.step(0, 0, 8)
    assert np.array_equal(step.sample, np.arange(5, 13))
    assert not step.flip.any()
    assert np.all(step.lam == 1)
    assert same(step, steps.step(1, 0, 8))


@pytest.mark.parametrize("transform", [TrainTransform(), EvalTransform()])
def test_a_sample_without_a_readable_size_gets_some_window(transform: TrainTransform | EvalTransform) -> None:
    unread = Samples(np.arange(4), np.zeros(4, np.int32), np.zeros(4, np.int32), np.zeros(4, np.int32))
    step = Plan(unread, transform, None, "none", 0, 4).step(0, 0, 4)
    assert np.all(np.isfinite(step.window))
    assert step.window[:, 2:].min() > 0


def test_a_replacement_changes_its_row_alone_and_depends_on_position_and_attempt_alone() -> None:
    steps = plan()
    original, same_original = steps.step(0, 0, 16), steps.step(0, 0, 16)
    by_batch, by_row = steps.replace_row(original, 11), steps.replace_row(steps.step(0, 8, 16), 3)
    assert same(original, same_original), "a plan is never changed"
    assert by_batch.attempt.tolist() == [0] * 11 + [1] + [0] * 4
    others = np.arange(16) != 11
    for name in COLUMNS:
        assert np.array_equal(getattr(by_batch, name)[others], getattr(original, name)[others])
    assert same(by_batch, original, ("partner", "lam"))
    assert same(by_batch.rows(slice(11, 12)), by_row.rows(slice(3, 4)), ("sample", "window", "flip"))
    drawn = {int(by_batch.sample[11])}
    for _ in range(2, 30):
        by_batch = steps.replace_row(by_batch, 11)
        drawn.add(int(by_batch.sample[11]))
    assert len(drawn) > 20
    assert drawn <= set(range(5, 1005))


def test_weighted_samples_and_their_replacements_never_have_weight_zero() -> None:
    steps = plan(samples(100, [0.0, 1.0] * 50))
    step = steps.step(0, 0, 64)
    for row in range(1, 20):
        for _ in range(3):
            step = steps.replace_row(step, row)
    assert np.all((step.sample - 5) % 2 == 1)


def golden_digests() -> dict[str, str]:
    """sha256 of the raw little-endian arrays of fixed steps."""

    def digest(*arrays: np.ndarray) -> str:
        return hashlib.sha256(b"".join(a.astype(a.dtype.newbyteorder("<")).tobytes() for a in arrays)).hexdigest()[:16]

    weighted = plan(samples(1000, [float(number % 7) for number in range(1000)]), seed=9)
    mixes = {
        "uniform": MultiMix(),
        "alpha 0.4": MultiMix(alpha=0.4),
        "alpha 0.2 stratified": MultiMix(alpha=0.2, sampling="stratified"),
        "alpha 8": MultiMix(k=2, alpha=8.0, prob=0.5),
    }
    steps = [plan(seed=2**63 + 1).step(3, start, start + 256) for start in range(0, 2560, 256)]
    result = {
        f"{shuffle} order": digest(plan(shuffle=shuffle, seed=9).order(4)(np.arange(1000))) for shuffle in SHUFFLES
    }
    result["weighted samples"] = digest(*(weighted.step(4, start, start + 250).sample for start in range(0, 1250, 250)))
    result |= {name: digest(*(getattr(step, name) for step in steps)) for name in ("window", "flip", "partner")}
    stored = [plan(shuffle="none", seed=2**63 + 1).step(3, start, start + 256) for start in range(0, 2560, 256)]
    result["window in stored order"] = digest(*(step.window for step in stored))
    for name, mix in mixes.items():
        result[f"lam, {name}"] = digest(*(plan(mix=mix).step(1, start, start + 256).lam for start in (0, 256, 512)))
    methods: dict[str, object] = {name: name for name in ("cutmix", "resizemix", "smoothmix")}
    methods |= {"independent boxes": CutMix(boxes="independent"), "switch": {Mixup(alpha=0.8): 0.5, "smoothmix": 0.5}}
    for name, method in methods.items():
        mix = MultiMix(k=3, method=method, partners="each" if name == "switch" else "same")  # type: ignore[arg-type]
        found = plan(mix=mix).step(1, 512, 576).mix
        factors = [] if found.factors is None else [found.factors]
        result[name] = digest(found.partner, found.lam, found.field, found.box, *factors)
    each = [plan(mix=MultiMix(k=3, crops="each")).step(1, start, start + 64) for start in (0, 64)]
    result |= {f"{name} of each member": digest(*(getattr(step, name) for step in each)) for name in ("window", "flip")}
    centred = Plan(samples(), EvalTransform(), None, "none", 0, 8).step(0, 0, 1000)
    return result | {"centre window": digest(centred.window)}


GOLDEN = {
    "global order": "bc1c09797451be73",
    "window order": "d7d6f25dc8372593",
    "none order": "702746827e553786",
    "weighted samples": "a255d2ae348d8433",
    "window": "8e3ee04429be90bc",
    "flip": "0ad2dfd5f76e9938",
    "partner": "81559c6af28669a4",
    "window in stored order": "328d6f7647277526",
    "lam, uniform": "513e07253a5002ae",
    "lam, alpha 0.4": "e6b0435051afaa7c",
    "lam, alpha 0.2 stratified": "ef8bbe0004b03219",
    "lam, alpha 8": "e711f8317f87767b",
    "cutmix": "e96a789b3de654aa",
    "resizemix": "d09db0e2b4503c08",
    "smoothmix": "1ef56699d9934c07",
    "independent boxes": "a675d11d42dadb95",
    "switch": "8fb27f675d89e716",
    "window of each member": "09814ce00197ba08",
    "flip of each member": "a5442057444b619e",
    "centre window": "bc98a9d5a3881477",
}


def test_golden_values() -> None:
    assert golden_digests() == GOLDEN


def test_golden_values_hold_without_simd() -> None:
    numpy_core = importlib.import_module("numpy._core._multiarray_umath")
    features = [name for name in numpy_core.__cpu_dispatch__ if numpy_core.__cpu_features__[name]]
    if not features:
        pytest.skip("NumPy uses no optional instruction set on this CPU: there is none to switch off")
    environment = os.environ | {
        "NPY_DISABLE_CPU_FEATURES": " ".join(features),
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX2,-AVX,-FMA,-FMA4",  # and the C library's exp, log and pow
    }
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert not set(result["features"]) & set(features)
    assert result["digests"] == GOLDEN


if __name__ == "__main__":
    core = importlib.import_module("numpy._core._multiarray_umath")
    used = [name for name in core.__cpu_dispatch__ if core.__cpu_features__[name]]
    print(json.dumps({"features": used, "digests": golden_digests()}, indent=4))
