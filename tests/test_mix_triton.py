"""The Triton kernel that bench/mix_stage.py measures: the oracle to the bit, on a GPU, or in Triton's interpreter without one."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from multimix_pipe.mixing import MixPlan, reference

pytest.importorskip("triton", reason="Triton is not installed")

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
SHAPES = [(4, 5, (3, 17, 19)), (1, 16, (3, 8, 8)), (3, 1, (3, 32, 32)), (2, 2, (1, 1, 1)), (5, 3, (3, 16, 64))]
"""(B, K, shape of an image): sizes that no block divides, that a block divides, one pair, one pixel."""


def load_kernels() -> ModuleType:
    """bench/mix_triton.py, decorated for the interpreter where there is no GPU."""
    path = Path(__file__).resolve().parents[1] / "bench" / "mix_triton.py"
    spec = importlib.util.spec_from_file_location("mix_triton", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mix_triton"] = module  # dataclasses look their module up
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "0" if GPU else "1"
    try:
        spec.loader.exec_module(module)
    finally:
        del os.environ["TRITON_INTERPRET"]
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before
    return module


kernels = load_kernels()
SETTINGS = [kernels.Setting(256, 4, True), kernels.Setting(64, 4, False)]


def a_batch(pairs: int, k: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, images, partners that are not a permutation, weights with an exact 1 and 0 among them."""
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (pairs, *shape), dtype=np.uint8)
    lam = -np.sort(-rng.random((pairs, k), dtype=np.float32), axis=1)
    lam[0, 0], lam[-1, -1] = 1.0, 0.0
    partner = np.minimum(np.arange(pairs)[::-1], 1).copy()
    return pixels, rng.standard_normal((pairs, *shape), dtype=np.float32), partner, lam


def poisoned(pairs: int, k: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.full((pairs, k, *shape), torch.nan, dtype=dtype, device=DEVICE)


def assert_rounded(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to the bit; Triton's interpreter alone cuts bfloat16 off where a GPU rounds it."""
    found = found.cpu()
    if found.dtype == torch.bfloat16 and not GPU:
        assert torch.allclose(found.float(), expected, rtol=2**-7, atol=1e-30)
    else:
        assert found.equal(expected.to(found.dtype))


@pytest.mark.parametrize("setting", SETTINGS, ids=["pairs first", "blocks first"])
@pytest.mark.parametrize(("pairs", "k", "shape"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_kernel_is_the_oracle(
    dtype: torch.dtype, pairs: int, k: int, shape: tuple[int, ...], setting: object
) -> None:
    _, images, partner, lam = a_batch(pairs, k, shape)
    out = poisoned(pairs, k, shape, dtype)
    arrays = (torch.from_numpy(array).to(DEVICE) for array in (images, partner, lam))
    kernels.mix_images(*arrays, out, setting)
    assert_rounded(out.flatten(0, 1), torch.from_numpy(reference.mix_images(images, MixPlan(partner, lam))))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_from_pixels_the_kernel_is_the_oracle_of_the_normalised_batch(dtype: torch.dtype, channels_last: bool) -> None:
    pairs, k, shape = 4, 5, (13, 11, 3) if channels_last else (3, 13, 11)
    pixels, _, partner, lam = a_batch(pairs, k, shape)
    mean, scale = np.float32([123.7, 116.3, 103.5]), 1 / np.float32([58.4, 57.1, 57.4])
    per_channel = (3,) if channels_last else (3, 1, 1)
    images = (pixels.astype(np.float32) - mean.reshape(per_channel)) * scale.reshape(per_channel)
    out = poisoned(pairs, k, shape, dtype)
    arrays = (torch.from_numpy(array).to(DEVICE) for array in (pixels, mean, scale, partner, lam))
    kernels.mix_pixels(*arrays, out, SETTINGS[0], channels_last=channels_last)
    assert_rounded(out.flatten(0, 1), torch.from_numpy(reference.mix_images(images, MixPlan(partner, lam))))


@pytest.mark.parametrize("k", range(1, 17))
def test_row_k_is_that_of_one_weight(k: int) -> None:
    _, images, partner, lam = a_batch(3, k, (3, 9, 7))
    x, p, weights = (torch.from_numpy(array).to(DEVICE) for array in (images, partner, lam))
    rows = kernels.mix_images(x, p, weights, poisoned(3, k, (3, 9, 7), torch.float32), SETTINGS[0])
    for row in {0, k // 2, k - 1}:
        one = poisoned(3, 1, (3, 9, 7), torch.float32)
        kernels.mix_images(x, p, weights[:, row : row + 1].contiguous(), one, SETTINGS[0])
        assert one[:, 0].equal(rows[:, row])


def test_no_pairs_are_no_work() -> None:
    empty = torch.empty(0, 3, 4, 4, device=DEVICE)
    partner, lam = torch.empty(0, dtype=torch.int64, device=DEVICE), torch.empty(0, 5, device=DEVICE)
    assert kernels.mix_images(empty, partner, lam, poisoned(0, 5, (3, 4, 4), torch.float32)).numel() == 0


@pytest.mark.skipif(not GPU, reason="no CUDA GPU that torch can use")
def test_more_elements_than_32_bits_number() -> None:
    pairs, k, shape = 256, 16, (3, 448, 448)
    assert pairs * k * 3 * 448 * 448 > 2**31
    images = torch.randn(pairs, *shape, device=DEVICE)
    partner, lam = torch.arange(pairs, device=DEVICE).roll(1), torch.rand(pairs, k, device=DEVICE)
    out = poisoned(pairs, k, shape, torch.float16)
    kernels.mix_images(images, partner, lam, out)
    for pair in (0, pairs - 1):
        two = images[[pair, (pair - 1) % pairs]].cpu().numpy()
        expected = reference.mix_images(two, MixPlan(np.array([1, 0]), lam[[pair, pair]].cpu().numpy()))[:k]
        assert out[pair].cpu().equal(torch.from_numpy(expected).half())


@pytest.mark.skipif(not GPU, reason="no CUDA GPU that torch can use")
def test_it_runs_on_the_current_stream() -> None:
    _, images, partner, lam = a_batch(8, 5, (3, 64, 64))
    x, p, weights = (torch.from_numpy(array).to(DEVICE) for array in (images, partner, lam))
    side, out = torch.cuda.Stream(), poisoned(8, 5, (3, 64, 64), torch.float32)
    kernels.mix_images(x, p, weights, out)  # compiled before it is looked at
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(1_000_000_000)
        kernels.mix_images(x, p, weights, out)
        assert not side.query()
    assert torch.cuda.current_stream().query()
    side.synchronize()
    assert out.flatten(0, 1).cpu().equal(torch.from_numpy(reference.mix_images(images, MixPlan(partner, lam))))
