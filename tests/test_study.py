"""pipelines/evidence/study.py: an interrupted study ends with the lines of an uninterrupted one, and its intervals are right."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from helpers.processes import ROOT, environment
from multimix_pipe import MultiMix, MultiMixLoss, mix_batch
from multimix_pipe.shards.pack import pack

STUDY = ROOT / "pipelines" / "evidence" / "study.py"
TWO_ARMS = "no mixing;K=5 stratified"


@pytest.fixture(scope="module")
def study() -> Any:
    """The recipe as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUDY.parent))
        return importlib.import_module("study")


@pytest.fixture(scope="module")
def report(study: Any) -> Any:
    """The module that makes the tables."""
    return sys.modules["study_report"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of three classes that differ in colour: 36 images in train/, 24 in test/."""
    folder = tmp_path_factory.mktemp("study")
    noise = np.random.default_rng(0)
    for split, count in (("train", 36), ("test", 24)):
        for number in range(count):
            place = folder / "images" / split / f"class{number % 3}" / f"{number:03}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            pixels = noise.integers(0, 120, (16, 16, 3))
            pixels[..., number % 3] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(place)
    pack(folder / "images", folder / "shards", progress=False)
    return folder / "shards"


def command(*options: object) -> list[str]:
    return [sys.executable, "-W", "error", str(STUDY), "--size", "quick", *map(str, options)]


def start(*options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*options),
        capture_output=True,
        text=True,
        env=environment(OMP_NUM_THREADS="1"),
        timeout=240,
        check=False,
    )


def lines(out: Path) -> list[dict[str, Any]]:
    """The lines of a study without what differs from one time to the next."""
    found = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "seconds" not in name and name != "date"} for line in found]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two arms."""
    out = tmp_path_factory.mktemp("whole")
    done = start("--data", data, "--out", out, "--arms", TWO_ARMS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "run 8 of 8: " in done.stdout.splitlines()[-1]
    return out


def test_a_killed_study_ends_with_the_lines_of_an_uninterrupted_one(whole: Path, data: Path, tmp_path: Path) -> None:
    options = ("--data", data, "--out", tmp_path, "--arms", TWO_ARMS)
    with subprocess.Popen(
        command(*options), stdout=subprocess.PIPE, text=True, env=environment(OMP_NUM_THREADS="1")
    ) as running:
        assert running.stdout is not None
        for _ in range(3):
            assert running.stdout.readline().startswith("run ")
        running.send_signal(signal.SIGKILL)
    before = (tmp_path / "runs.jsonl").read_bytes()
    assert 4 <= before.count(b"\n") < 9
    (tmp_path / "runs.jsonl").write_bytes(before + b'{"arm": "no mix')  # cut off in the middle of a line
    done = start(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs.jsonl").read_bytes().startswith(before)
    assert lines(tmp_path) == lines(whole)
    assert start(*options).stdout == ""  # nothing is left to do


def test_runs_go_seed_by_seed_and_alpha_is_chosen_before_an_arms_first_one(whole: Path) -> None:
    header, *runs = lines(whole)
    assert header["settings"]["alphas"] == [0.2, 1.0]
    plain, mixed = TWO_ARMS.split(";")
    order = [(run["arm"], run["seed"], run["final"]) for run in runs]
    chosen = [(mixed, 1000, False)] * 2  # with each alpha
    assert order == [
        *((plain, 0, True), *chosen, (mixed, 0, True)),
        *((plain, 1, True), (mixed, 1, True)),
        *((plain, 2, True), (mixed, 2, True)),
    ]
    held_out = {run["alpha"]: run["held_out"]["top1"] for run in runs if not run["final"]}
    best = max(held_out, key=lambda alpha: (held_out[alpha], -alpha))
    assert {run["alpha"] for run in runs if run["final"] and run["arm"] != "no mixing"} == {best}
    assert not any("test" in run for run in runs if not run["final"])


def test_of_equal_alphas_the_smallest_is_chosen(study: Any) -> None:
    def chosen(*found: tuple[float, float]) -> float:
        records = [
            {"arm": "mixup", "final": False, "alpha": alpha, "held_out": {"top1": top1}} for alpha, top1 in found
        ]
        return float(study.chosen_alpha("mixup", records))

    assert chosen((1.0, 0.5), (1.0, 0.7), (0.2, 0.7), (0.2, 0.5)) == 0.2
    assert chosen((0.2, 0.5), (0.2, 0.7), (1.0, 0.7), (1.0, 0.6)) == 1.0


def test_a_study_of_other_settings_is_one_line(whole: Path, data: Path, tmp_path: Path) -> None:
    other = (whole / "runs.jsonl").read_text().replace('"epochs": 1', '"epochs": 7')
    (tmp_path / "runs.jsonl").write_text(other)
    done = start("--data", data, "--out", tmp_path, "--arms", TWO_ARMS)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "study.py: a study goes on with the settings that it was begun with; "
        f"{tmp_path / 'runs.jsonl'} has epochs=7, now it is 1. Pass another --out"
    ]
    assert (tmp_path / "runs.jsonl").read_text() == other


def test_an_arm_that_has_changed_is_refused(whole: Path, tmp_path: Path, study: Any) -> None:
    text = (whole / "runs.jsonl").read_text()
    settings = json.loads(text.splitlines()[0])["settings"]
    (tmp_path / "runs.jsonl").write_text(text.replace('"sampling": "stratified"', '"sampling": "iid"'))
    opened = study.Study(tmp_path, settings)
    with pytest.raises(SystemExit, match=r"the arm 'K=5 stratified' as .*'iid'.*now it is .*'stratified'"):
        opened.check_arms(study.ARMS)


def test_two_processes_do_not_write_to_one_study(tmp_path: Path, study: Any) -> None:
    with closing(study.Study(tmp_path, {"epochs": 1})), pytest.raises(SystemExit, match="written by another process"):
        study.Study(tmp_path, {"epochs": 1})


def test_an_unknown_arm_and_too_few_images_are_one_line(data: Path, study: Any) -> None:
    with pytest.raises(SystemExit) as unknown:
        study.chosen_arms("mixup; manifold")
    assert str(unknown.value) == f"study.py: --arms must be among {'; '.join(study.ARMS)}; found 'manifold'"
    small = study.SIZES["small"]
    with pytest.raises(SystemExit, match=rf"at least {small.train} \+ {small.held_out} images.*; found 36 in "):
        study.Data(data, small)


def test_a_run_is_not_written_to_a_file_that_was_replaced(tmp_path: Path, study: Any) -> None:
    with closing(study.Study(tmp_path, {"epochs": 1})) as opened:
        text = opened.path.read_text()
        opened.path.unlink()  # as a version control system does
        opened.path.write_text(text)
        with pytest.raises(SystemExit, match=r"runs.jsonl was replaced while the study ran; start it again"):
            opened.add({"arm": "mixup"})


def test_arms_of_equal_updates_make_equal_updates(study: Any) -> None:
    for size in study.SIZES.values():
        assert size.train % (size.batch_size * study.K) == 0


@pytest.mark.parametrize("name", ["K=5 crops each", "no mixing, 5 crops"])
def test_an_arm_with_five_crops_decodes_each_image_once(study: Any, data: Path, name: str) -> None:
    size, arm = study.SIZES["quick"], study.ARMS[name]
    alpha = 1.0 if arm.has_alpha else None
    _, count = sys.modules["study_run"].train(size, arm, study.members(arm), alpha, 0, study.Data(data, size))
    assert count == {"updates": 5, "rows": 100, "decoded": 20}


def small_study(folder: Path) -> list[dict[str, Any]]:
    """Write runs.jsonl of two arms whose seeds differ by much more than the arms do: mixup is 2 points better at each seed."""
    scores = [0.50, 0.61, 0.43, 0.70, 0.55, 0.39]
    records = []
    for arm, more, count in (("no mixing", 0.0, 6), ("mixup", 0.02, 5)):
        for seed in range(count):
            test = {"top1": scores[seed] + more, "nll": 1.0, "ece": 0.1 - more}
            records.append(
                {
                    "arm": arm, "seed": seed, "alpha": None if arm == "no mixing" else 0.2, "final": True, "updates": 4,
                    "rows": 80, "decoded": 40, "cpu_seconds": 2.0, "test": test, "scaled": {"nll": 0.9, "ece": 0.01},
                    "corrupted": {"jpeg": 0.3, "contrast": 0.5}, "fgsm": 0.1,
                }
            )  # fmt: skip
    records.append({"arm": "mixup", "seed": 1000, "alpha": 0.2, "final": False, "held_out": {"top1": 0.5}})
    text = [json.dumps({"settings": {}, "hash": ""}), *map(json.dumps, records)]
    (folder / "runs.jsonl").write_text("\n".join(text) + "\n")
    return records


def test_a_report_needs_nothing_but_the_runs(tmp_path: Path, report: Any) -> None:
    pytest.importorskip("matplotlib")
    small_study(tmp_path)
    done = start("--report", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "table.md").read_text()
    assert "12 of " in table
    assert "runs; interim." in table
    assert "| mixup | 5 of 3 | 0.2 | 4 | 80 | 40 | 2 |" in table
    assert "| no mixing | 6 | 53.00 | 1.000 | 10.00 | 0.900 | 1.00 | 40.00 | 10.00 |" in table
    # paired: the seeds' spread of 11 points is not in the interval, and the seed that mixup lacks is not in the mean
    assert "| mixup | 5 | **+2.00 [+2.00, +2.00]** | +0.000 [+0.000, +0.000] | **-2.00 [-2.00, -2.00]** |" in table
    assert "| mixup | 50.00 (1) |" in table
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 1000


def test_a_report_of_no_runs_is_one_line(tmp_path: Path, report: Any) -> None:
    with pytest.raises(
        SystemExit, match=r"^study.py: a report needs finished runs; found none in .*runs.jsonl"
    ) as none:
        report.write_report(tmp_path, {}, 1)
    assert "\n" not in str(none.value)


def test_the_bootstrap_interval_is_that_of_all_resamples_at_the_expanded_level(report: Any) -> None:
    from scipy import stats

    found = np.array([-1.0, 0.5, 2.0, 3.0, 7.0])
    every = np.array([np.mean(found[list(places)]) for places in product(range(5), repeat=5)])
    tail = stats.norm.cdf(np.sqrt(5 / 4) * stats.t.ppf(0.025, 4))
    assert tail == pytest.approx(0.00095, abs=0.00005)
    expected = np.quantile(every, [tail, 1 - tail])
    assert report.bootstrap_interval(found) == pytest.approx(expected, abs=0.5)
    assert report.bootstrap_interval(found[:4]) is None


def test_the_bootstrap_interval_holds_the_mean_about_as_often_as_it_says(
    report: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESAMPLES", 1000)
    draws = np.random.default_rng(1).normal(3.0, 2.0, (400, 10))
    held = np.mean([low <= 3.0 <= high for low, high in map(report.bootstrap_interval, draws)])
    assert 0.92 <= held <= 0.98  # the plain percentile interval: 0.90


def gradients(images: Tensor, targets: Tensor) -> list[Tensor]:
    """The gradients of a network with batch normalisation under the mean loss, in float64."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    model = nn.Sequential(*layers).double()
    loss: Tensor = MultiMixLoss()(model(images.double()), targets.double())
    loss.backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_under_a_mean_loss_the_order_within_k_changes_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(6, 3, 8, 8, generator=generator), torch.arange(6) % 3
    batch = mix_batch(images, labels, MultiMix(k=5), num_classes=3, step=0)
    order = torch.cat([5 * pair + torch.randperm(5, generator=generator) for pair in range(6)])
    assert not torch.equal(order, torch.arange(30))
    ordered, shuffled = (
        gradients(batch.images, batch.targets),
        gradients(batch.images[order], batch.targets[order]),
    )
    assert len(ordered) == 6
    for one, other in zip(ordered, shuffled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    other_targets = gradients(batch.images[order], batch.targets)  # the comparison can fail
    assert any((one - other).abs().max() > 1e-4 for one, other in zip(ordered, other_targets, strict=True))


@pytest.mark.parametrize(("name", "rows"), [("identical", 5), ("clean", 2)])
def test_members_that_multimix_cannot_spell_are_the_pairs_own_mixes(study: Any, name: str, rows: int) -> None:
    images, labels = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    mixed = mix_batch(images, labels, MultiMix(k=1), num_classes=3, step=0)

    class Planned:
        mix = mixed.plan

    class Unmixed:
        plan = Planned

    Unmixed.images, Unmixed.labels = images, labels  # type: ignore[attr-defined]
    arm = study.Arm({"k": 1}, members=name)
    assert study.members(arm) == rows
    found, targets = sys.modules["study_run"].rows_of(arm, Unmixed, rows, 3)
    found, targets = found.view(4, rows, 3, 8, 8), targets.view(4, rows, 3)
    torch.testing.assert_close(found[:, -1], mixed.images, rtol=0, atol=0)
    torch.testing.assert_close(targets[:, -1], mixed.targets, rtol=0, atol=0)
    torch.testing.assert_close(found[:, 0], mixed.images if name == "identical" else images, rtol=0, atol=0)


def test_with_too_little_time_no_run_is_begun(data: Path, tmp_path: Path) -> None:
    done = start("--data", data, "--out", tmp_path, "--arms", TWO_ARMS, "--minutes", 1e-9)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "stopped with 8 runs left: the next one would not end in time"
