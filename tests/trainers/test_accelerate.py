"""Accelerate: its checkpoints hold the loader's position, and uneven last batches count once, on two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from helpers.processes import ROOT, environment


def run(data: Path, out: Path, *options: str) -> tuple[str, dict[str, torch.Tensor]]:
    """Return what the recipe prints on two processes, and the weights of its checkpoint."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    recipe = [str(ROOT / "pipelines" / "accelerate_classifier.py"), str(data / "train"), "--val", str(data / "val")]
    command = [*launcher, *recipe, "--num-classes", "3", "--cpu", "--batch-size", "4", "--out", str(out), *options]
    variables = environment(OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, load_file(out / "checkpoint" / "model.safetensors")


def test_an_interrupted_run_ends_as_an_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    printed, whole = run(data, tmp_path / "whole")
    assert printed.count("of 21 samples") == 2
    run(data, tmp_path / "parts", "--max-steps", "3")
    _, parts = run(data, tmp_path / "parts", "--resume", str(tmp_path / "parts" / "checkpoint"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
