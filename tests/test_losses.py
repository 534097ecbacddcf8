"""Promises of MultiMixLoss: one formula for rows, pairs and class ids, with and without weights and smoothing."""

import doctest
import math

import pytest
import torch
import torch.nn.functional as F

from multimix_pipe.errors import ConfigError
from multimix_pipe.training import MultiMixLoss, losses, mix_targets, pair_targets

B, K, C = 12, 5, 7
WEIGHT = torch.tensor([0.1, 3.0, 1.0, 0.5, 2.0, 0.0, 0.7])

settings = pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
smoothing = pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, C, generator=torch.Generator().manual_seed(seed))


def plan(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(C, (B,), generator=generator)
    lam = torch.rand(B, K, generator=generator).sort(1, descending=True).values
    return labels, torch.arange(B).roll(1), lam


@settings
@smoothing
@reductions
def test_class_ids_give_cross_entropy_to_the_bit(weight, label_smoothing, reduction) -> None:
    labels = plan()[0]
    loss = MultiMixLoss(weight, label_smoothing, reduction)(logits_of(B), labels)
    expected = F.cross_entropy(
        logits_of(B), labels, weight=weight, label_smoothing=label_smoothing, reduction=reduction
    )
    assert torch.equal(loss, expected)


@settings
@smoothing
@reductions
def test_one_hot_rows_give_the_loss_of_class_ids(weight, label_smoothing, reduction) -> None:
    labels = plan()[0]
    loss = MultiMixLoss(weight, label_smoothing, reduction)
    rows = F.one_hot(labels, C).float()
    torch.testing.assert_close(loss(logits_of(B), rows), loss(logits_of(B), labels), rtol=1e-6, atol=1e-6)


@settings
@smoothing
@reductions
def test_unmixed_pairs_give_the_loss_of_class_ids(weight, label_smoothing, reduction) -> None:
    labels, partner, _ = plan()
    loss = MultiMixLoss(weight, label_smoothing, reduction)
    pairs = pair_targets(labels, partner, torch.ones(B, 1))
    torch.testing.assert_close(loss(logits_of(B), pairs), loss(logits_of(B), labels), rtol=1e-6, atol=1e-6)


@settings
@smoothing
@reductions
def test_rows_and_pairs_of_one_plan_give_one_loss_and_one_gradient(weight, label_smoothing, reduction) -> None:
    results = []
    for targets in (mix_targets(*plan(), C), pair_targets(*plan())):
        logits = logits_of(B * K).requires_grad_()
        loss = MultiMixLoss(weight, label_smoothing, reduction)(logits, targets)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        results.append((loss, gradient))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["rows", "pairs"])
def test_the_mean_runs_over_all_rows(form) -> None:
    """Without class weights the loss is the mean over K of the mean over pairs of plain mixup's loss."""
    labels, partner, lam = plan()
    logits = logits_of(B * K)
    targets = mix_targets(labels, partner, lam, C) if form == "rows" else pair_targets(labels, partner, lam)
    by_k = [
        (lam[:, k] * F.cross_entropy(logits[k::K], labels, reduction="none")).mean()
        + ((1 - lam[:, k]) * F.cross_entropy(logits[k::K], labels[partner], reduction="none")).mean()
        for k in range(K)
    ]
    torch.testing.assert_close(MultiMixLoss()(logits, targets), torch.stack(by_k).mean())


@smoothing
@pytest.mark.parametrize("form", ["rows", "pairs"])
def test_scaling_the_class_weights_leaves_the_mean_alone(form, label_smoothing) -> None:
    targets = mix_targets(*plan(), C) if form == "rows" else pair_targets(*plan())
    once = MultiMixLoss(WEIGHT, label_smoothing)(logits_of(B * K), targets)
    torch.testing.assert_close(MultiMixLoss(100 * WEIGHT, label_smoothing)(logits_of(B * K), targets), once)
    # The trap that this loss exists for: torch divides soft rows by N, whatever they weigh.
    rows = mix_targets(*plan(), C)
    torchs = [F.cross_entropy(logits_of(B * K), rows, weight=scale * WEIGHT) for scale in (1, 100)]
    torch.testing.assert_close(torchs[1], 100 * torchs[0])


@smoothing
def test_weighted_mean_is_the_documented_formula(label_smoothing) -> None:
    rows, logits = mix_targets(*plan(), C).double(), logits_of(B * K).double()
    numerator = denominator = 0.0
    for i in range(B * K):
        log_z = math.log(sum(math.exp(x) for x in logits[i].tolist()))
        for c in range(C):
            t, w = rows[i, c].item(), WEIGHT[c].item()
            numerator += w * ((1 - label_smoothing) * t + label_smoothing / C) * (log_z - logits[i, c].item())
            denominator += w * t
    loss = MultiMixLoss(WEIGHT, label_smoothing)(logits, rows)
    assert loss.item() == pytest.approx(numerator / denominator, rel=1e-12)


