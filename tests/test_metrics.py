"""Promises of mixed_accuracy: the same number from rows and pairs, and plain accuracy where nothing is mixed."""

import doctest
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from multimix_pipe.errors import ConfigError
from multimix_pipe.training import MixedAccuracy, metrics, mix_targets, mixed_accuracy, pair_targets

B, K, C = 40, 5, 4


def plan(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(C, (B,), generator=generator)
    return labels, torch.arange(B).roll(1), torch.rand(B, K, generator=generator)


def weights(pairs: int) -> torch.Tensor:
    return torch.rand(pairs, K, generator=torch.Generator().manual_seed(2))


def logits_of(rows: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, C, generator=torch.Generator().manual_seed(seed))


def test_rows_and_pairs_of_one_plan_give_one_accuracy() -> None:
    logits = logits_of(B * K)
    torch.testing.assert_close(
        mixed_accuracy(logits, mix_targets(*plan(), C)), mixed_accuracy(logits, pair_targets(*plan()))
    )


def test_it_is_the_mean_weight_of_the_predicted_classes() -> None:
    labels, partner, lam = plan()
    logits = logits_of(B * K)
    total = 0.0
    for b in range(B):
        for k in range(K):
            predicted = logits[b * K + k].argmax()
            total += lam[b, k].item() * bool(predicted == labels[b])
            total += (1 - lam[b, k].item()) * bool(predicted == labels[partner[b]])
    assert mixed_accuracy(logits, mix_targets(*plan(), C)).item() == pytest.approx(total / (B * K), abs=1e-6)


def test_class_ids_give_plain_accuracy_as_one_hot_rows_do() -> None:
    labels, logits = plan()[0], logits_of(B)
    expected = sum(int(row.argmax() == label) for row, label in zip(logits, labels, strict=True)) / B
    assert mixed_accuracy(logits, labels).item() == pytest.approx(expected)
    assert mixed_accuracy(logits, F.one_hot(labels, C).float()).item() == pytest.approx(expected)


def test_the_best_prediction_reaches_the_mean_of_the_larger_weights() -> None:
    labels, partner, lam = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]), weights(3)
    rows = mix_targets(labels, partner, lam, C)
    torch.testing.assert_close(mixed_accuracy(rows, rows), torch.maximum(lam, 1 - lam).mean())


@pytest.mark.parametrize("form", ["rows", "pairs"])
def test_a_pair_of_one_class_counts_in_full(form) -> None:
    labels, partner, lam = torch.full((3,), 2), torch.tensor([1, 2, 0]), weights(3)
    logits = F.one_hot(torch.full((3 * K,), 2), C).bfloat16()
    targets = mix_targets(labels, partner, lam, C) if form == "rows" else pair_targets(labels, partner, lam)
    accuracy = mixed_accuracy(logits, targets)
    assert accuracy.shape == ()
    assert accuracy.dtype == torch.float32
    assert accuracy.item() == pytest.approx(1.0)


def test_targets_that_do_not_fit_the_logits_are_named() -> None:
    with pytest.raises(ConfigError, match="target rows must have the logits' shape"):
        mixed_accuracy(logits_of(B), mix_targets(*plan(), C))


def test_docstring_examples_are_true() -> None:
    result = doctest.testmod(metrics)
    assert result.attempted
    assert not result.failed


def test_accuracy_over_unequal_batches_is_that_of_all_rows_together() -> None:
    logits, targets = logits_of(B * K), mix_targets(*plan(), C)
    accuracy = MixedAccuracy()
    for part in (slice(0, 7), slice(7, 90), slice(90, None)):
        accuracy.update(logits[part], targets[part])
    torch.testing.assert_close(accuracy.compute(), mixed_accuracy(logits, targets))
    accuracy.reset()
    assert accuracy.compute().isnan()
    labels = targets.argmax(1)
    accuracy.update(logits, labels)
    assert accuracy.compute().item() == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def add_rows(rank: int, folder: str) -> None:
    """One of two processes, which hold 3 and 37 pairs; a third one holds none."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=3)
    accuracy, logits, targets = MixedAccuracy(), logits_of(B * K), mix_targets(*plan(), C)
    if rank < 2:
        part = slice(3 * K) if rank else slice(3 * K, None)
        accuracy.update(logits[part], targets[part])
    torch.testing.assert_close(accuracy.compute(), mixed_accuracy(logits, targets))
    dist.destroy_process_group()


def test_accuracy_is_that_of_the_rows_of_all_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(add_rows, (str(tmp_path),), nprocs=3)  # raises what a process raises
