"""The reference and both backends give the same batch for a plan: equal arithmetic, and pixels within stated bounds."""

from __future__ import annotations

import io
import sys
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from helpers.backends import needs_dali
from helpers.batches import PLAN_COLUMNS, Open, all_same
from helpers.images import encoded, picture, with_orientation
from helpers.methods import registered
from helpers.samples import BAD, TRANSFORM, WHOLE, write_shards
from multimix_pipe import Batch, ConfigError, CutMix, EvalTransform, Loader, MultiMix, TrainTransform
from multimix_pipe.config import Transform
from multimix_pipe.mixing import reference
from multimix_pipe.plan import draw_mixing

ROWS, K = 6, 5
SWITCH = {"mixup": 0.4, "cutmix": 0.2, "smoothmix": 0.2, "split": 0.2}
GENERATED_BOUND = 0.3
"""Bound of the mean absolute difference of an image between the backends, on the scale 0..255, for all formats except CMYK.

About 0.2 was measured.
"""
CMYK_BOUND = 1.3
"""The same for CMYK: the backends round differently when they convert it to RGB."""


def pixels(images: Tensor, transform: Transform) -> Tensor:
    """Return normalised images as values on the scale 0..255."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transform.mean, transform.std))
    return (images.float() * std + mean) * 255


def a_batch() -> tuple[np.ndarray, np.ndarray]:
    """Return images (ROWS, 3, 9, 10) and labels (ROWS,)."""
    rng = np.random.default_rng(7)
    return rng.standard_normal((ROWS, 3, 9, 10), dtype=np.float32), rng.integers(0, 7, ROWS)


def ulps(a: Tensor, b: Tensor) -> int:
    """Return the largest distance between two 16-bit float tensors, counted in representable numbers."""

    def ordered(x: Tensor) -> Tensor:
        bits = x.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return int((ordered(a) - ordered(b)).abs().max())


@needs_dali
def test_the_dali_stage_is_the_oracle() -> None:
    from helpers.dali_pipelines import stage_on

    images, labels = a_batch()
    stage = stage_on(images, labels.astype(np.int32), num_classes=7, k=K, alpha=0.4, seed=11)
    for iteration, (mixed, targets) in zip(range(3), stage, strict=False):
        plan = draw_mixing(MultiMix(k=K, alpha=0.4), 11, 0, iteration * ROWS, ROWS)
        oracle = torch.from_numpy(reference.mix_images(images, plan))
        assert torch.allclose(mixed.flatten(0, 1), oracle, rtol=0, atol=1e-6)
        oracle = torch.from_numpy(reference.mix_targets(labels, plan, 7))
        assert torch.allclose(targets.flatten(0, 1), oracle, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_loaders_batch_is_the_oracle_of_its_plain_batch(
    opened: Open, backend: str, dtype: str, channels_last: bool
) -> None:
    settings = {"backend": backend, "channels_last": channels_last, "mix": MultiMix(k=3)}
    mixed = next(iter(opened(dtype=dtype, **settings)))
    plain = next(iter(opened(expand=False, **settings)))
    oracle = torch.from_numpy(reference.mix_images(plain.images.contiguous().numpy(), plain.plan.mix))
    assert mixed.images.dtype == getattr(torch, dtype)
    assert mixed.images.shape == (24, 3, 24, 24)
    assert mixed.images.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if dtype == "float32":
        assert torch.allclose(mixed.images, oracle, rtol=0, atol=1e-6)
    else:
        assert ulps(mixed.images, oracle.to(mixed.images.dtype)) <= 1
    targets = reference.mix_targets(plain.labels.numpy(), plain.plan.mix, 7)
    assert isinstance(mixed.targets, Tensor)
    assert np.allclose(mixed.targets.numpy(), targets, rtol=0, atol=1e-6)
    assert torch.allclose(mixed.targets.sum(1), torch.ones(24), rtol=0, atol=1e-6)


MIXES: dict[str, dict[str, Any]] = {
    "split": {"method": "split"},  # from outside the package, by its own file and one line
    "cutmix": {"method": "cutmix"},
    "independent boxes": {"method": CutMix(boxes="independent")},
    "smoothmix": {"method": "smoothmix"},
    "switch": {"method": SWITCH},
    "a partner for each member": {"method": SWITCH, "partners": "each"},
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", MIXES)
def test_a_loader_mixes_by_every_method_as_the_reference_does_and_resumes(
    opened: Open, backend: str, name: str, channels_last: bool
) -> None:
    with registered("split"):
        mix = MultiMix(k=4, **MIXES[name], prob=0.8)
        settings = {"backend": backend, "mix": mix, "channels_last": channels_last, "batch_size": 25}
        settings["transform"] = TrainTransform(size=(24, 20))
        loader = opened(**settings)
        mixed, plain = next(iter(loader)), next(iter(opened(expand=False, **settings)))
        assert set(mixed.plan.method) == {choice.name for choice in mix.choices}
        assert (mixed.plan.lam < 1).any()
        assert (mixed.plan.lam == 1).all(axis=1).any()
        assert np.all(np.diff(mixed.plan.lam, axis=1) <= 0)
        expected = reference.mix_images(plain.images.contiguous().numpy(), plain.plan.mix)
        assert np.array_equal(mixed.images.contiguous().numpy(), expected)
        targets = reference.mix_targets(plain.labels.numpy(), plain.plan.mix, 7)
        assert isinstance(mixed.targets, Tensor)
        assert np.allclose(mixed.targets.numpy(), targets, rtol=0, atol=1e-6)
        state = loader.state_dict()
        rest = list(loader.__iter__())  # the next epoch
        again = opened(**settings)
        again.load_state_dict(state)
        assert len(list(again)) == len(loader) - 1
        assert all_same(rest, list(again))


def test_a_method_that_is_not_registered_is_unknown() -> None:
    with pytest.raises(ConfigError, match=r"MultiMix\.method must be one of 'mixup'"):
        MultiMix(method="split")


@needs_dali
def test_both_backends_execute_the_same_plan(opened: Open) -> None:
    torch_loader, dali_loader = (opened(backend=name, shuffle="window", batch_size=16) for name in ("torch", "dali"))
    for epoch in range(2):
        pairs = list(zip(torch_loader, dali_loader, strict=True))
        assert len(pairs) == 7
        for a, b in pairs:
            assert a.plan.epoch == b.plan.epoch == epoch
            assert a.plan.start == b.plan.start
            for name in PLAN_COLUMNS:
                assert np.array_equal(getattr(a.plan, name), getattr(b.plan, name))
            assert a.keys == b.keys
            assert a.labels.equal(b.labels)
            assert a.targets.equal(b.targets)  # type: ignore[union-attr, arg-type]


TRANSFORMS = {
    "train": TrainTransform(size=48),
    "train, no antialias": TrainTransform(size=48, antialias=False),
    "eval": EvalTransform(size=48, resize=54),
    "eval, no antialias": EvalTransform(size=48, resize=54, antialias=False),
}


def differences(open_: Open, transform: Transform, source: Path | None = None, **options: object) -> dict[str, float]:
    """Return the mean absolute difference between the backends for each key, on the scale 0..255."""
    settings = {"transform": transform, "mix": None, "last_batch": "partial", "num_classes": 1000, **options}
    loaders = [
        open_(*([] if source is None else [source]), backend=name, batch_size=20, **settings)
        for name in ("torch", "dali")
    ]
    found: dict[str, float] = {}
    for a, b in zip(*loaders, strict=True):
        apart = (pixels(a.images, transform) - pixels(b.images, transform)).abs().mean((1, 2, 3))
        found |= dict(zip(a.keys, apart.tolist(), strict=True))
    return found


@needs_dali
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
@pytest.mark.parametrize("exif", [False, True], ids=["as stored", "upright"])
def test_backends_agree_on_every_format(opened: Open, transform: Transform, exif: bool) -> None:
    found = differences(opened, transform, exif=exif)
    assert len(found) == 100
    for key, difference in found.items():
        assert difference < (CMYK_BOUND if key.startswith("cmyk") else GENERATED_BOUND), key


@needs_dali
@pytest.mark.parametrize(
    "transform",
    [TrainTransform(), TrainTransform(antialias=False), EvalTransform(), EvalTransform(antialias=False)],
    ids=TRANSFORMS.keys(),
)
def test_backends_agree_on_photos(opened: Open, photos: Path, transform: Transform) -> None:
    found = differences(opened, transform, photos)
    assert np.mean(list(found.values())) < 0.3, "mean over all photos"
    assert max(found.values()) < 0.5, "worst photo"


def upright_reference(data: bytes) -> np.ndarray:
    """Return the image as Pillow decodes and orients it."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(np.float32)


