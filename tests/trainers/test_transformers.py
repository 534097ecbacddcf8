"""The Hugging Face Trainer: its checkpoints resume with exactly the batches that remained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments
from transformers_classifier import FIXED, LoaderTrainer

from helpers.processes import ROOT, environment
from multimix_pipe import EvalTransform, MultiMix, TrainTransform, open_loader

STEPS, EPOCHS = 5, 3


class Run:
    """A training run, its batches' targets and its result."""

    def __init__(self, data: Path, out: Path, resume: Path | None = None, save_steps: int = 3) -> None:
        torch.manual_seed(0)
        options = {"batch_size": 8, "num_classes": 3, "device": "cpu", "num_threads": 1}
        train = open_loader(data / "train", mix=MultiMix(k=2), transform=TrainTransform(size=16), **options)
        val = open_loader(data / "val", transform=EvalTransform(size=16), **options)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3))
        self.seen: list[float] = []
        model.register_forward_pre_hook(self._note)
        arguments = TrainingArguments(
            str(out), num_train_epochs=EPOCHS, use_cpu=True, save_steps=save_steps, disable_tqdm=True, **FIXED
        )
        trainer = LoaderTrainer(model=model, args=arguments, train=train, val=val)
        with train, val:
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
            self.steps = trainer.state.global_step
            self.model = model.eval()
            count = len(self.seen)
            self.labels = trainer.evaluation_loop(trainer.val_batches, "evaluation").label_ids
            del self.seen[count:]

    def _note(self, model: torch.nn.Module, images: tuple[torch.Tensor]) -> None:
        self.seen.append(images[0].double().sum().item())


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run without an interruption."""
    run = Run(data, tmp_path_factory.mktemp("whole"))
    assert len(set(run.seen)) == STEPS * EPOCHS
    return run


@pytest.mark.parametrize("step", [3, 5, 9, 10])
def test_a_checkpoint_resumes_exactly(step: int, whole: Run, data: Path, tmp_path: Path) -> None:
    Run(data, tmp_path / "first", save_steps=step)
    resumed = Run(data, tmp_path / "second", tmp_path / "first" / f"checkpoint-{step}", save_steps=step)
    assert resumed.steps == STEPS * EPOCHS
    assert resumed.seen == whole.seen[step:]
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


def test_evaluation_counts_each_sample_once(whole: Run) -> None:
    assert len(whole.labels) == 21


def test_the_recipe_runs(data: Path, tmp_path: Path) -> None:
    recipe = [sys.executable, str(ROOT / "pipelines" / "transformers_classifier.py"), str(data / "train"), "--cpu"]
    command = [*recipe, "--val", str(data / "val"), "--num-classes", "3", "--out", str(tmp_path), "--save-steps", "3"]
    for more in ([], ["--resume", str(tmp_path / "checkpoint-3")]):
        done = subprocess.run([*command, *more], env=environment(), capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "accuracy 0." in done.stdout or "accuracy 1." in done.stdout
