"""Promises of pipelines/evidence: the estimators are right where the truth is known, and a study continues or says why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import time_to_accuracy
import two_moons
from evidence import interval, read_images, resample
from gradient_crops import random_crops
from gradient_variance import Arm, Parts, Spread, arms, batches, gradient, network
from multimix_pipe import MultiMix
from multimix_pipe.shards.pack import pack

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "pipelines" / "evidence"
Float = NDArray[np.float64]
PAIRS = 8


def gaussian_sets(rng: np.random.Generator, sets: int, draws: int) -> list[Float]:
    """Gradients of two parameters: mean (2, 1), variance 4 + 1 between sets and 0.25 + 0.75 between the draws of a set."""
    of_sets = np.array([2.0, 1.0]) + rng.normal(size=(sets, 1, 2)) * [2, 1]
    return list(of_sets + rng.normal(size=(sets, draws, 2)) * np.sqrt([0.25, 0.75]))


def test_the_estimates_are_unbiased_in_small_samples() -> None:
    rng, one = np.random.default_rng(0), np.ones((1, 4))
    found = [Spread.of(gaussian_sets(rng, 4, 2), one) for _ in range(4000)]
    for name, truth in {"total": 6.0, "weights": 1.0, "pairs": 5.0, "mean_square": 5.0}.items():
        values = np.array([getattr(spread, name)[0] for spread in found])
        assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(len(values)), name


def test_the_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    counts = resample(60, resamples=300)
    found = [interval(Spread.of(gaussian_sets(rng, 60, 2), counts).total) for _ in range(200)]
    assert 0.87 < np.mean([low <= 6 <= high for _, low, high in found]) < 0.99


def row_gradients(x: Float, partner: Float, u: Float) -> Float:
    """Return gradients (..., 4) of rows with images x and x' ~ N(0, 1) and weights u ~ U(0, 1), whose parts are known.

    s_pair = 2 + 1, s_image = 1, s_lam = 9/12, s_both = 2/12, and s_cycle = -2/12: the last column of a cycle sums to zero.
    """
    v = u - 0.5
    x, partner, v = np.broadcast_arrays(x, partner, v)
    return np.stack([x + partner, 3 * v, x * partner, (x - partner) * v], -1)


def simulated(arm: Arm, sets: int, rng: np.random.Generator) -> Iterator[Float]:
    """Yield the gradients (draws, 4) of minibatches of such rows, made as `arm` says."""
    made, _, times = arm.made.partition(" ")
    count = PAIRS * int(times or 1)
    assert arm.mix is not None
    for _ in range(sets):
        x = rng.normal(size=count)
        others = rng.normal(size=(count, 1)) if made == "disjoint" else np.roll(x, 1)[:, None]
        if arm.mix.partners == "each":
            others = np.stack([np.roll(x, 1 + k) for k in range(arm.k)], 1)
        shape = (arm.draws, 1 if arm.mix.lam_per == "batch" else count, arm.k)
        yield row_gradients(x[:, None], others, rng.uniform(size=shape)).mean((1, 2))


def test_the_parts_add_up_and_predict_what_is_not_among_them() -> None:
    rng, sets = np.random.default_rng(0), 3000
    counts = resample(sets, resamples=3)
    every = [arm for arm in arms(1.0, 4, (1, 5)) if arm.mix is not None and arm.mix.method == "mixup"]
    spreads = {arm.name: Spread.of(simulated(arm, sets, rng), counts) for arm in every if "identical" not in arm.made}
    parts = Parts.of(spreads, PAIRS)
    whole = (parts.pair + 2 * parts.image + parts.lam + parts.both) / PAIRS
    assert np.allclose(whole, spreads["K=1"].total, rtol=1e-9)
    truth = {"pair": 3, "image": 1, "lam": 9 / 12, "both": 2 / 12, "cycle": -2 / 12}
    assert {name: float(getattr(parts, name)[0]) for name in truth} == pytest.approx(truth, abs=0.2)
    predicted = {arm.name: parts.predict(arm, PAIRS) for arm in every}
    known = {name: value[0] for name, value in predicted.items() if value is not None and name in spreads}
    assert {"K=5 iid", "K=5 iid per batch", "K=5 partners each", "K=5 fresh", "K=1 disjoint per batch"} <= known.keys()
    assert known == pytest.approx({name: spreads[name].total[0] for name in known}, rel=0.08)
    assert predicted["K=5 stratified"] is None


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    found, labels, classes = read_images(None, 16, 100)
    assert (found.shape, len(classes)) == ((100, 3, 16, 16), 10)
    return found, labels


def drawn(
    name: str, images: tuple[torch.Tensor, torch.Tensor], number: int = 0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    (arm,) = [arm for arm in arms(1.0, 2) if arm.name == name]
    return list(batches(arm, *images, 10, PAIRS, number))


def test_the_draws_of_a_set_share_their_images_and_partners(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    for name in ("K=5 iid", "K=5 partners each", "cutmix K=1", "K=1 disjoint"):
        first, second = (targets > 0 for _, targets in drawn(name, images))
        assert not torch.equal(*(targets for _, targets in drawn(name, images)))
        # a weight that is rounded to 0 or 1, as by an empty box, hides a class: almost all rows show both
        assert (first == second).all(1).float().mean() > 0.8
    again, other = drawn("K=5 iid", images)[0][0], drawn("K=5 iid", images, 1)[0][0]
    assert torch.equal(again, drawn("K=5 iid", images)[0][0])
    assert not torch.equal(again, other)


def test_arms_differ_in_what_they_say_alone(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.manual_seed(0)
    net = network(10, norm=False)
    one, identical = (gradient(net, *drawn(name, images)[0]) for name in ("K=1", "K=5 identical"))
    torch.testing.assert_close(identical, one, rtol=1e-3, atol=1e-5)
    rows = {name: len(drawn(name, images)[0][0]) for name in ("no mixing", "K=1 disjoint", "K=5 fresh", "K=10 iid")}
    assert rows == {"no mixing": 8, "K=1 disjoint": 8, "K=5 fresh": 40, "K=10 iid": 80}
    # the first pairs of the fresh arm hold the images of the others
    (plain, _), (fresh, _) = drawn("no mixing", images)[0], drawn("K=5 fresh", images)[0]
    assert len(fresh) == 5 * len(plain)


def test_the_variance_of_a_mean_of_draws_is_predicted() -> None:
    rng, one = np.random.default_rng(0), np.ones((1, 4000))
    sets = gaussian_sets(rng, 4000, 6)
    means = [drawn.reshape(2, 3, 2).mean(1) for drawn in sets]
    assert Spread.of(sets, one).averaged(3) == pytest.approx(Spread.of(means, one).total, rel=0.03)
    assert Spread.of(means, one).total == pytest.approx([5 + 1 / 3], rel=0.06)


def test_crops_are_those_of_their_image_and_differ_between_members() -> None:
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(3, 3, 1, 1, generator=generator)
    ramp = torch.linspace(0, 1, 32).expand(3, 3, 32, 32)
    flat = random_crops(colours.expand(3, 3, 32, 32).contiguous(), 4, 16, [0])
    torch.testing.assert_close(flat, colours.repeat_interleave(4, 0).expand(12, 3, 16, 16))
    crops = random_crops(ramp.contiguous(), 4, 16, [0])
    assert torch.equal(crops, random_crops(ramp.contiguous(), 4, 16, [0]))
    assert len(torch.unique(crops.flatten(1), dim=0)) == 12
    steps = crops[..., 0, 1:] - crops[..., 0, :-1]
    falling = (steps < 0).all((1, 2))  # mirrored
    assert (falling | (steps > 0).all((1, 2))).all()
    assert 0 < falling.sum() < 12


@pytest.mark.parametrize("each", [False, True])
def test_the_draws_of_a_set_have_new_crops_only_with_another_crop_each(each: bool) -> None:
    images, labels = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 10
    arm = Arm("", MultiMix(k=2, prob=0.0, crops="each" if each else "same"))
    first, second = (rows for rows, _ in batches(arm, images, labels, 10, PAIRS, 0, 16))
    assert first.shape == (2 * PAIRS, 3, 16, 16)
    assert torch.equal(first, second) != each
    assert torch.equal(first[::2], first[1::2]) != each


def test_shards_are_read_whole_and_in_a_fixed_order(tmp_path: Path) -> None:
    for number in range(12):
        place = tmp_path / "images" / f"class{number % 3}" / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (20 * number, 0, 0)).save(place)
    pack(tmp_path / "images", tmp_path / "shards", progress=False)
    found, labels, classes = read_images(str(tmp_path / "shards"), 16, 100)
    red = ((found[:, 0].mean((1, 2)) * 0.229 + 0.485) * 255 / 20).round().long()
    assert sorted(red.tolist()) == list(range(12))
    assert torch.equal(red % 3, labels)
    assert classes == ["class0", "class1", "class2"]
    assert torch.equal(read_images(str(tmp_path / "shards"), 16, 5)[0], found[:5])


def test_seeds_are_paired_and_the_figures_are_means() -> None:
    points, held_out, test = two_moons.samples("spirals", 3, 50)
    assert [len(part[0]) for part in (points, held_out, test)] == [300, 300, 50]
    assert torch.equal(points[0], two_moons.samples("spirals", 3, 70)[0][0])
    scores = {"top1": 0.5, "nll": 1.0, "ece": 0.1, "nll_scaled": 1.0, "ece_scaled": 0.1}
    seeds = [{"no mixing": scores | {"top1": top1}, "mixup": scores | {"top1": top1 + 0.01}} for top1 in (0.5, 0.6)]
    found = two_moons.summary(seeds)
    assert found["mixup"]["top1"]["mean"][0] == pytest.approx(0.56)
    assert found["mixup"]["top1"]["minus no mixing"] == pytest.approx(
        [0.01] * 3
    )  # the seeds differ, the difference does not


def test_a_target_is_reached_between_two_evaluations() -> None:
    columns = [name for name in time_to_accuracy.COLUMNS if name != "accuracy"]
    curve = {name: [100.0, 200.0, 300.0, 400.0] for name in columns} | {"accuracy": [0.1, 0.3, 0.2, 0.5]}
    found = time_to_accuracy.reach(curve, 0.25)
    assert found == pytest.approx({name: 175 for name in columns} | {"accuracy": 0.25})
    assert time_to_accuracy.reach(curve, 0.05) == pytest.approx({name: 50 for name in columns} | {"accuracy": 0.05})
    assert time_to_accuracy.reach(curve, 0.51) is None


def test_photos_show_the_images_and_have_grain() -> None:
    pixels = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    plain, grainy = (
        np.asarray(time_to_accuracy.enlarge(pixels, 64, grain, np.random.default_rng(0)), dtype=float)
        for grain in (0, 8)
    )
    assert plain.shape == (64, 64, 3)
    blocks = plain.reshape(4, 16, 4, 16, 3)[:, 6:10, :, 6:10].mean((1, 3)) / 255  # around the centre of each pixel
    np.testing.assert_allclose(blocks, pixels.permute(1, 2, 0), atol=0.06)
    assert 6 < (grainy - plain).std() < 8.5
    assert abs((grainy - plain).mean()) < 1


def test_make_evidence_runs_every_study() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\nevidence:")[2].partition("\nformat:")[0]
    scripts = [path.name for path in STUDIES.glob("*.py") if "def main(" in path.read_text()]
    assert {"study.py", "time_to_accuracy.py"} <= set(scripts)
    assert [name for name in scripts if f"/{name} " not in recipe] == []


def run(study: object, *options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", STUDIES / str(study), *map(str, options)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize(
    ("study", "made", "lost", "alpha"),
    [
        (["gradient_variance.py"], "gradient_variance", "BatchNorm, end", 1.0),
        (["gradient_variance.py", "--crops"], "gradient_variance", "BatchNorm, end", 1.0),
        (["time_to_accuracy.py"], "time_to_accuracy", "K=5 crops each, seed 0", 0.2),
        (["two_moons.py"], "moons_alpha1", "seed 1", 1.0),
    ],
)
def test_a_study_runs_continues_and_refuses_results_of_other_settings(
    study: list[str], made: str, lost: str, alpha: float, tmp_path: Path
) -> None:
    options = [*study, "--quick", "--out", tmp_path]
    done = run(*options)
    assert done.returncode == 0, done.stderr
    path = tmp_path / f"{made}.json"
    whole = json.loads(path.read_text())
    assert {"command", "commit", "machine", "versions", "settings", "parts"} == whole.keys()
    cut = {**whole, "parts": {name: part for name, part in whole["parts"].items() if name not in (lost, "summary")}}
    path.write_text(json.dumps(cut))
    assert run(*options).returncode == 0
    parts = json.loads(path.read_text())["parts"]
    for both in (whole["parts"], parts):
        for measured in ("seconds", "loader_cpu", "training_cpu"):
            both[lost].pop(measured, None)
    assert parts[lost] == whole["parts"][lost]
    path.write_text(json.dumps({**whole, "settings": {**whole["settings"], "alpha": 0.3}}))
    refused = run(*options)
    assert refused.returncode == 1
    assert refused.stderr.strip() == (
        f"{path}: must hold results of the same settings; found alpha 0.3 in the file, {alpha} now: choose another --out"
    )
    path.write_text("{}")
    broken = run(*options)
    assert broken.returncode == 1
    assert broken.stderr.startswith(f"{path}: must be a results file of this script; found none")
    assert len(broken.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("study", "options", "line"),
    [
        ("gradient_variance.py", ["--pairs", 1], "--pairs, --sets, --draws and --updates must be at least 2"),
        ("gradient_variance.py", ["nowhere"], "nowhere"),
        ("gradient_variance.py", ["--alpha", 0], "alpha"),
        (
            "gradient_variance.py",
            ["--ks", 1, 3],
            "--ks must be numbers from 1 on, with 1, 2 and 5 among them; found 1 3",
        ),
        ("time_to_accuracy.py", ["--images", 100], "--images must be a multiple of 64"),
        ("time_to_accuracy.py", ["--alpha", 0], "alpha"),
        ("two_moons.py", ["--alpha", 0], "alpha"),
        ("two_moons.py", ["--seeds", 1], "--seeds must be at least 2"),
    ],
)
def test_a_wrong_argument_gets_one_line(study: str, options: list[object], line: str, tmp_path: Path) -> None:
    done = run(study, *options, "--out", tmp_path)
    assert done.returncode != 0
    assert line in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
