"""The reference implements the equation pixel by pixel, and both blends, by Numba and by torch, equal it to the bit."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from helpers.methods import registered
from multimix_pipe import ConfigError, MixPlan, TrainTransform, apply_mix
from multimix_pipe.mixing import MultiMix
from multimix_pipe.mixing.reference import mix_images, mix_targets
from multimix_pipe.plan import draw_mixing
from multimix_pipe.runtime import kernels
from multimix_pipe.runtime.kernels import Layout, blend, device
from multimix_pipe.runtime.kernels.normalize import Normalize
from multimix_pipe.runtime.tensors import MixTensors

Images = NDArray[np.float32]
CPU = torch.device("cpu")


@pytest.fixture(params=["numba", "torch"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(kernels, "host_kernel", lambda: None)
        monkeypatch.setattr(device, "CHUNK_ELEMENTS", 4000)  # so that small batches are split too
    elif importlib.util.find_spec("numba") is None:
        pytest.skip("numba is not installed")
    return str(request.param)


@pytest.fixture(params=["mixup", "cutmix", "smoothmix", "split"], autouse=True)
def method(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each built-in method, and one from outside."""
    with registered("split"):
        yield str(request.param)


def batch(
    method: str, rows: int, k: int = 5, shape: tuple[int, ...] = (3, 9, 11), seed: int = 0, **options: Any
) -> tuple[Images, MixPlan]:
    images = np.random.default_rng(seed).normal(size=(rows, *shape)).astype(np.float32)
    size = (1, 1, *shape)[-2:]
    return images, draw_mixing(MultiMix(k=k, alpha=0.4, method=method, **options), seed, 0, 0, rows, size)


def member(plan: MixPlan, k: int) -> MixPlan:
    """Return the plan of member k alone."""
    partner = plan.partner if plan.partner.ndim == 1 else plan.partner[:, k]
    factors = None if plan.factors is None else plan.factors[:, k : k + 1]
    return MixPlan(partner, plan.lam[:, k : k + 1], plan.method, plan.box[:, k : k + 1], factors)


