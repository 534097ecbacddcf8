"""Promises of mixed targets: rows sum to 1, weigh the right classes, in the right order."""

import doctest

import numpy as np
import pytest
import torch

from multimix_pipe.errors import ConfigError
from multimix_pipe.mixing import MixPlan, reference
from multimix_pipe.training import mix_targets, pair_targets, targets


def draw(b: int, k: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, classes, b))
    partner = torch.from_numpy(np.roll(np.arange(b), 1))
    lam = torch.from_numpy(-np.sort(-rng.random((b, k), dtype=np.float32), axis=1))
    return labels, partner, lam


@pytest.mark.parametrize(("b", "k", "classes"), [(1, 1, 1), (1, 5, 3), (7, 1, 2), (64, 5, 10), (33, 8, 1000)])
def test_every_row_sums_to_one_within_one_ulp(b: int, k: int, classes: int) -> None:
    rows = mix_targets(*draw(b, k, classes), classes)
    assert rows.shape == (b * k, classes)
    assert rows.dtype == torch.float32
    # Each row holds at most two numbers that are not zero, so a float64 sum of it is exact.
    sums = rows.double().sum(1)
    assert (sums - 1).abs().max() <= 2.0**-23


def test_rows_are_those_of_the_numpy_reference_to_the_bit() -> None:
    labels, partner, lam = draw(16, 4, 6, seed=1)
    rows = mix_targets(labels, partner, lam, 6)
    plan = MixPlan(partner.numpy(), lam.numpy())
    np.testing.assert_array_equal(rows.numpy(), reference.mix_targets(labels.numpy(), plan, 6))


def test_two_samples_of_one_class_give_that_class_alone() -> None:
    lam = torch.rand(50, 20, generator=torch.Generator().manual_seed(3))
    rows = mix_targets(torch.full((50,), 2), torch.arange(50).roll(1), lam, 5)
    assert (rows[:, 2] - 1).abs().max() <= 2.0**-23
    assert rows.sum() == rows[:, 2].sum()


def test_weights_of_one_and_zero_give_exact_one_hot_rows() -> None:
    rows = mix_targets(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 3)
    assert rows.argmax(1).tolist() == [0, 1, 1, 0]
    assert rows.sum() == rows.max(1).values.sum() == 4


def test_row_k_does_not_depend_on_the_other_weights() -> None:
    labels, partner, lam = draw(9, 5, 4, seed=2)
    together = mix_targets(labels, partner, lam, 4).view(9, 5, 4)
    for k in range(5):
        assert torch.equal(together[:, k], mix_targets(labels, partner, lam[:, k : k + 1], 4))


def test_pairs_hold_the_labels_of_the_partners() -> None:
    labels, partner, lam = draw(8, 3, 5)
    own, other, weight = pair_targets(labels, partner, lam)
    assert torch.equal(own, labels)
    assert other.tolist() == [labels[p].item() for p in partner]
    assert torch.equal(weight, lam)


@pytest.mark.parametrize(
    ("labels", "partner", "lam"),
    [((4, 1), (4,), (4, 2)), ((4,), (3,), (4, 2)), ((4,), (4,), (4,)), ((4,), (4,), (3, 2))],
)
def test_shapes_that_do_not_fit_are_named(labels: tuple[int], partner: tuple[int], lam: tuple[int]) -> None:
    arguments = torch.zeros(labels, dtype=torch.int64), torch.zeros(partner, dtype=torch.int64), torch.zeros(lam)
    with pytest.raises(ConfigError, match=r"labels and partner must be \(B,\) and lam \(B, K\); found"):
        mix_targets(*arguments, 3)


def test_weights_of_less_than_float32_are_refused() -> None:
    labels, partner, lam = draw(4, 2, 3)
    with pytest.raises(ConfigError, match=r"lam must be float32.*found torch.float16"):
        mix_targets(labels, partner, lam.half(), 3)


def test_docstring_examples_are_true() -> None:
    result = doctest.testmod(targets)
    assert result.attempted
    assert not result.failed