@settings
def test_soft_rows_without_a_mean_are_those_of_cross_entropy(weight) -> None:
    rows, logits = mix_targets(*plan(), C), logits_of(B * K)
    for reduction in ("none", "sum"):
        ours = MultiMixLoss(weight, 0.1, reduction)(logits, rows)
        expected = F.cross_entropy(logits, rows, weight=weight, label_smoothing=0.1, reduction=reduction)
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["rows", "pairs", "ids"])
def test_sixteen_bit_logits_are_computed_in_float32(form, dtype) -> None:
    labels, partner, lam = plan()
    targets = {"rows": mix_targets(labels, partner, lam, C), "pairs": pair_targets(labels, partner, lam)}.get(
        form, labels.repeat_interleave(K)
    )
    logits = logits_of(B * K).to(dtype)
    loss = MultiMixLoss(WEIGHT, 0.1)
    assert loss(logits, targets).dtype == torch.float32
    assert torch.equal(loss(logits, targets), loss(logits.float(), targets))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(logits, targets), loss(logits.float(), targets))


def test_gradient_is_that_of_finite_differences() -> None:
    logits = logits_of(4).double().requires_grad_()
    labels, partner, lam = torch.tensor([0, 6]), torch.tensor([1, 0]), torch.tensor([[0.9, 0.3], [0.6, 0.5]])
    loss = MultiMixLoss(WEIGHT, 0.1)
    for targets in (mix_targets(labels, partner, lam, C), pair_targets(labels, partner, lam)):
        assert torch.autograd.gradcheck(lambda x, targets=targets: loss(x, targets), (logits,))


def test_class_weights_move_and_are_saved_with_the_module() -> None:
    loss = MultiMixLoss(WEIGHT)
    assert torch.equal(loss.state_dict()["weight"], WEIGHT)
    assert loss.double().weight.dtype == torch.float64


def pairs_of(*shapes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.zeros(shape, dtype=torch.float32 if len(shape) == 2 else torch.int64) for shape in shapes)


def test_swapped_arguments_are_noticed_in_training() -> None:
    logits, rows = logits_of(8).requires_grad_(), torch.full((8, C), 1 / C)
    MultiMixLoss()(logits, rows)
    with pytest.raises(ConfigError, match="the first argument must be the logits and the second the targets"):
        MultiMixLoss()(rows, logits)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(4, C), r"target rows must have the logits' shape \(8, 7\); found \(4, 7\)"),
        (torch.zeros(8, C + 1), r"found \(8, 8\).*num_classes"),
        (
            torch.zeros(4, dtype=torch.int64),
            r"int64 of shape \(8,\).*found torch.int64 of shape \(4,\). For a mixed batch, pass batch.targets",
        ),
        (torch.zeros(5, dtype=torch.int64), r"found torch.int64 of shape \(5,\)$"),
        (torch.zeros(8, dtype=torch.int32), r"class ids must be int64.*found torch.int32"),
        (pairs_of((4,), (4,), (4, 3)), r"B\*K = 8.*found shapes"),
        (pairs_of((4,), (3,), (4, 2)), r"found shapes \[\(4,\), \(3,\), \(4, 2\)\]"),
        (pairs_of((4,), (4,)), r"target pairs must be labels"),
    ],
)
def test_targets_that_do_not_fit_the_logits_are_named(targets, message) -> None:
    with pytest.raises(ConfigError, match=message):
        MultiMixLoss()(logits_of(8), targets)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reduction": "avg"}, "reduction must be one of 'mean', 'sum', 'none'; found 'avg'"),
        ({"label_smoothing": 1.5}, "label_smoothing must be"),
        ({"weight": torch.ones(2, 2)}, "weight must be a floating-point tensor"),
        ({"weight": torch.tensor([1.0, -1.0])}, "finite numbers >= 0; found -1..1"),
        ({"weight": torch.tensor([1.0, math.nan])}, "finite numbers >= 0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        MultiMixLoss(**arguments)


def test_weights_for_another_number_of_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="each of 7 classes; found 3"):
        MultiMixLoss(torch.ones(3))(logits_of(2), torch.tensor([0, 1]))


def test_docstring_examples_are_true() -> None:
    result = doctest.testmod(losses)
    assert result.attempted
    assert not result.failed