@pytest.mark.parametrize(
    "transform", [TrainTransform(size=(20, 18), flip=0.0), EvalTransform(size=(20, 18), resize=40)]
)
def test_with_exif_windows_lie_in_the_upright_image(
    opened: Open, backend: str, tmp_path: Path, transform: Transform
) -> None:
    images = {f"o{o}": with_orientation(picture(o, 61, 40), o) for o in range(1, 9)}
    folder = write_shards(tmp_path, [(key, "jpg", data) for key, data in images.items()], shards=1)
    batch = next(iter(opened(folder, backend=backend, transform=transform, mix=None, exif=True)))
    height, width = transform.height_width
    for key, image, window in zip(batch.keys, pixels(batch.images, transform), batch.plan.window, strict=True):
        y, x, h, w = (float(value) for value in window)
        whole = Image.fromarray(upright_reference(images[key]).astype(np.uint8))
        if isinstance(transform, TrainTransform):
            whole, box = whole.crop((int(x), int(y), int(x + w), int(y + h))), None
        else:
            box = (x, y, min(x + w, whole.width), min(y + h, whole.height))
        expected = np.asarray(whole.resize((width, height), Image.Resampling.BILINEAR, box=box)).transpose(2, 0, 1)
        assert np.abs(image.numpy() - expected).mean() < 0.6, key


