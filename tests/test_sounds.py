"""Promises of mix_batch for tensors that are no images: waveforms (B, T) and spectrograms (B, F, T)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.methods import registered
from helpers.processes import ROOT
from multimix_pipe import MultiMix, mix_batch
from test_pipelines import run

B, K, F, T = 6, 3, 5, 40


def sounds(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(B, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(B)


@pytest.mark.parametrize("shape", [(T,), (F, T), (1, T), (2, F, T)])
def test_mixup_takes_tensors_of_any_shape(shape: tuple[int, ...]) -> None:
    values, labels = sounds(*shape)
    batch = mix_batch(values, labels, MultiMix(k=K), num_classes=B, step=0)
    lam = torch.from_numpy(batch.plan.lam).reshape(B, K, *[1] * len(shape))
    expected = lam * values[:, None] + (1 - lam) * values[batch.plan.partner][:, None]
    assert batch.images.shape == (B * K, *shape)
    torch.testing.assert_close(batch.images, expected.flatten(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("shape", "axes"), [((T,), (0,)), ((F, T), (1,)), ((2, F, T), (2,))])
def test_boxes_can_be_stretches_of_time(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    values, labels = sounds(*shape)
    with registered() as method:
        batch = mix_batch(values, labels, MultiMix(k=K, method=method), num_classes=B, step=0, axes=axes)
    rows = batch.images.reshape(B, K, *shape)
    for pair in range(B):
        other = values[batch.plan.partner[pair]]
        for k in range(K):
            own = (rows[pair, k] == values[pair]).reshape(-1, T)
            assert ((rows[pair, k] == other).reshape(-1, T) | own).all()
            assert (own == own[0]).all()  # all frequencies and channels at once
            assert own[0].float().mean() == pytest.approx(float(batch.plan.lam[pair, k]), abs=1e-6)
    assert len(np.unique(batch.plan.lam)) > 3


@pytest.mark.parametrize("mix", ["waveform", "spectrogram", "none"])
def test_the_recipe_learns_vowels(mix: str) -> None:
    options = ["--mix", mix, "--sounds", 300, "--epochs", 2, "--batch-size", 25, "--k", 2]
    printed = run("-W", "error", ROOT / "pipelines" / "spoken_tones.py", *options)
    *_, last = printed.splitlines()
    assert last.startswith(f"{mix}: ")
    assert float(last.split()[1].rstrip("%")) > 15  # chance is 10%
