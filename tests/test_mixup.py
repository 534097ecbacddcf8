"""The oracle says what mixup is, and the kernels, compiled or in NumPy, give its bits."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from multimix_pipe.config import MultiMix, TrainTransform
from multimix_pipe.mixing.mixup import mix_images, mix_targets
from multimix_pipe.plan import draw_mixing
from multimix_pipe.runtime.kernels import blend as blend_module
from multimix_pipe.runtime.kernels.blend import blend
from multimix_pipe.runtime.kernels.normalize import Normalize

Arrays = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]


@pytest.fixture(params=["numba", "numpy"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(blend_module, "fused_kernel", lambda: None)
    elif importlib.util.find_spec("numba") is None:
        pytest.skip("numba is not installed")
    return str(request.param)


def batch(rows: int, k: int = 5, shape: tuple[int, ...] = (3, 9, 11), seed: int = 0) -> Arrays:
    images = np.random.default_rng(seed).normal(size=(rows, *shape)).astype(np.float32)
    return images, *draw_mixing(MultiMix(k=k, alpha=0.4), seed, 0, 0, rows)


def blended(
    images: NDArray[np.generic],
    partner: NDArray[np.int64],
    lam: NDArray[np.float32],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    out = torch.empty((*lam.shape, *images.shape[1:]), dtype=dtype)
    assert blend(torch.from_numpy(images), torch.from_numpy(partner), torch.from_numpy(lam), out) is out
    return out.flatten(0, 1)


def test_the_oracle_is_the_equation_row_by_row() -> None:
    images, partner, lam = batch(4, shape=(2,))
    mixed = mix_images(images, partner, lam)
    assert mixed.dtype == np.float32
    for b in range(4):
        for k in range(5):
            exact = np.float64(lam[b, k]) * images[b] + (1 - np.float64(lam[b, k])) * images[partner[b]]
            assert np.allclose(mixed[b * 5 + k], exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_kernel_equals_the_oracle_to_the_bit(rows: int, k: int) -> None:
    arrays = batch(rows, k)
    assert np.array_equal(blended(*arrays).numpy(), mix_images(*arrays))


@pytest.mark.parametrize("shape", [(), (1,), (17,), (3, 1, 1), (3, 64, 65)], ids=str)
def test_any_shape_of_a_row_is_mixed(shape: tuple[int, ...]) -> None:
    arrays = batch(5, shape=shape)
    assert np.array_equal(blended(*arrays).numpy(), mix_images(*arrays))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_results_are_within_one_ulp_of_the_rounded_oracle(dtype: torch.dtype) -> None:
    arrays = batch(7)
    expected = torch.from_numpy(mix_images(*arrays)).to(dtype)
    result = blended(*arrays, dtype=dtype)
    assert result.dtype == dtype
    steps = result.view(torch.int16).int() - expected.view(torch.int16).int()
    assert int(steps.abs().max()) <= 1


def test_k_1_is_row_k_of_k_5_to_the_bit() -> None:
    images, partner, lam = batch(7)
    all_rows = blended(images, partner, lam).unflatten(0, (7, 5))
    for k in range(5):
        one = lam[:, k : k + 1].copy()
        assert torch.equal(blended(images, partner, one), all_rows[:, k])
        assert np.array_equal(mix_images(images, partner, one), all_rows[:, k].numpy())


def test_a_row_does_not_depend_on_the_rest_of_the_batch() -> None:
    images, _, lam = batch(9, shape=(3, 5, 7))
    partner = np.array([1, 0, *range(2, 9)])
    whole = blended(images, partner, lam)[:10]
    assert torch.equal(blended(images[:2], partner[:2], lam[:2]), whole)


def test_weight_one_gives_the_image_and_weight_zero_its_partner_to_the_bit() -> None:
    images, partner, lam = batch(6)
    assert torch.equal(blended(images, partner, np.ones_like(lam))[::5], torch.from_numpy(images))
    assert torch.equal(blended(images, partner, np.zeros_like(lam))[::5], torch.from_numpy(images[partner]))


def test_constant_colours_come_out_as_the_targets_say() -> None:
    rows, classes = 7, 7
    _, partner, lam = batch(rows)
    labels = np.arange(rows)
    images = np.broadcast_to(np.eye(rows, dtype=np.float32)[:, :, None, None], (rows, classes, 4, 4)).copy()
    mixed, targets = blended(images, partner, lam).numpy(), mix_targets(labels, partner, lam, classes)
    assert np.array_equal(mixed, np.broadcast_to(targets[:, :, None, None], mixed.shape))


def test_uint8_images_give_float_results() -> None:
    _, partner, lam = batch(5)
    images = np.random.default_rng(1).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    expected = mix_images(images.astype(np.float32), partner, lam)
    assert expected.dtype == np.float32
    assert np.array_equal(mix_images(images, partner, lam), expected)  # type: ignore[arg-type]
    assert np.array_equal(blended(images, partner, lam).numpy(), expected)


def test_channels_last_memory_changes_no_value() -> None:
    images, partner, lam = batch(3)
    out = torch.empty((15, 3, 9, 11)).to(memory_format=torch.channels_last)
    last = torch.from_numpy(images).to(memory_format=torch.channels_last)
    blend(last, torch.from_numpy(partner), torch.from_numpy(lam), out.unflatten(0, (3, 5)))
    assert np.array_equal(out.numpy(), mix_images(images, partner, lam))


def test_target_rows_are_nonnegative_and_sum_to_one_exactly() -> None:
    _, partner, lam = batch(64, shape=())
    targets = mix_targets(np.arange(64) % 10, partner, lam, 10)
    assert targets.shape == (320, 10)
    assert targets.dtype == np.float32
    assert targets.min() >= 0
    assert np.all(targets.sum(axis=1) == 1)


def test_a_pair_of_one_class_keeps_it_and_a_batch_of_one_repeats_its_image() -> None:
    images, partner, lam = batch(1)
    assert np.all(mix_targets(np.array([2]), partner, lam, 3) == [0, 0, 1])
    assert np.array_equal(blended(images, partner, lam).numpy(), np.repeat(images, 5, axis=0))


# 224x224 is written past the caches, 15x17 in whole vectors and a rest; 40x40 has several tiles or one
@pytest.mark.parametrize("side", [(15, 17), (40, 40), (1, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_pixels_are_normalised_mixed_and_rounded_as_one_after_the_other(
    side: tuple[int, int], channels_last: bool, dtype: torch.dtype
) -> None:
    shape = (*side, 3) if channels_last else (3, *side)
    pixels = np.random.default_rng(2).integers(0, 256, (6, *shape), dtype=np.uint8)
    _, partner, lam = batch(6)
    normalize = Normalize.of(TrainTransform(), channels_last)
    per_channel = (3,) if channels_last else (3, 1, 1)
    normal = (pixels - normalize.mean.reshape(per_channel)) * normalize.scale.reshape(per_channel)
    expected = torch.from_numpy(mix_images(normal, partner, lam)).to(dtype)
    tensors = [torch.from_numpy(array) for array in (pixels, partner, lam)]
    out = torch.full((6, 5, *shape), 7, dtype=dtype)
    assert blend(*tensors, out, normalize=normalize).flatten(0, 1).equal(expected)
    with ThreadPoolExecutor(3) as threads:
        again = blend(*tensors, torch.full_like(out, 7), normalize=normalize, threads=threads)
    assert again.equal(out)


@pytest.mark.parametrize("skipped", [1, 5, 8])
def test_memory_at_any_address_gets_the_same_values_and_its_neighbours_none(skipped: int) -> None:
    images, partner, lam = batch(3, shape=(3, 16, 16))
    memory = torch.full((skipped + 15 * 768 + 64,), 7.0)
    blend(*(torch.from_numpy(array) for array in (images, partner, lam)), memory[skipped:-64].view(3, 5, 3, 16, 16))
    assert np.array_equal(memory[skipped:-64].view(15, 3, 16, 16).numpy(), mix_images(images, partner, lam))
    assert torch.all(memory[:skipped] == 7)
    assert torch.all(memory[-64:] == 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_results_are_rounded_as_torch_rounds(dtype: torch.dtype) -> None:
    draw = np.random.default_rng(3)
    exponents = draw.integers(-10, 6, 20000)
    special = [0.0, -0.0, 65504, 65519.99, 65520, 65536, 6e-8, 2.98e-8, 2.99e-8, 6.1e-5, 6.09e-5, 3e38]
    values = np.concatenate([draw.standard_normal(20000) * 10.0**exponents, special]).astype(np.float32)[None]
    rounded = blended(values, np.zeros(1, dtype=np.int64), np.ones((1, 1), dtype=np.float32), dtype)
    assert rounded.equal(torch.from_numpy(values).to(dtype))


def test_without_numba_mixing_still_works_and_says_so_once() -> None:
    program = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s")
sys.modules["numba"] = None
import torch
from multimix_pipe import MultiMix, mix_batch
for step in range(2):
    print(tuple(mix_batch(torch.rand(4, 3, 2, 2), torch.arange(4), MultiMix(k=2), num_classes=4, step=step).images.shape))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "(8, 3, 2, 2)\n" * 2
    assert done.stderr.count("multimix-pipe[fast]") == 1
