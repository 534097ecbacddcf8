"""crops="each": member k is made of its own crop and flip of both images, which are decoded once.

The oracle takes crop k of every image as a batch of its own and mixes that by the plan of member k alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from helpers.backends import needs_dali
from helpers.batches import PLAN_COLUMNS, Open, all_same
from helpers.samples import BAD, CLASSES, TINY, WHOLE
from multimix_pipe import (
    Batch,
    ConfigError,
    EvalTransform,
    Loader,
    ManifoldMix,
    MixPlan,
    MultiMix,
    MultiMixLoss,
    PuzzleMix,
    TrainTransform,
    apply_mix,
    mix_batch,
)
from multimix_pipe.augment.crop import enclosing_windows
from multimix_pipe.augment.host import apply_orientation, crop_and_resize
from multimix_pipe.mixing import reference
from multimix_pipe.native import executor as native
from multimix_pipe.native.decode import Decoder, decode_indexed
from multimix_pipe.plan import Plan, Samples, StepPlan, draw_mixing
from multimix_pipe.runtime import kernels
from multimix_pipe.runtime.kernels import Layout, blend
from multimix_pipe.runtime.tensors import MixTensors
from test_parity import CMYK_BOUND, GENERATED_BOUND, pixels, ulps

CPU = torch.device("cpu")
SWITCH = {"mixup": 0.4, "cutmix": 0.3, "smoothmix": 0.3}
EACH = MultiMix(k=3, crops="each")
SIZE = (12, 10)
TRANSFORM = TrainTransform(size=SIZE)


def member(plan: MixPlan, k: int) -> MixPlan:
    """Return the plan of member k alone."""
    factors = None if plan.factors is None else plan.factors[:, k : k + 1]
    return MixPlan(plan.member_partner[:, k], plan.lam[:, k : k + 1], plan.method, plan.box[:, k : k + 1], factors)


def oracle(crops: np.ndarray, plan: MixPlan, partners: np.ndarray | None = None) -> np.ndarray:
    """Return the rows (B*K, ...) of crops (B*K, ...). `partners` are what ResizeMix mixes them with; by default resized crops."""
    of_image = crops.reshape(*plan.lam.shape, *crops.shape[1:])
    z = [None] * plan.k if partners is None else np.moveaxis(partners.reshape(of_image.shape), 1, 0)[:, :, None]
    rows = [reference.mix_images(of_image[:, k], member(plan, k), z[k]) for k in range(plan.k)]
    return np.stack(rows, axis=1).reshape(crops.shape)


# the plan


def drawn(
    mix: MultiMix, rows: int = 16, seed: int = 3, start: int = 0, transform: TrainTransform = TRANSFORM
) -> StepPlan:
    size = np.full(1000, 400, dtype=np.int32)
    samples = Samples(np.arange(1000), np.zeros(1000, np.int32), size, size + 100)
    return Plan(samples, transform, mix, "global", seed, 8).step(1, start, start + rows)


@pytest.mark.parametrize("k", [1, 5])
def test_member_0_has_the_crop_that_all_members_share_otherwise_and_the_mixing_is_the_same(k: int) -> None:
    each, same = drawn(MultiMix(k=k, crops="each")), drawn(MultiMix(k=k))
    assert each.window.shape == (16, k, 4)
    assert each.flip.shape == (16, k)
    assert np.array_equal(each.window[:, 0], same.window)
    assert np.array_equal(each.flip[:, 0], same.flip)
    for name in ("sample", "partner", "lam", "method", "box"):
        assert np.array_equal(getattr(each, name), getattr(same, name))
    assert len(np.unique(each.window.reshape(-1, 4), axis=0)) == 16 * k
    fewer = drawn(MultiMix(k=1, crops="each"))
    assert np.array_equal(each.window[:, :1], fewer.window), "a member's crop does not depend on K"


def test_a_batch_of_64_has_the_crops_of_two_of_32() -> None:
    whole, second = drawn(EACH, 64), drawn(EACH, 32, start=32)
    assert np.array_equal(whole.window[32:], second.window)
    assert np.array_equal(whole.rows(slice(32, 64)).flip, second.flip)


def test_a_replaced_row_gets_k_crops_of_its_own() -> None:
    samples = Samples(
        np.arange(50), np.zeros(50, np.int32), np.arange(50, 100, dtype=np.int32), np.full(50, 80, np.int32)
    )
    steps = Plan(samples, TRANSFORM, EACH, "global", 0, 8)
    before = steps.step(0, 0, 8)
    after = steps.replace_row(before, 5)
    others = np.arange(8) != 5
    assert np.array_equal(after.window[others], before.window[others])
    assert len(np.unique(np.concatenate([before.window[5], after.window[5]]), axis=0)) == 6
    shared = Plan(samples, TRANSFORM, MultiMix(k=3), "global", 0, 8)
    assert np.array_equal(after.window[5, 0], shared.replace_row(shared.step(0, 0, 8), 5).window[5])


def test_the_crops_of_every_member_are_distributed_as_single_crops_and_independent() -> None:
    step = drawn(MultiMix(k=4, crops="each"), rows=4000)
    single = drawn(MultiMix(k=4), rows=12_000, seed=4)

    def numbers(window: np.ndarray) -> dict[str, np.ndarray]:
        y, x, height, width = window.reshape(-1, 4).astype(np.float64).T
        free_y, free_x = np.maximum(500 - height, 1), np.maximum(400 - width, 1)
        return {"area": height * width, "ratio": width / height, "y": y / free_y, "x": x / free_x}

    first, later, other = (numbers(window) for window in (step.window[:, 0], step.window[:, 1:], single.window))
    for name in first:
        assert stats.ks_2samp(first[name], later[name]).pvalue > 0.001, name
        assert stats.ks_2samp(other[name], later[name]).pvalue > 0.001, name
    flips = step.flip.sum(axis=0)
    assert stats.chisquare(np.concatenate([flips, 4000 - flips])).pvalue > 0.001
    # the members of a row, in pairs: quarters of the area, and flips
    area = (step.window[..., 2] * step.window[..., 3]).astype(np.float64)
    quarter = np.stack([np.searchsorted(np.quantile(column, [0.25, 0.5, 0.75]), column) for column in area.T])
    for a, b in ((0, 1), (0, 3), (1, 2), (2, 3)):
        counts = np.zeros((4, 4))
        np.add.at(counts, (quarter[a], quarter[b]), 1)
        assert stats.chi2_contingency(counts).pvalue > 0.001
        both = np.bincount(2 * step.flip[:, a] + step.flip[:, b], minlength=4)
        assert stats.chisquare(both).pvalue > 0.001


def test_an_enclosing_window_is_the_smallest_that_holds_all() -> None:
    windows = np.array([[[2, 5, 3, 3], [0, 6, 4, 5]], [[1, 1, 1, 1], [1, 1, 1, 1]]], dtype=np.float32)
    assert enclosing_windows(windows).tolist() == [[0, 5, 5, 6], [1, 1, 1, 1]]


# mixing B*K crops


@pytest.mark.parametrize("kernel", ["numba", "torch"])
@pytest.mark.parametrize("method", [*MultiMix.methods(), SWITCH], ids=str)
def test_the_blend_of_crops_is_the_blend_of_each_member_alone(
    method: Any, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "torch":
        monkeypatch.setattr(kernels, "host_kernel", lambda: None)
    else:
        pytest.importorskip("numba")
    shape = (2, 7, 5)
    for rows, k, partners, lam_per in (
        (1, 7, "each", "pair"),
        (2, 1, "same", "pair"),
        (3, 7, "each", "batch"),
        (3, 2, "same", "batch"),
    ):
        mix = MultiMix(k=k, method=method, partners=partners, lam_per=lam_per, prob=0.8)  # type: ignore[arg-type]
        plan = draw_mixing(mix, rows + k, 0, 0, rows, shape[1:])
        crops = np.random.default_rng(k).normal(size=(rows * k, *shape)).astype(np.float32)
        images, tensors = torch.from_numpy(crops), MixTensors.of(plan, CPU).of_crops()
        out = torch.empty(rows * k, 1, *shape)
        found = blend(images, tensors, out, Layout.of(shape)).flatten(0, 1)
        bound = 1e-5 if "resizemix" in plan.method else 0  # torch resizes in another order of sums
        assert np.abs(found.numpy() - oracle(crops, plan)).max() <= bound
        flat = MixTensors.of(plan.of_crops(), CPU)
        for name in ("partner", "lam", "field", "box", "factors"):
            a, b = getattr(flat, name), getattr(tensors, name)
            assert (a is None and b is None) or a.equal(b), name


# loaders


def in_graph(loader: Loader) -> Loader:
    """Return a loader whose graph also resizes and flips, as on a GPU."""
    from multimix_pipe.dali.executor import DaliExecutor

    return Loader(loader.context, DaliExecutor(loader.context, ends="batch"))


WAYS: dict[str, tuple[str, Callable[[Loader], Loader]]] = {
    "torch": ("torch", lambda loader: loader),
    "dali": ("dali", lambda loader: loader),
    "dali, whole graph": ("dali", in_graph),
}


@pytest.fixture(params=[pytest.param(name, marks=() if name == "torch" else needs_dali) for name in WAYS])
def loader_of(request: pytest.FixtureRequest, opened: Open) -> Callable[..., Loader]:
    """Opens loaders of each executor in turn, of which one is the graph for a GPU, run on the CPU."""
    backend, change = WAYS[request.param]

    def make(*source: Path, **options: object) -> Loader:
        return change(opened(*source, backend=backend, **{"transform": TRANSFORM, "batch_size": 8} | options))

    return make


CASES: dict[str, dict[str, Any]] = {
    "mixup": {"mix": MultiMix(k=7, crops="each")},
    "cutmix": {"mix": MultiMix(k=2, method="cutmix", partners="each", crops="each"), "channels_last": True},
    "resizemix": {"mix": MultiMix(k=2, method="resizemix", crops="each", lam_per="batch")},
    "smoothmix": {"mix": MultiMix(k=3, method="smoothmix", crops="each"), "dtype": "float16"},
    "switch": {"mix": MultiMix(k=3, method=SWITCH, crops="each", prob=0.7), "dtype": "bfloat16", "channels_last": True},
    "K = 1": {"mix": MultiMix(k=1, method="cutmix", crops="each")},
    "B = 1": {"mix": MultiMix(k=3, crops="each"), "batch_size": 1},
    "B = 2": {"mix": MultiMix(k=2, partners="each", crops="each"), "batch_size": 2},
    "B = 3": {"mix": MultiMix(k=7, partners="each", crops="each", lam_per="batch"), "batch_size": 3},
}


@pytest.mark.parametrize("case", CASES)
def test_a_loader_mixes_the_crops_that_it_gives_unmixed(
    loader_of: Callable[..., Loader], small_shards: Path, case: str
) -> None:
    settings = {**CASES[case], "exif": True}
    mix, dtype = settings["mix"], settings.get("dtype", "float32")
    plain = loader_of(small_shards, **{**settings, "dtype": "float32"}, expand=False)
    for crops, batch in islice(zip(plain, loader_of(small_shards, **settings), strict=True), 3):
        b = len(batch.labels)
        assert batch.plan.window.shape == (b, mix.k, 4)
        assert batch.images.shape == crops.images.shape == (b * mix.k, 3, *SIZE)
        assert batch.images.dtype == getattr(torch, dtype)
        form = torch.channels_last if settings.get("channels_last") else torch.contiguous_format
        assert batch.images.is_contiguous(memory_format=form)
        z = None
        if mix.method == "resizemix":  # partners are resized as pixels
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (TRANSFORM.mean, TRANSFORM.std))
            as_pixels = ((crops.images * std + mean) * 255).round().to(torch.uint8).contiguous()
            z = (torch.from_numpy(reference.partners(as_pixels.numpy(), batch.plan.mix.of_crops())) / 255 - mean) / std
        expected = torch.from_numpy(
            oracle(crops.images.contiguous().numpy(), batch.plan.mix, None if z is None else z.numpy())
        )
        if dtype != "float32":
            assert ulps(batch.images, expected.to(batch.images.dtype)) <= 1
        elif z is None:
            assert batch.images.equal(expected)
        else:  # resized pixels may be rounded otherwise
            assert (batch.images - expected).abs().max() < 1.01 / 255 / min(TRANSFORM.std) + 1e-5
        targets = reference.mix_targets(batch.labels.numpy(), batch.plan.mix, CLASSES)
        assert np.allclose(batch.targets.numpy(), targets, rtol=0, atol=1e-6)  # type: ignore[union-attr]
        assert crops.targets.equal(batch.labels.repeat_interleave(mix.k))  # type: ignore[union-attr]


@pytest.mark.parametrize("exif", [False, True])
def test_each_crop_is_its_window_of_the_whole_image(loader_of: Callable[..., Loader], exif: bool) -> None:
    transform = TrainTransform(size=(24, 20))
    loader = loader_of(mix=EACH, expand=False, transform=transform, exif=exif, last_batch="partial")
    index, read = loader.index, loader.context.reader.read
    backend, kinds = loader.context.backend, set()
    for batch in islice(loader, 5):
        shown = pixels(batch.images, transform).reshape(len(batch.keys), 3, 3, 24, 20)
        for row, (key, sample_id) in enumerate(zip(batch.keys, batch.plan.sample.tolist(), strict=True)):
            image = decode_indexed(read(sample_id), int(index.height[sample_id]), int(index.width[sample_id]))
            image = apply_orientation(image, int(index.orientation[sample_id]) if exif else 1)
            kinds.add(key.partition("-")[0])
            for k, (window, flip) in enumerate(zip(batch.plan.window[row], batch.plan.flip[row], strict=True)):
                expected = crop_and_resize(image, transform, window=window, orientation=1)
                expected = (expected[:, ::-1] if flip else expected).transpose(2, 0, 1).astype(np.float32)
                apart = np.abs(shown[row, k].numpy() - expected)
                if backend == "torch":
                    assert apart.max() < 1e-3
                else:
                    assert apart.mean() < (CMYK_BOUND if key.startswith("cmyk") else 2 * GENERATED_BOUND), key
    assert len(kinds) >= 8


@needs_dali
def test_every_executor_has_the_same_plan_and_nearly_the_same_pixels(opened: Open) -> None:
    mix = MultiMix(k=3, method=SWITCH, crops="each", partners="each")
    loaders = [change(opened(backend=backend, mix=mix)) for backend, change in WAYS.values()]
    for first, *others in zip(*loaders, strict=True):
        for other in others:
            assert other.keys == first.keys
            assert all(np.array_equal(getattr(first.plan, name), getattr(other.plan, name)) for name in PLAN_COLUMNS)
            assert first.targets.equal(other.targets)
            assert (
                pixels(first.images, TRANSFORM) - pixels(other.images, TRANSFORM)
            ).abs().mean() < 2 * GENERATED_BOUND


@pytest.mark.parametrize("exif", [False, True])
def test_member_0_has_the_pixels_that_all_members_share_otherwise(loader_of: Callable[..., Loader], exif: bool) -> None:
    for crops, same in zip(*(loader_of(mix=mix, expand=mix is None, exif=exif) for mix in (EACH, None)), strict=True):
        assert crops.images[::3].equal(same.images)


def test_without_mixing_it_is_batch_augmentation(loader_of: Callable[..., Loader], small_shards: Path) -> None:
    mix = MultiMix(k=3, crops="each", prob=0.0)
    crops, batch = (next(iter(loader_of(small_shards, mix=mix, expand=expand))) for expand in (False, True))
    assert batch.images.equal(crops.images)
    assert batch.targets.equal(torch.eye(CLASSES)[batch.labels].repeat_interleave(3, dim=0))  # type: ignore[union-attr]
    of_image = batch.images.unflatten(0, (8, 3))
    assert not of_image[:, 1].equal(of_image[:, 0])


def test_an_image_is_decoded_once_down_to_the_lowest_edge_of_its_crops(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[int | None] = []
    decode = Decoder.decode

    def noted(self: Decoder, sample_id: int, data: Any, stop: int | None = None) -> Any:
        stops.append(stop)
        return decode(self, sample_id, data, stop)

    monkeypatch.setattr(native.Decoder, "decode", noted)
    batches = list(opened(backend="torch", mix=MultiMix(k=5, crops="each"), transform=TINY))
    windows = np.concatenate([batch.plan.window for batch in batches])
    assert sorted(stops) == sorted((windows[..., 0] + windows[..., 2]).max(axis=1).astype(int).tolist())  # type: ignore[type-var]


@needs_dali
def test_the_decoder_is_asked_for_the_union_of_the_crops(opened: Open) -> None:
    from multimix_pipe.dali.graph import Graph

    context = opened(backend="dali", mix=EACH, transform=TINY).context
    step = context.plan.step(0, 0, 8)
    graph = Graph(8, None, 1, 1, TINY, exif=False, channels_last=False, ends="pixels", crops=3)
    inputs = graph.inputs(step, context.index)
    stop = inputs["corner"] + inputs["extent"]
    assert np.array_equal(inputs["corner"], step.window[..., :2].min(axis=1))
    assert np.array_equal(stop, (step.window[..., :2] + step.window[..., 2:]).max(axis=1))
    assert np.array_equal(inputs["corners"] + inputs["corner"][:, None], step.window[..., :2])


# runs


def test_resumed_in_mid_epoch_nothing_changes(loader_of: Callable[..., Loader], small_shards: Path) -> None:
    settings = {"mix": MultiMix(k=2, method=SWITCH, crops="each"), "transform": TINY, "targets": "pairs"}
    loader = loader_of(small_shards, **settings)
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    state = json.loads(json.dumps(loader.state_dict()))
    assert state["mix"]["crops"] == "each"
    rest = list(batches)
    again = loader_of(small_shards, **settings)
    again.load_state_dict(state)
    assert all_same(list(again), rest)
    assert MultiMixLoss()(torch.zeros(16, CLASSES), rest[0].targets) > 0


def test_two_processes_of_8_show_what_one_of_16_shows(loader_of: Callable[..., Loader], small_shards: Path) -> None:
    settings = {"mix": EACH, "transform": TINY, "expand": False}
    one = next(iter(loader_of(small_shards, batch_size=16, **settings)))
    two = [next(iter(loader_of(small_shards, rank=rank, world_size=2, **settings))) for rank in range(2)]
    assert one.keys == two[0].keys + two[1].keys
    assert (torch.cat([batch.images for batch in two]) - one.images).abs().max() < 1e-6


@pytest.mark.parametrize("order", ["each first", "each last"])
def test_a_run_may_have_other_crops_from_an_epoch_on(
    loader_of: Callable[..., Loader], small_shards: Path, order: str
) -> None:
    parts: list[MultiMix | None] = [EACH, MultiMix(k=2), MultiMix(k=5, crops="each", method="cutmix"), None]
    parts = parts if order == "each first" else parts[::-1]
    settings = {"transform": TINY, "batch_size": 32}
    loader = loader_of(small_shards, mix=dict(enumerate(parts)), **settings)
    for epoch, mix in enumerate(parts):
        alone = loader_of(small_shards, mix=mix, **settings)
        alone.set_epoch(epoch)
        steps = 2 if epoch == 1 else 4  # one epoch is left early, with steps in flight
        for batch, expected in zip(islice(loader, steps), islice(alone, steps), strict=True):
            assert np.array_equal(batch.plan.window, expected.plan.window)
            assert torch.allclose(batch.images, expected.images, rtol=0, atol=1e-6)


def test_bad_samples_are_replaced_and_mixed_with_the_whole_step(
    loader_of: Callable[..., Loader], bad_shards: Path
) -> None:
    settings: dict[str, Any] = {"on_bad_sample": "replace", "transform": WHOLE, "batch_size": 32, "mix": EACH}
    mixed, plain = loader_of(bad_shards, **settings), loader_of(bad_shards, **settings, expand=False)
    attempts = 0
    for batch, crops in zip(mixed, plain, strict=True):
        attempts += int(batch.plan.attempt.sum())
        assert batch.keys == crops.keys
        assert batch.plan.window.shape == (32, 3, 4)
        expected = torch.from_numpy(oracle(crops.images.numpy(), batch.plan.mix))
        assert torch.allclose(batch.images, expected, rtol=0, atol=1e-6)
    assert attempts >= len(BAD)
    assert set(mixed.bad_samples) == set(plain.bad_samples)


# other ways to mix


def test_plain_crops_can_be_mixed_later_by_apply_mix(opened: Open) -> None:
    plain = next(iter(opened(backend="torch", mix=EACH, expand=False)))
    mixed = next(iter(opened(backend="torch", mix=EACH)))
    found = apply_mix(plain.images, plain.targets, plain.plan.mix.of_crops(), num_classes=CLASSES)  # type: ignore[arg-type]
    assert found.images.equal(mixed.images)
    assert torch.allclose(found.targets, mixed.targets, rtol=0, atol=1e-6)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"plan must hold 24 pairs.*K crops of each image.*pass plan\.of_crops\(\)$"):
        apply_mix(plain.images, plain.targets, plain.plan.mix, num_classes=CLASSES)  # type: ignore[arg-type]


def test_chunks_hold_whole_pairs(opened: Open) -> None:
    batch = next(iter(opened(backend="torch", mix=EACH, expand=False)))
    parts: list[Batch] = list(batch.chunks(3))
    assert torch.cat([part.images for part in parts]).equal(batch.images)
    assert torch.cat([part.targets for part in parts]).equal(batch.targets)  # type: ignore[arg-type]
    assert np.array_equal(np.concatenate([part.plan.window for part in parts]), batch.plan.window)


def test_who_gets_cropped_images_refuses_it_in_one_line(opened: Open) -> None:
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    with pytest.raises(
        ConfigError, match=r"^mix_batch gets images that are cropped already.*Pass it to open_loader, or"
    ):
        mix_batch(images, labels, EACH, num_classes=4, step=0)
    with pytest.raises(ConfigError, match=r"MultiMix\.crops must be one of 'same', 'each'; found 'all'"):
        MultiMix(crops="all")  # type: ignore[arg-type]
    message = r'^crops="each" draws another crop for each member and needs a TrainTransform; found EvalTransform'
    for mix in (EACH, {0: None, 3: EACH}):
        with pytest.raises(ConfigError, match=message):
            opened(mix=mix, transform=EvalTransform(size=8))
    batch = next(iter(opened(backend="torch", mix=EACH, expand=False)))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 24 * 24, CLASSES))
    calls: list[Callable[[Batch], object]] = [ManifoldMix(model, layers=["0"]), PuzzleMix(model)]
    for call in calls:
        with pytest.raises(ConfigError, match=r'Mix mixes one crop of each image, crops="same"; found crops="each"'):
            call(batch)


@needs_dali
def test_the_dali_stage_refuses_it_in_one_line() -> None:
    from helpers.dali_pipelines import stage_on

    images, labels = np.zeros((2, 3, 4, 4), dtype=np.float32), np.zeros(2, dtype=np.int32)
    with pytest.raises(ConfigError, match=r"^multi_mix gets images that are cropped already.*Use open_loader"):
        next(stage_on(images, labels, num_classes=2, crops="each"))


def test_a_batch_that_cannot_fit_counts_its_crops(opened: Open) -> None:
    with pytest.raises(ConfigError, match=r"batch_size=1000000 times k=900 images of 3x24x24"):
        opened(mix=MultiMix(k=900, crops="each"), batch_size=10**6, expand=False)
