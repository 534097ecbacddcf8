"""The recipes of pipelines/ run as a user runs them; what is interrupted ends as if it had not been."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.backends import needs_dali
from helpers.images import plain_image
from helpers.processes import environment
from helpers.tars import write_tar
from multimix_pipe.shards.pack import pack

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "pipelines"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images of 3 classes that differ in colour, in 3 shards."""
    folder = tmp_path_factory.mktemp("recipes")
    noise = np.random.default_rng(0)
    for number in range(48):
        place = folder / "images" / f"class{number % 3}" / f"{number:03}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 80, (40, 40, 3))
        pixels[..., number % 3] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(place)
    pack(folder / "images", folder / "shards", samples_per_shard=16, progress=False)
    return folder / "shards"


def run(*command: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env=environment, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(shards: Path, out: Path, *options: object) -> dict[str, torch.Tensor]:
    fixed = ["--val", shards, "--num-classes", 3, "--size", 32, "--batch-size", 4, "--k", 2, "--epochs", 2]
    recipe = RECIPES / "train_classifier.py"
    run("-W", "error", recipe, shards, *fixed, "--lr", 0.02, "--device", "cpu", "--out", out, *options)
    weights: dict[str, torch.Tensor] = torch.load(out / "checkpoint.pt", weights_only=True)["model"]
    return weights


def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(shards: Path, tmp_path: Path) -> None:
    whole = train(shards, tmp_path / "whole")
    train(shards, tmp_path / "parts", "--max-steps", 7)
    parts = train(shards, tmp_path / "parts", "--resume", tmp_path / "parts" / "checkpoint.pt")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert (tmp_path / "whole" / "log.jsonl").read_text() == (tmp_path / "parts" / "log.jsonl").read_text()


def test_torchrun_trains_on_two_processes(shards: Path, tmp_path: Path) -> None:
    recipe = ["pipelines/train_classifier.py", shards, "--num-classes", 3, "--size", 32, "--batch-size", 4, "--k", 2]
    options = ["--val", shards, "--epochs", 2, "--lr", 0.02, "--device", "cpu", "--out", tmp_path]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    printed = run(*launcher, ROOT / recipe[0], *recipe[1:], *options)
    assert "epoch 1 done, validation accuracy" in printed
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["loader"]["epoch"] == 2


def test_the_stage_runs_in_a_dali_pipeline_of_ones_own(shards: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    recipe = RECIPES / "own_dali_pipeline.py"
    printed = run(recipe, *sorted(shards.glob("*.tar")), "--num-classes", 3, "--batch-size", 8, "--size", 32)
    assert printed.splitlines()[-1].startswith("step 5: (40, 3, 32, 32) images, loss ")


@needs_dali
def test_an_own_dali_pipeline_says_how_to_find_the_image_that_cannot_be_decoded(tmp_path: Path) -> None:
    members = [(f"{i}.{kind}", data) for i in range(9) for kind, data in (("jpg", plain_image()), ("cls", b"0"))]
    members[8] = ("4.jpg", plain_image()[:60] + bytes(200))
    shard = write_tar(tmp_path / "x.tar", members)
    command = [sys.executable, RECIPES / "own_dali_pipeline.py", shard, "--num-classes", "1", "--batch-size", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment())
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("an image cannot be decoded, and DALI does not say which one: ")