def test_backends_agree_on_malformed_exif(opened: Open, backend: str, tmp_path: Path) -> None:
    plain, turned = (with_orientation(picture(1, 61, 40), orientation) for orientation in (1, 6))
    exif_segments = []
    for data in (plain, turned):
        at = data.index(b"\xff\xe1")
        exif_segments.append(data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")])
    text = PngImagePlugin.PngInfo()
    raw = exif_segments[1][4:]
    text.add_text("Raw profile type exif", f"\nexif\n      {len(raw)}\n{raw.hex()}\n")
    samples = [
        ("two-segments", "jpg", plain[:2] + exif_segments[1] + plain[2:]),
        ("other-order", "jpg", turned[:2] + exif_segments[0] + turned[2:]),
        ("png-text", "png", encoded(picture(1, 61, 40), "PNG", pnginfo=text)),
    ]
    folder = write_shards(tmp_path, samples, shards=1)
    loader = opened(
        folder, backend=backend, exif=True, mix=None, batch_size=3, transform=TrainTransform(size=20, flip=0.0)
    )
    assert loader.index.orientation.tolist() == [6, 1, 6]
    for batch in (next(iter(loader)) for _ in range(3)):
        for key, image, (y, x, h, w) in zip(
            batch.keys, pixels(batch.images, TRANSFORM), batch.plan.window, strict=True
        ):
            whole = picture(1, 61, 40)
            if key != "other-order":
                whole = whole.transpose(Image.Transpose.ROTATE_270)
            crop = whole.crop((int(x), int(y), int(x + w), int(y + h))).resize((20, 20), Image.Resampling.BILINEAR)
            assert np.abs(image.numpy() - np.asarray(crop).transpose(2, 0, 1)).mean() < 1.5, key


def test_a_constant_colour_comes_out_as_its_target_says(opened: Open, backend: str, tmp_path: Path) -> None:
    grays = [int(255 * label / 6) for label in range(7)]
    flat = [Image.new("RGB", (30, 30), (gray,) * 3) for gray in grays]
    members = [(f"flat-{label}", "png", encoded(image, "PNG")) for label, image in enumerate(flat)]
    loader = opened(write_shards(tmp_path, members, shards=1), backend=backend, batch_size=7, mix=MultiMix(k=4))
    batch = next(iter(loader))
    brightness = pixels(batch.images, TrainTransform()).mean((1, 2, 3))
    assert isinstance(batch.targets, Tensor)
    assert torch.allclose(brightness, batch.targets @ torch.tensor(grays, dtype=torch.float32), rtol=0, atol=1e-2)


def test_lam_one_gives_the_plain_sample(opened: Open, backend: str) -> None:
    mixed: Batch = next(iter(opened(backend=backend, mix=MultiMix(k=2, prob=0.0))))
    plain: Batch = next(iter(opened(backend=backend, mix=None)))
    assert mixed.images.unflatten(0, (8, 2))[:, 0].equal(plain.images)
    assert mixed.images.unflatten(0, (8, 2))[:, 1].equal(plain.images)


@needs_dali
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["mixup", SWITCH, None], ids=str)
@pytest.mark.parametrize("transform", [TrainTransform(size=(24, 20)), EvalTransform(size=24)], ids=["train", "eval"])
def test_the_whole_graph_is_the_reference_of_its_pixels(
    opened: Open, transform: Transform, name: Any, dtype: str, channels_last: bool
) -> None:
    """The graph that runs on a GPU, decode -> crop -> resize -> flip -> normalise -> multi_mix -> cast, runs on the CPU here."""
    from multimix_pipe.dali.executor import DaliExecutor

    with registered("split"):
        each = "each" if name == SWITCH else "same"
        mix = None if name is None else MultiMix(k=3, method=name, partners=each)  # type: ignore[arg-type]
        settings = {"backend": "dali", "transform": transform, "channels_last": channels_last, "exif": True}
        settings |= {"batch_size": 16, "last_batch": "partial"}
        plain = opened(mix=None, **settings)
        in_pixels = Loader(plain.context, DaliExecutor(plain.context, ends="pixels"))
        mixed = opened(mix=mix, dtype=dtype, **settings)
        in_batches = Loader(mixed.context, DaliExecutor(mixed.context, ends="batch"))
        pairs = list(zip(in_pixels, in_batches, strict=True))
    assert len(pairs) == 7
    for pixel_batch, batch in pairs:
        assert batch.keys == pixel_batch.keys
        assert batch.images.dtype == getattr(torch, dtype)
        assert batch.images.is_contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
        images = pixel_batch.images.contiguous().numpy()
        expected = torch.from_numpy(images if mix is None else reference.mix_images(images, batch.plan.mix))
        if dtype == "float32":
            assert torch.allclose(batch.images, expected, rtol=0, atol=1e-6)
        else:  # float32 values that differ slightly may be rounded to adjacent values
            assert ulps(batch.images, expected.to(batch.images.dtype)) <= 1


