"""Promises of evaluate: metrics by their definitions, one result for any batches and processes, attacks within their distance."""

from __future__ import annotations

import doctest
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from helpers.batches import Open
from helpers.processes import torchrun
from helpers.samples import CLASSES, SIZE
from multimix_pipe import FGSM, PGD, ConfigError, EvalTransform, MultiMix, MultiMixError, TrainTransform, evaluate
from multimix_pipe.training.evaluation import CORRUPTIONS, fit_temperature, metrics, row_statistics
from multimix_pipe.training.evaluation.calibration import reliability
from multimix_pipe.training.evaluation.corruptions import corrupt
from programs.evaluation import net

PLAIN = {"transform": EvalTransform(size=SIZE)}


def random_rows(rows: int = 500, classes: int = 10, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(rows, classes, generator=generator), torch.randint(classes, (rows,), generator=generator)


# metrics


def test_metrics_are_their_definitions() -> None:
    logits, labels = random_rows()
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    y = labels.numpy()
    rows = np.arange(len(y))
    confidence, correct = p.max(1), p.argmax(1) == y
    statistics = row_statistics(logits, labels)
    rank = (p > p[rows, y][:, None]).sum(1)
    brier = ((p - np.eye(10)[y]) ** 2).sum(1)
    by_row = np.stack([rank == 0, rank < 5, -np.log(p[rows, y]), brier, confidence], axis=1)
    np.testing.assert_allclose(statistics.numpy(), by_row, rtol=1e-9, atol=1e-12)
    found = metrics(statistics)
    expected = dict(zip(("top1", "top5", "nll", "brier"), by_row.mean(axis=0), strict=False))
    expected["signed_gap"] = confidence.mean() - correct.mean()
    ece = 0.0
    for low, high in itertools.pairwise(np.linspace(0, 1, 16)):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            ece += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    expected["ece"] = ece
    order = np.argsort(confidence)
    parts = np.array_split(order, 15)  # 500 rows: five bins of 34 and ten of 33
    sizes = sorted(len(part) for part in parts)
    assert sizes[0] >= sizes[-1] - 1
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    assert found["adaptive_ece"] == pytest.approx(
        sum(len(part) / 500 * abs(correct[part].mean() - confidence[part].mean()) for part in parts), abs=5e-3
    )


def test_a_confidence_of_one_is_in_the_last_bin_and_of_a_border_in_the_lower_bin() -> None:
    rows = torch.zeros(4, 5, dtype=torch.float64)
    rows[:, 4] = torch.tensor([1.0, 14 / 15 + 1e-9, 1 / 15, 0.5], dtype=torch.float64)
    count = reliability(rows)["count"]
    assert count == [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2]
    assert reliability(rows)["confidence"][1] is None


def test_equal_confidences_are_binned_alike_in_any_order() -> None:
    rows = torch.zeros(100, 5, dtype=torch.float64)
    rows[:, 4] = 0.7
    rows[:50, 0] = 1
    shuffled = rows[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    assert metrics(rows)["adaptive_ece"] == metrics(shuffled)["adaptive_ece"]


def test_confident_guesses_have_a_gap_and_calibrated_ones_have_none() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40_000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    calibrated = metrics(row_statistics(logits, labels))
    sure = metrics(row_statistics(3 * logits, labels))
    assert calibrated["ece"] < 0.015
    assert abs(calibrated["signed_gap"]) < 0.01
    assert sure["ece"] > 0.2
    assert sure["signed_gap"] > 0.2
    assert sure["top1"] == calibrated["top1"]


@pytest.mark.parametrize("true", [0.2, 1.0, 4.0])
def test_the_temperature_is_found_that_logits_were_multiplied_by(true: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(40_000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    found = fit_temperature(true * logits, labels)
    assert found == pytest.approx(true, rel=0.03)
    nll = [float(F.cross_entropy(true * logits / (found * factor), labels)) for factor in (0.99, 1.0, 1.01)]
    assert nll[1] <= min(nll)


# evaluate


def test_all_figures_of_a_loader_are_those_of_its_samples(opened: Open) -> None:
    model, loader = net().train(), opened(**PLAIN)
    logits, labels = [], []
    with torch.no_grad():
        for images, ids in loader:
            logits.append(model.eval()(images))
            labels.append(ids)
    expected = metrics(row_statistics(torch.cat(logits), torch.cat(labels)))
    report = evaluate(model.train(), opened(**PLAIN))
    assert report["clean"]["raw"] == pytest.approx(expected)
    assert (report["samples"], report["classes"], report["temperature"]) == (100, CLASSES, None)
    assert report["clean"]["scaled"] is None
    assert sum(report["reliability"]["raw"]["count"]) == 100
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_report_does_not_depend_on_the_batch_size_and_is_json(opened: Open) -> None:
    model = net()
    options = {"corruptions": ["gaussian_noise", "jpeg"], "severities": [1, 5], "attacks": [FGSM(), PGD(steps=2)]}
    first, second = (evaluate(model, opened(batch_size=size, **PLAIN), **options) for size in (7, 64))
    assert json.loads(json.dumps(first)) == first
    assert set(first["corruptions"]) == {"gaussian_noise", "jpeg"}
    assert set(first["corruptions"]["jpeg"]) == {"1", "5"}
    assert set(first["attacks"]) == {"fgsm eps=4/255", "pgd-2 eps=4/255"}

    def flat(tree: object, path: str = "") -> dict[str, float]:
        if not isinstance(tree, dict):
            return {path: tree} if isinstance(tree, float) else {}
        return {key: value for name, part in tree.items() for key, value in flat(part, f"{path}/{name}").items()}

    assert flat(first) == pytest.approx(flat(second), abs=1e-5)
    assert len(flat(first)) == 7 * (1 + 4 + 2)


def test_scaled_figures_use_a_temperature_of_held_out_samples(opened: Open) -> None:
    model = net()
    model[4].weight.data *= 100  # far too confident
    report = evaluate(model, opened(**PLAIN), calibration=opened(**PLAIN), corruptions=["contrast"], severities=[3])
    raw, scaled = report["clean"]["raw"], report["clean"]["scaled"]
    assert report["temperature"] > 2
    assert scaled["nll"] < raw["nll"]
    assert scaled["top1"] == raw["top1"]
    assert (
        report["corruptions"]["contrast"]["3"]["scaled"]["ece"] < report["corruptions"]["contrast"]["3"]["raw"]["ece"]
    )
    assert sum(report["reliability"]["scaled"]["count"]) == 100


def test_other_loaders_tensors_are_evaluated_too() -> None:
    images, labels = torch.rand(20, 3, SIZE, SIZE), torch.arange(20) % CLASSES
    report = evaluate(net(), [(images[:13], labels[:13]), (images[13:], labels[13:])])
    assert report["samples"] == 20
    with pytest.raises(ConfigError, match=r"pass the mean= and std= that the loader normalises by"):
        evaluate(net(), [(images, labels)], attacks=[FGSM()])
    options = {"mean": (0.5, 0.5, 0.5), "std": (1.0, 1.0, 1.0)}
    assert evaluate(net(), [(images - 0.5, labels)], attacks=[FGSM(eps=0)], **options)["attacks"]["fgsm eps=0/255"]


def test_uneven_processes_give_everybody_the_figures_of_all_samples(shards: Path, opened: Open) -> None:
    printed = torchrun(3, "-m", "programs.evaluation", shards).stdout
    reports = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    alone = evaluate(net(), opened(**PLAIN), calibration=opened(**PLAIN), corruptions=["shot_noise"], severities=[3])
    assert len(reports) == 3
    for report in reports:
        assert report["samples"] == 100
        assert report["temperature"] == pytest.approx(alone["temperature"], rel=1e-3)
        assert report["clean"]["raw"] == pytest.approx(alone["clean"]["raw"], abs=1e-6)
        noisy = report["corruptions"]["shot_noise"]["3"]["raw"]
        assert noisy == pytest.approx(alone["corruptions"]["shot_noise"]["3"]["raw"], abs=1e-6)


# corruptions


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """Two images (3, 48, 40) with edges and slopes."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 40), indexing="ij")
    first = torch.stack([x, y, ((8 * x).floor() + (8 * y).floor()) % 2])
    return (torch.stack([first, first.flip(0, 2)]) * 0.8 + 0.1).float()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_grow_with_severity_and_are_pixels(name: str, picture: torch.Tensor) -> None:
    distance = []
    for severity in range(1, 6):
        out = corrupt(picture, name, severity, [0, 1])
        assert out.shape == picture.shape
        assert out.dtype == picture.dtype
        assert out.min() >= 0
        assert out.max() <= 1
        torch.testing.assert_close(out * 255, (out * 255).round(), rtol=0, atol=1e-3)
        distance.append(float((out - picture).square().mean()))
    assert distance[0] > 1e-5
    if name == "saturation":  # down to grey, then up
        assert distance[:3] == sorted(distance[:3])
        assert distance[3] < distance[4]
    else:
        assert distance == sorted(distance)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_image_does_not_depend_on_its_batch(name: str, picture: torch.Tensor) -> None:
    both = corrupt(picture, name, 3, [10, 11])
    torch.testing.assert_close(both[1:], corrupt(picture[1:], name, 3, [11]), rtol=0, atol=1e-6)
    if "noise" in name:
        assert not both.equal(corrupt(picture, name, 3, [11, 10]))
        assert not both.equal(corrupt(picture, name, 3, [10, 11], seed=1))


# attacks


NET = net()


def scores(pixels: torch.Tensor) -> torch.Tensor:
    return NET(pixels)


@pytest.fixture(scope="module")
def clean() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3)), torch.arange(6) % CLASSES


@pytest.mark.parametrize("attack", [FGSM(), FGSM(eps=0.3), PGD(), PGD(eps=0.1, step=0.03, random_start=False)])
def test_attacks_stay_within_their_distance_and_raise_the_loss(attack, clean) -> None:
    images, labels = clean
    attacked = attack(scores, images, labels, range(6))
    assert (attacked - images).abs().max() <= attack.eps + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    before, after = (F.cross_entropy(scores(pixels), labels, reduction="none") for pixels in (images, attacked))
    assert (after > before).all()
    assert attack(scores, images[3:], labels[3:], range(3, 6)).equal(attacked[3:])


def test_more_steps_are_a_stronger_attack(clean) -> None:
    images, labels = clean
    losses = [
        F.cross_entropy(scores(attack(scores, images, labels, range(6))), labels).item()
        for attack in (FGSM(eps=0.1), PGD(eps=0.1, step=0.02, steps=20, random_start=False))
    ]
    assert losses[1] > losses[0]


def test_attacks_are_those_of_a_maintained_library(clean) -> None:
    """`make test-outside` installs adversarial-robustness-toolbox; skipped without it."""
    pytest.importorskip("art")
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    images, labels = clean
    classifier = PyTorchClassifier(
        net(), nn.CrossEntropyLoss(), (3, SIZE, SIZE), CLASSES, clip_values=(0, 1), device_type="cpu"
    )
    one_hot = F.one_hot(labels, CLASSES).numpy()
    theirs = FastGradientMethod(classifier, eps=0.05).generate(images.numpy(), one_hot)
    np.testing.assert_allclose(FGSM(eps=0.05)(scores, images, labels, range(6)).numpy(), theirs, atol=1e-6)
    settings = {"eps": 0.05, "eps_step": 0.01, "max_iter": 7, "num_random_init": 0, "verbose": False}
    theirs = ProjectedGradientDescentPyTorch(classifier, **settings).generate(images.numpy(), one_hot)
    own = PGD(eps=0.05, step=0.01, steps=7, random_start=False)(scores, images, labels, range(6))
    np.testing.assert_allclose(own.numpy(), theirs, atol=1e-6)


# published sets


def test_both_layouts_of_published_sets_are_read(opened: Open, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (3 * 5, SIZE, SIZE, 3), dtype=np.uint8)
    labels = np.tile([0, 1, 2], 5)
    folders, arrays = tmp_path / "folders", tmp_path / "arrays"
    arrays.mkdir()
    np.save(arrays / "fog.npy", pixels)
    np.save(arrays / "labels.npy", labels)
    for row in range(15):
        place = folders / "fog" / str(row // 3 + 1) / "abc"[row % 3]
        place.mkdir(parents=True)
        Image.fromarray(pixels[row]).save(place / "0.png")
    reports = [evaluate(net(), opened(**PLAIN), published=folder)["published"] for folder in (folders, arrays)]
    assert list(reports[0]) == ["fog"]
    assert list(reports[0]["fog"]) == list("12345")
    assert reports[0] == reports[1]
    transform = EvalTransform(size=SIZE)
    normal = (
        torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor(transform.mean)[:, None, None]
    ) / torch.tensor(transform.std)[:, None, None]
    second = metrics(row_statistics(net()(normal[3:6]).detach(), torch.tensor([0, 1, 2])))
    assert reports[0]["fog"]["2"]["raw"] == pytest.approx(second, abs=1e-6)
    named = evaluate(net(), opened(**PLAIN), published=folders, classes=["c", "b", "a"])["published"]
    assert named != reports[0]
    with pytest.raises(ConfigError, match="found 'c', which is none"):
        evaluate(net(), opened(**PLAIN), published=folders, classes=["a", "b"])
    for empty, message in ((tmp_path / "nowhere", "must exist"), (tmp_path, "found neither")):
        with pytest.raises(ConfigError, match=message):
            evaluate(net(), opened(**PLAIN), published=empty)


def test_damaged_published_arrays_are_named(opened: Open, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(10, np.int64))
    np.save(tmp_path / "fog.npy", np.zeros((5, 8, 8, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"N = 10 as in labels.npy; found uint8 \(5, 8, 8, 3\)"):
        evaluate(net(), opened(**PLAIN), published=tmp_path)


# what cannot be evaluated


def test_what_cannot_be_evaluated_is_one_clear_line(opened: Open) -> None:
    model = net()
    few = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 3))
    cases = [
        (few, opened(**PLAIN), {}, r"must have the model's classes, labels in \[0, 3\); found"),
        (
            model,
            opened(mix=MultiMix(k=2), last_batch="partial"),
            {},
            r"with transform=EvalTransform\(\); found targets torch.float32",
        ),
        (model, opened(mix=None), {}, 'each sample once; found last_batch="wrap"'),
        (model, opened(last_batch="drop", **PLAIN), {}, 'each sample once; found last_batch="drop"'),
        (model, [], {}, "at least one sample; found none for clean"),
        (opened(**PLAIN), model, {}, "evaluate takes the model first, then the loader; found Loader"),
        (model, opened(**PLAIN), {"calibration": []}, "calibration needs at least one sample"),
        (model, opened(**PLAIN), {"corruptions": ["fog"]}, "corruptions must be among gaussian_noise, .*; found 'fog'"),
        (model, opened(**PLAIN), {"severities": [6]}, r"severities must be an int in \[1, 5\]; found 6"),
        (model, opened(rank=0, world_size=2, **PLAIN), {}, "one of 2 processes' loaders, .* found no initialised"),
        (nn.Conv2d(3, 3, 3), opened(**PLAIN), {}, "model must return logits"),
    ]
    for network, loader, options, message in cases:
        with pytest.raises(ConfigError, match=message):
            evaluate(network, loader, **options)
    with pytest.raises(MultiMixError, match=r"FGSM\.eps must be"):
        FGSM(eps=4)


def test_random_crops_may_be_evaluated(opened: Open) -> None:
    loader = opened(mix=None, transform=TrainTransform(size=SIZE), last_batch="partial", shuffle="none")
    assert evaluate(net(), loader)["samples"] == 100


def test_the_docstrings_examples_run() -> None:
    module = sys.modules["multimix_pipe.training.evaluation.evaluate"]
    assert doctest.testmod(module, extraglobs={"torch": torch, "nn": nn}).failed == 0
