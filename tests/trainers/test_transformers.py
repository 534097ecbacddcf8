"""The Hugging Face Trainer: its checkpoints resume with exactly the batches that remained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers_classifier import Classifier, LoaderTrainer, accuracy, settings

from multimix_pipe import EvalTransform, MultiMix, TrainTransform, open_loader

STEPS, EPOCHS = 5, 3


class Run:
    """A training run, its batches' targets and its result."""

    def __init__(self, data: Path, out: Path, resume: Path | None = None, save_steps: int = 3) -> None:
        torch.manual_seed(0)
        options = {"batch_size": 8, "num_classes": 3, "device": "cpu", "num_threads": 1}
        train = open_loader(data / "train", mix=MultiMix(k=2), transform=TrainTransform(size=16), **options)
        val = open_loader(data / "val", transform=EvalTransform(size=16), **options)
        model = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3)))
        self.seen: list[float] = []
        model.register_forward_pre_hook(self._note, with_kwargs=True)
        arguments = settings(str(out), EPOCHS, True, save_steps=save_steps, disable_tqdm=True)
        trainer = LoaderTrainer(model=model, args=arguments, train=train, val=val, compute_metrics=accuracy)
        with train, val:
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
            self.steps = trainer.state.global_step
            self.model = model.eval()
            count = len(self.seen)
            self.labels = trainer.evaluation_loop(trainer.val_batches, "evaluation").label_ids
            del self.seen[count:]

    def _note(self, model: torch.nn.Module, args: tuple[()], batch: dict[str, torch.Tensor]) -> None:
        self.seen.append(batch["pixel_values"].double().sum().item())


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run without an interruption."""
    run = Run(data, tmp_path_factory.mktemp("whole"))
    assert len(set(run.seen)) == STEPS * EPOCHS
    yield run


@pytest.mark.parametrize("step", [3, 5, 9, 10])
def test_a_checkpoint_resumes_exactly(step: int, whole: Run, data: Path, tmp_path: Path) -> None:
    Run(data, tmp_path / "first", save_steps=step)
    resumed = Run(data, tmp_path / "second", tmp_path / "first" / f"checkpoint-{step}", save_steps=step)
    assert resumed.steps == STEPS * EPOCHS
    assert resumed.seen == whole.seen[step:]
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


def test_evaluation_counts_each_sample_once(whole: Run) -> None:
    assert len(whole.labels) == 21