@needs_dali
def test_a_batch_of_the_whole_graph_stays_valid_while_others_follow(opened: Open) -> None:
    from multimix_pipe.dali.executor import DaliExecutor

    loader = opened(backend="dali", mix=MultiMix(k=3), prefetch=1)
    kept = list(Loader(loader.context, DaliExecutor(loader.context, ends="batch")))
    copies = [batch.images.clone() for batch in Loader(loader.context, DaliExecutor(loader.context, ends="batch"))]
    assert all(batch.images.equal(copy) for batch, copy in zip(kept, copies, strict=True))


@needs_dali
def test_bad_rows_of_the_whole_graph_are_replaced_and_mixed_with_the_whole_step(opened: Open, bad_shards: Path) -> None:
    """Rows are decoded again a few at a time, but each is mixed with its partner from the whole batch."""
    from multimix_pipe.dali.executor import DaliExecutor

    settings: dict[str, Any] = {"backend": "dali", "on_bad_sample": "replace", "transform": WHOLE, "batch_size": 32}
    behind, inside = (opened(bad_shards, mix=MultiMix(k=3), **settings).context for _ in range(2))
    behind_graph = Loader(behind, DaliExecutor(behind, ends="pixels"))
    in_graph = Loader(inside, DaliExecutor(inside, ends="batch"))
    batches = list(zip(behind_graph, in_graph, strict=True))
    assert sum(int(batch.plan.attempt.sum()) for batch, _ in batches) >= len(BAD)
    for expected, found in batches:
        assert found.keys == expected.keys
        assert np.array_equal(found.plan.attempt, expected.plan.attempt)
        assert torch.allclose(found.images, expected.images, rtol=0, atol=1e-6)
    assert in_graph.bad_samples == behind_graph.bad_samples


