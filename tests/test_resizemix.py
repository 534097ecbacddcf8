"""ResizeMix: the partner is resized as Pillow does, to within one level, and all else equals the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers.backends import needs_dali
from helpers.batches import Open
from multimix_pipe import Loader, MultiMix, TrainTransform, apply_mix
from multimix_pipe.mixing import MixPlan, reference
from multimix_pipe.plan import draw_mixing
from multimix_pipe.runtime import kernels
from multimix_pipe.runtime.kernels import Layout
from multimix_pipe.runtime.kernels.resize import resized_partners, with_patches
from multimix_pipe.runtime.tensors import MixTensors

SWITCH = {"resizemix": 0.7, "cutmix": 0.2, "mixup": 0.1}
CPU = torch.device("cpu")


@pytest.fixture(params=["numba", "torch"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(kernels, "host_kernel", lambda: None)
    return str(request.param)


def executed(images: Tensor, plan: MixPlan) -> np.ndarray:
    """Return z as the executors resize it."""
    mix, layout = MixTensors.of(plan, CPU), Layout.of(images.shape[1:])
    patches = resized_partners(images, mix, layout)
    assert patches is not None
    z = with_patches(images.reshape(len(images), *layout), mix, patches, slice(None), layout)
    return z.view(*plan.lam.shape, *images.shape[1:]).numpy()


@pytest.mark.parametrize(("height", "width"), [(31, 40), (10, 7), (3, 39), (1, 1), (31, 1)])
def test_the_reference_resizes_as_pillow_does(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (31, 40, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    rows, columns = reference.resize_rows(height, 31), reference.resize_rows(width, 40)
    assert np.abs(np.floor(rows @ image.transpose(2, 0, 1) @ columns.T + 0.5) - expected).max() <= 1


@pytest.mark.parametrize("partners", ["same", "each"])
@pytest.mark.parametrize("rows", [1, 2, 3, 9])
@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("size", [(24, 20), (7, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_the_blend_is_the_reference_given_the_resized_partners(
    kernel: str, dtype: torch.dtype, size: tuple[int, int], k: int, rows: int, partners: str
) -> None:
    mix = MultiMix(k=k, method=SWITCH, partners=partners)  # type: ignore[arg-type]
    plan = draw_mixing(mix, 5, 0, 0, rows, size)
    images = (torch.rand(rows, 3, *size) * 255).to(dtype)
    found = apply_mix(images, torch.arange(rows), plan, num_classes=9).images
    last = apply_mix(images.to(memory_format=torch.channels_last), torch.arange(rows), plan, num_classes=9).images
    assert torch.allclose(last, found, rtol=0, atol=1e-3)
    z = reference.partners(images.numpy(), plan)
    if (plan.field == 3).any():
        own, z = z, executed(images, plan)
        assert np.abs(own.astype(np.float64) - z).max() <= (1 if dtype == torch.uint8 else 1e-3)
    expected = reference.mix_images(images.numpy().astype(np.float32), plan, z.astype(np.float32))
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_loader_resizes_pixels_and_normalises_them_then(
    opened: Open, backend: str, dtype: str, channels_last: bool
) -> None:
    check(opened, lambda loader: loader, 1.01, backend=backend, dtype=dtype, channels_last=channels_last)


@needs_dali
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_whole_graph_resizes_partners_too(opened: Open, channels_last: bool) -> None:
    """DALI takes other pixels for those outside the image, so the edges of a patch differ; not the rest."""
    from multimix_pipe.dali.executor import DaliExecutor

    def whole(loader: Loader) -> Loader:
        return Loader(loader.context, DaliExecutor(loader.context, ends="batch"))

    def in_pixels(loader: Loader) -> Loader:
        return Loader(loader.context, DaliExecutor(loader.context, ends="pixels"))

    check(opened, whole, 40, in_pixels, backend="dali", channels_last=channels_last)


def check(opened: Open, change: Any, bound: float, plain_as: Any = lambda loader: loader, **settings: Any) -> None:
    """Compare a loader's first batch with the reference of its plain batch; `bound`: of the resampled pixels, in 0..255."""
    transform = TrainTransform(size=(24, 20))
    mix = MultiMix(k=3, method=SWITCH)
    settings |= {"batch_size": 16, "transform": transform, "mix": mix}
    plain = next(iter(plain_as(opened(**{**settings, "expand": False, "dtype": "float32"}))))
    batch = next(iter(change(opened(**settings))))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transform.mean, transform.std))
    pixels = ((plain.images * std + mean) * 255).round().to(torch.uint8).contiguous()
    z = torch.from_numpy(reference.partners(pixels.numpy(), plain.plan.mix))
    normal = ((z / 255 - mean) / std).numpy()
    expected = torch.from_numpy(reference.mix_images(plain.images.contiguous().numpy(), plain.plan.mix, normal))
    apart = ((batch.images.float() - expected).abs() * std * 255).unflatten(0, (16, 3))
    resized = torch.from_numpy(plain.plan.method == "resizemix")
    assert resized.any()
    half = settings.get("dtype") == "float16"
    assert float(apart[~resized].max()) < (0.2 if half else 1e-3)
    inside = torch.from_numpy(plain.plan.mix.weights((24, 20)) == 0)[:, :, None].expand_as(apart)
    assert float(apart[resized][~inside[resized]].max()) < (0.2 if half else 1e-3)
    assert float(apart[resized].max()) < bound + half * 0.2
    assert float(apart[resized].mean()) < 0.5