def blended(images: NDArray[np.generic], plan: MixPlan, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    out = torch.empty((*plan.lam.shape, *images.shape[1:]), dtype=dtype)
    layout = Layout.of(images.shape[1:])
    assert blend(torch.from_numpy(images).float(), MixTensors.of(plan, CPU), out, layout) is out
    return out.flatten(0, 1)


def test_the_reference_is_the_equation_pixel_by_pixel(method: str) -> None:
    images, plan = batch(method, 4, shape=(2, 3, 8))
    mixed = mix_images(images, plan)
    assert mixed.dtype == np.float32
    for b, k, c, y, x in np.ndindex(4, 5, 2, 3, 8):
        y0, x0, y1, x1 = plan.box[b, k]
        inside = y0 <= y < y1 and x0 <= x < x1
        weight = np.float64(plan.lam[b, k]) if method == "mixup" else 0.0 if inside else 1.0
        if method == "smoothmix":
            assert plan.factors is not None
            weight = 1 - np.float64(plan.factors[b, k, y]) * plan.factors[b, k, 3 + x]
        exact = weight * images[b, c, y, x] + (1 - weight) * images[plan.partner[b], c, y, x]
        assert abs(mixed[b * 5 + k, c, y, x] - exact) < 1e-6


def test_lam_is_what_the_pixels_say_and_never_increases(method: str) -> None:
    _, plan = batch(method, 64, k=7)
    assert np.allclose(plan.weights((9, 11)).mean((2, 3)), plan.lam, rtol=0, atol=1e-6)
    assert np.all(np.diff(plan.lam, axis=1) <= 0)
    assert len(np.unique(plan.lam)) > 5


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("partners", ["same", "each"])
def test_the_blend_equals_the_reference_to_the_bit(method: str, rows: int, k: int, partners: str) -> None:
    arrays = batch(method, rows, k, partners=partners)
    assert arrays[1].partner.shape == ((rows,) if partners == "same" else (rows, k))
    assert np.array_equal(blended(*arrays).numpy(), mix_images(*arrays))


@pytest.mark.parametrize("shape", [(), (1,), (17,), (3, 1, 1), (3, 7, 5), (3, 64, 65)], ids=str)
def test_any_shape_of_a_row_is_mixed(method: str, shape: tuple[int, ...]) -> None:
    arrays = batch(method, 5, shape=shape)
    assert np.array_equal(blended(*arrays).numpy(), mix_images(*arrays))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_results_are_within_one_ulp_of_the_rounded_reference(method: str, dtype: torch.dtype) -> None:
    arrays = batch(method, 7)
    expected = torch.from_numpy(mix_images(*arrays)).to(dtype)
    result = blended(*arrays, dtype=dtype)
    assert result.dtype == dtype
    steps = result.view(torch.int16).int() - expected.view(torch.int16).int()
    assert int(steps.abs().max()) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_k_1_is_row_k_of_k_5_to_the_bit(method: str, dtype: torch.dtype) -> None:
    images, plan = batch(method, 7)
    all_rows = blended(images, plan, dtype).unflatten(0, (7, 5))
    for k in range(5):
        one = member(plan, k)
        assert torch.equal(blended(images, one, dtype), all_rows[:, k])
        assert torch.from_numpy(mix_images(images, one)).to(dtype).equal(all_rows[:, k])


def test_a_row_does_not_depend_on_the_rest_of_the_batch(method: str) -> None:
    images, plan = batch(method, 9, shape=(3, 7, 5))
    plan = replace(plan, partner=np.array([1, 0, *range(2, 9)]))
    whole = blended(images, plan)[:10]
    assert torch.equal(blended(images[:2], plan.rows(slice(0, 2))), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("lam_per", ["pair", "batch"])
def test_each_pair_of_a_switch_is_what_its_method_alone_makes_of_it(lam_per: str, dtype: torch.dtype) -> None:
    names = ("mixup", "cutmix", "smoothmix", "split")
    switch = {"mixup": 0.4, "cutmix": 0.2, "smoothmix": 0.2, "split": 0.2}
    images, plan = batch(switch, 40, lam_per=lam_per)  # type: ignore[arg-type]
    alone = {name: batch(name, 40, lam_per=lam_per)[1] for name in names}
    found = blended(images, plan, dtype).unflatten(0, (40, 5))
    assert torch.from_numpy(mix_images(images, plan)).to(dtype).equal(found.flatten(0, 1))
    assert len(set(plan.method)) == (4 if lam_per == "pair" else 1)
    for b, name in enumerate(plan.method.tolist()):
        assert np.array_equal(plan.lam[b], alone[name].lam[b])
        assert np.array_equal(plan.box[b], alone[name].box[b])
        assert torch.equal(found[b], blended(images, alone[name], dtype).unflatten(0, (40, 5))[b])


def test_weight_one_gives_the_image_and_weight_zero_its_partner_to_the_bit(method: str) -> None:
    images, plan = batch(method, 6)
    whole = np.broadcast_to(np.array([0, 0, 9, 11], dtype=np.int32), plan.box.shape)
    none, all_of_it = (None if plan.factors is None else np.full_like(plan.factors, value) for value in (0, 1))
    ones = replace(plan, lam=np.ones_like(plan.lam), box=np.zeros_like(plan.box), factors=none)
    zeros = replace(plan, lam=np.zeros_like(plan.lam), box=whole, factors=all_of_it)
    assert torch.equal(blended(images, ones)[::5], torch.from_numpy(images))
    assert torch.equal(blended(images, zeros)[::5], torch.from_numpy(images[plan.partner]))


def test_constant_colours_come_out_as_the_targets_say(method: str) -> None:
    rows, classes = 7, 7
    _, plan = batch(method, rows, shape=(3, 4, 4))
    labels = np.arange(rows)
    images = np.broadcast_to(np.eye(rows, dtype=np.float32)[:, :, None, None], (rows, classes, 4, 4)).copy()
    colours = blended(images, plan).mean((2, 3)).numpy()
    assert np.allclose(colours, mix_targets(labels, plan, classes), rtol=0, atol=1e-6)


def test_uint8_images_give_float_results(method: str) -> None:
    _, plan = batch(method, 5, shape=(3, 4, 4))
    images = np.random.default_rng(1).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    expected = mix_images(images.astype(np.float32), plan)
    assert expected.dtype == np.float32
    assert np.array_equal(mix_images(images, plan), expected)  # type: ignore[arg-type]
    assert np.array_equal(blended(images, plan).numpy(), expected)


def test_channels_last_memory_changes_no_value_and_is_kept(method: str) -> None:
    images, plan = batch(method, 3)
    last = torch.from_numpy(images).to(memory_format=torch.channels_last)
    found = apply_mix(last, torch.arange(3), plan, num_classes=3).images
    assert np.array_equal(found.numpy(), mix_images(images, plan))
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("shape", "axes"), [((6, 7, 3), (0, 1)), ((20,), (0,)), ((2, 20, 3), (1,)), ((2, 5, 6, 7), (1, 2))]
)
def test_fields_lie_in_the_axes_that_are_named(method: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    layout = Layout.of(shape, axes)
    plan = draw_mixing(MultiMix(k=4, method=method), 1, 0, 0, 5, (layout.height, layout.width))
    images = np.random.default_rng(0).normal(size=(5, *shape)).astype(np.float32)
    found = apply_mix(torch.from_numpy(images), torch.arange(5), plan, num_classes=5, axes=axes).images
    planes = np.moveaxis(images.reshape(5, *layout), -1, 2)  # (B, planes, inner, H, W)
    expected = np.moveaxis(mix_images(planes, plan), 2, -1).reshape(20, *shape)
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("axes", [(0, 2), (1, 0), (3,), (-1,), (0, 1, 2)])
def test_axes_that_are_no_neighbours_are_refused(axes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="axes must be one axis of an image, or two adjacent ones"):
        Layout.of((3, 4, 5), axes)


def test_target_rows_are_nonnegative_and_sum_to_one_exactly(method: str) -> None:
    _, plan = batch(method, 64)
    targets = mix_targets(np.arange(64) % 10, plan, 10)
    assert targets.shape == (320, 10)
    assert targets.dtype == np.float32
    assert targets.min() >= 0
    assert np.all(targets.sum(axis=1) == 1)


def test_a_pair_of_one_class_keeps_it_and_a_batch_of_one_repeats_its_image(method: str) -> None:
    images, plan = batch(method, 1)
    assert np.all(mix_targets(np.array([2]), plan, 3) == [0, 0, 1])
    assert np.array_equal(blended(images, plan).numpy(), np.repeat(images, 5, axis=0))


# 40x40 is written past the caches, 15x17 in whole vectors and a remainder, 1x1 in a remainder alone
@pytest.mark.parametrize("side", [(15, 17), (40, 40), (1, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pixels_are_normalised_mixed_and_rounded_as_one_after_the_other(
    kernel: str, method: str, side: tuple[int, int], channels_last: bool, dtype: torch.dtype
) -> None:
    if kernel == "torch":
        pytest.skip("the device blend takes normalised images")
    from multimix_pipe.runtime.kernels import host

    shape = (*side, 3) if channels_last else (3, *side)
    pixels = np.random.default_rng(2).integers(0, 256, (6, *shape), dtype=np.uint8)
    _, plan = batch(method, 6, shape=(3, *side))
    normalize = Normalize.of(TrainTransform(), channels_last)
    per_channel = (3,) if channels_last else (3, 1, 1)
    normal = (pixels - normalize.mean.reshape(per_channel)) * normalize.scale.reshape(per_channel)
    layout = normalize.layout(pixels.shape)
    mixed = mix_images(normal.transpose(0, 3, 1, 2) if channels_last else normal, plan)
    expected = torch.from_numpy(mixed.transpose(0, 2, 3, 1) if channels_last else mixed).to(dtype)
    with ThreadPoolExecutor(3) as threads:
        for pool in (None, threads):
            out = torch.full((6, 5, *shape), 7, dtype=dtype)
            host.blend(torch.from_numpy(pixels), MixTensors.of(plan, CPU), out, layout, normalize, pool)
            assert out.flatten(0, 1).equal(expected)
            out = torch.full((6, *shape), 7, dtype=dtype)
            host.blend(torch.from_numpy(pixels), None, out, layout, normalize, pool)
            assert out.equal(torch.from_numpy(normal).to(dtype))


@pytest.mark.parametrize("skipped", [1, 5, 8])
def test_memory_at_any_address_gets_the_same_values_and_its_neighbours_none(method: str, skipped: int) -> None:
    images, plan = batch(method, 3, shape=(3, 16, 16))
    memory = torch.full((skipped + 15 * 768 + 64,), 7.0)
    out = memory[skipped:-64].view(3, 5, 3, 16, 16)
    blend(torch.from_numpy(images), MixTensors.of(plan, CPU), out, Layout.of(images.shape[1:]))
    assert np.array_equal(memory[skipped:-64].view(15, 3, 16, 16).numpy(), mix_images(images, plan))
    assert torch.all(memory[:skipped] == 7)
    assert torch.all(memory[-64:] == 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_results_are_rounded_as_torch_rounds(dtype: torch.dtype) -> None:
    draw = np.random.default_rng(3)
    exponents = draw.integers(-10, 6, 20000)
    special = [0.0, -0.0, 65504, 65519.99, 65520, 65536, 6e-8, 2.98e-8, 2.99e-8, 6.1e-5, 6.09e-5, 3e38]
    values = np.concatenate([draw.standard_normal(20000) * 10.0**exponents, special]).astype(np.float32)[None]
    rounded = blended(values, MixPlan.identity(1), dtype)
    assert rounded.equal(torch.from_numpy(values).to(dtype))


def test_without_numba_mixing_still_works_and_says_so_once() -> None:
    program = """
import sys
sys.modules["numba"] = None
import torch
from multimix_pipe import MultiMix, mix_batch
for step in range(2):
    print(tuple(mix_batch(torch.rand(4, 3, 2, 2), torch.arange(4), MultiMix(k=2), num_classes=4, step=step).images.shape))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "(8, 3, 2, 2)\n" * 2
    assert done.stderr.count("multimix-pipe[fast]") == 1