@needs_dali
@pytest.mark.parametrize("exif", [False, True])
@pytest.mark.parametrize("antialias", [False, True])
def test_the_graph_that_resizes_gives_the_pixels_of_the_one_that_leaves_it_to_the_host(
    opened: Open, antialias: bool, exif: bool
) -> None:
    """On a GPU the graph resizes, orients and mirrors; on a CPU the host does. Here the GPU's graph runs on the CPU."""
    from multimix_pipe.dali.executor import DaliExecutor

    settings: dict[str, Any] = {"transform": TrainTransform(size=24, antialias=antialias), "exif": exif, "mix": None}
    on_host = opened(backend="dali", **settings)
    in_graph = Loader(on_host.context, DaliExecutor(on_host.context, ends="pixels"))
    for host, graph in zip(on_host, in_graph, strict=True):
        assert host.keys == graph.keys
        assert host.plan.flip.any()
        apart = (pixels(host.images, TrainTransform()) - pixels(graph.images, TrainTransform())).abs()
        assert apart.mean() < GENERATED_BOUND


@needs_dali
def test_windows_cut_out_of_whole_images_are_those_that_the_decoder_cuts_out(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An nvJPEG that cannot decode regions decodes whole images; here both graphs run on the CPU."""
    from multimix_pipe.dali import executor

    by_decoder = list(opened(backend="dali", mix=None))
    graph = executor.Graph
    monkeypatch.setattr(executor, "Graph", lambda **options: graph(**{**options, "decodes_regions": False}))
    assert all_same(list(opened(backend="dali", mix=None)), by_decoder)


@needs_dali
def test_the_nvjpeg_in_use_is_the_one_that_pip_installed() -> None:
    from multimix_pipe.dali.decode_check import decodes_regions, nvjpeg_version

    versions = [d.version for d in distributions() if d.name in ("nvidia-nvjpeg", "nvidia-nvjpeg-cu12")]
    assert [nvjpeg_version()] == [tuple(map(int, version.split(".")[:2])) for version in versions]
    assert decodes_regions()


@needs_dali
@pytest.mark.parametrize("torchvision", [False, True])
def test_an_nvjpeg_that_cannot_decode_regions_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, torchvision: bool
) -> None:
    from multimix_pipe.dali import decode_check

    monkeypatch.setattr(decode_check, "nvjpeg_version", lambda: (13, 0))
    if torchvision:
        monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    assert not decode_check.decodes_regions()
    assert "nvJPEG 13.0" in caplog.text
    assert ("import nvidia.dali before torchvision" in caplog.text) == torchvision
