"""Promises of the demo: it trains, it compares like with like, it is the same each time, and it says what came out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from multimix_pipe import MultiMix
from multimix_pipe.cli import main
from multimix_pipe.cli.demo.data import HELD_OUT, prepare_data
from multimix_pipe.cli.demo.net import small_net
from multimix_pipe.cli.demo.shapes import OUTLINES, draw_shape
from multimix_pipe.cli.demo.training import (
    BATCH_SIZE,
    Recipe,
    calibration_error,
    one_cycle,
    open_evaluation,
    open_training,
    train,
)
from multimix_pipe.errors import ConfigError


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small gain nothing from more, and lose much where other programs want the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def colour_folder(folder: Path, per_class: int = 24) -> Path:
    """Three classes that differ by colour: learnt within a few steps."""
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(0, 90, (20, 20, 3))
            pixels[..., channel] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_the_demo_learns_and_writes_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = colour_folder(tmp_path / "my images"), tmp_path / "out"
    argv = ["demo", "--data", str(images), "--out", str(out), "--epochs", "8", "--size", "16", "--backend", "torch"]
    assert main(argv) == 0
    result = json.loads((out / "results.json").read_text())
    assert result["command"].startswith("multimix-pipe demo --data '")
    assert result["versions"]["torch"] == torch.__version__
    assert result["machine"]["cores"] >= 1
    assert result["data"] == {"what": str(images), "train": 65, "test": 7, "classes": 3}
    mixed, plain = result["runs"]
    assert mixed["steps"] == plain["steps"] == round(8 * 65 / 32)
    assert mixed["rows"] == 5 * plain["rows"] == 5 * 32 * plain["steps"]
    for run in (mixed, plain):
        assert run["history"][-1]["step"] == run["steps"]
        assert run["history"][-1]["train_loss"] < run["history"][0]["train_loss"]
    assert plain["history"][-1]["accuracy"] > 0.8
    for name in ("preview.png", "curve.png"):
        pixels = np.asarray(Image.open(out / name).convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    printed = capsys.readouterr().out
    assert "65 training images, 7 test images, 3 classes" in printed
    assert "takes about K times as long" in printed
    assert f"--data '{images}'" in printed


def test_the_same_epochs_give_the_same_run_and_measuring_changes_nothing(tmp_path: Path) -> None:
    data = prepare_data(str(colour_folder(tmp_path / "images")), None, tmp_path, (0, 0))
    recipe = Recipe(MultiMix(k=3), size=16, seed=1, backend="torch")
    before = torch.random.get_rng_state()
    with open_evaluation(recipe, data) as test:
        runs = [train(recipe, data, 3, True, test) for _ in range(2)]
    assert runs[0].history == runs[1].history
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_budget_of_minutes_becomes_a_number_of_epochs_that_repeats_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(colour_folder(tmp_path / "images"))
    argv = ["demo", "--data", data, "--size", "16", "--backend", "torch", "--out"]
    assert main([*argv, str(tmp_path / "a"), "--minutes", "0.01"]) == 0
    budget = json.loads((tmp_path / "a" / "results.json").read_text())
    epochs = budget["settings"]["epochs"]
    assert f"to repeat this run, use --epochs {epochs:g}" in capsys.readouterr().out
    assert main([*argv, str(tmp_path / "b"), "--epochs", f"{epochs:g}"]) == 0
    again = json.loads((tmp_path / "b" / "results.json").read_text())
    assert [run["history"] for run in again["runs"]] == [run["history"] for run in budget["runs"]]


def test_both_runs_see_the_same_images_in_the_same_steps_and_never_what_is_held_out(tmp_path: Path) -> None:
    data = prepare_data(str(colour_folder(tmp_path / "images")), None, tmp_path, (0, 0))
    recipe = Recipe(MultiMix(k=5), size=16, seed=0, backend="torch")
    assert data.held_out is not None
    held_out = {name.split(" : ")[1] for name in data.held_out}
    assert len(held_out) == round(HELD_OUT * 72)
    steps = []
    for mixed in (True, False):
        with open_training(recipe, data, mixed) as loader:
            batches = list(loader)
        assert {len(batch.images) for batch in batches} == {BATCH_SIZE * (5 if mixed else 1)}
        seen = {key for batch in batches for key in batch.keys}
        steps.append([(batch.keys, batch.plan.window.tolist(), batch.plan.flip.tolist()) for batch in batches])
        assert seen | held_out == set(loader.index.keys(range(72)))
        assert not seen & held_out
    assert steps[0] == steps[1]
    with open_evaluation(recipe, data) as test:
        assert {key for batch in test for key in batch.keys} == held_out


def test_shards_with_splits_and_shards_with_test_data_are_taken_as_they_are(tmp_path: Path) -> None:
    made = prepare_data(None, None, tmp_path, (2, 1))
    assert (made.train_count, made.test_count, made.classes) == (20, 10, list(OUTLINES))
    shards = tmp_path / "shapes" / "shards"
    split = prepare_data(str(shards), None, tmp_path / "unused", (0, 0))
    assert (split.train, split.test, split.held_out) == (made.train, made.test, None)
    named = prepare_data(str(shards / "train" / "*.tar"), str(shards / "test"), tmp_path / "unused", (0, 0))
    assert (named.train_count, named.test_count) == (20, 10)
    alone = prepare_data(str(shards / "train"), None, tmp_path / "unused", (0, 0))
    assert (alone.train_count, alone.test_count) == (18, 2)
    assert not (tmp_path / "unused").exists()
    odd = tmp_path / "odd"
    (odd / "test").mkdir(parents=True)
    (odd / "test" / "test-000000.tar").write_bytes(b"")
    with pytest.raises(ConfigError, match="named train and test; found test"):
        prepare_data(str(odd), None, tmp_path / "unused", (0, 0))


def test_a_shape_is_a_function_of_its_seed() -> None:
    images = [draw_shape(name, np.random.default_rng(seed)) for name in OUTLINES for seed in (0, 1, 0)]
    assert images[0::3] == images[2::3]
    assert len(set(images)) == 2 * len(OUTLINES)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    confidence = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.5, 0.5, 1.0])
    right = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    wanted = (abs(4 + 0 - (4 * 0.95 + 1.0) + 0) + 0.0) / 7  # 0.95 and 1.0 share the last bin; 0.5 is calibrated
    assert calibration_error(confidence, right) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 5, 7, 100])
def test_the_learning_rate_rises_to_one_and_falls(steps: int) -> None:
    rates = [one_cycle(steps)(step) for step in range(steps)]
    top = int(np.argmax(rates))
    assert rates[top] == pytest.approx(1.0)
    assert min(rates) > 0
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize("size", [16, 32, 48])
def test_the_network_takes_any_size(size: int) -> None:
    assert small_net(7)(torch.rand(2, 3, size, size + 8)).shape == (2, 7)
