"""The Hugging Face Trainer: its checkpoints resume with exactly the batches that remained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments
from transformers_classifier import LoaderTrainer

from helpers.processes import ROOT, torchrun
from multimix_pipe import EvalTransform, MultiMix, MultiMixLoss, TrainTransform, open_loader

STEPS, EPOCHS = 5, 3
CHECKPOINTS = [3, 5, 9, 10]  # in mid-epoch, and at an epoch's end


def make_model() -> ResNetForImageClassification:
    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_sizes": [4], "depths": [1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**sizes, num_labels=3))


class Run:
    """A training run, the sums of the images that its model saw, and its result."""

    def __init__(
        self, data: Path, out: Path, resume: Path | None = None, *, bare: bool = False, accumulate: int = 1
    ) -> None:
        options: dict[str, Any] = {"batch_size": 8, "num_classes": 3, "device": "cpu", "num_threads": 1}
        self.loader = train = open_loader(
            data / "train", mix=MultiMix(k=2), transform=TrainTransform(size=16), **options
        )
        val = open_loader(data / "val", transform=EvalTransform(size=16), **options)
        self.model = make_model()
        self.seen: list[float] = []
        hook = self.model.register_forward_pre_hook(self._note, with_kwargs=True)
        arguments = TrainingArguments(
            str(out), num_train_epochs=EPOCHS, use_cpu=True, save_steps=1, logging_steps=1, disable_tqdm=True,
            ignore_data_skip=bare, per_device_train_batch_size=2, gradient_accumulation_steps=accumulate,
        )  # fmt: skip
        self.trainer = LoaderTrainer(model=self.model, args=arguments, train=train, val=val)
        train_it = Trainer.train if bare else LoaderTrainer.train
        with train, val:
            train_it(self.trainer, resume_from_checkpoint=None if resume is None else str(resume))
            hook.remove()
            self.accuracy = self.trainer.evaluate()["eval_accuracy"]

    def _note(self, model: torch.nn.Module, args: object, named: dict[str, torch.Tensor]) -> None:
        self.seen.append(named["pixel_values"].double().sum().item())

    @property
    def epochs_logged(self) -> dict[int, float]:
        return {entry["step"]: entry["epoch"] for entry in self.trainer.state.log_history if "loss" in entry}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the uninterrupted run, which keeps a checkpoint of each step."""
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def whole(data: Path, saved: Path) -> Run:
    """A run without an interruption; per_device_train_batch_size=2 has no effect on its batches of 8."""
    run = Run(data, saved)
    assert len(set(run.seen)) == run.trainer.state.global_step == STEPS * EPOCHS
    return run


@pytest.mark.parametrize("step", CHECKPOINTS)
def test_a_checkpoint_resumes_exactly(step: int, whole: Run, saved: Path, data: Path, tmp_path: Path) -> None:
    resumed = Run(data, tmp_path, saved / f"checkpoint-{step}")
    assert resumed.trainer.state.global_step == STEPS * EPOCHS
    assert resumed.seen == whole.seen[step:]
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())
    rates = [[x["learning_rate"] for x in run.trainer.state.log_history if "loss" in x] for run in (whole, resumed)]
    assert rates[0] == rates[1]


def test_the_trainer_alone_begins_the_epoch_again(whole: Run, saved: Path, data: Path, tmp_path: Path) -> None:
    bare = Run(data, tmp_path, saved / "checkpoint-3", bare=True)
    assert bare.seen[:STEPS] == whole.seen[:STEPS]


def test_in_the_resumed_epoch_the_log_counts_from_its_start(
    whole: Run, saved: Path, data: Path, tmp_path: Path
) -> None:
    resumed = Run(data, tmp_path, saved / "checkpoint-3").epochs_logged
    assert (whole.epochs_logged[4], resumed[4]) == (0.8, 0.2)
    assert resumed[6] == whole.epochs_logged[6] == 1.2


def test_accumulated_gradients_are_those_of_the_mean_loss(data: Path, tmp_path: Path) -> None:
    run = Run(data, tmp_path, accumulate=STEPS)  # one update per epoch
    run.loader.set_epoch(0)
    model, loss_function = make_model().train(), MultiMixLoss()
    for images, targets in run.loader:
        (loss_function(model(images).logits, targets) / STEPS).backward()
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    assert run.trainer.state.log_history[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_the_recipe_resumes_and_evaluates_on_two_processes(data: Path, tmp_path: Path) -> None:
    recipe = [str(ROOT / "pipelines" / "transformers_classifier.py"), "--num_classes", "3", "--use_cpu"]
    folders = ["--train_shards", str(data / "train"), "--val_shards", str(data / "val")]
    options = ["--per_device_train_batch_size", "4", "--num_train_epochs", "2", "--save_steps", "3"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for out, more in ((whole, []), (resumed, ["--resume_from_checkpoint", str(whole / "checkpoint-3")])):
        done = torchrun(2, *recipe, *folders, *options, "--output_dir", out, *more, timeout=120)
    assert json.loads((whole / "checkpoint-3" / "multimix_pipe.json").read_text())["samples"] == 24
    weights = [load_file(folder / "checkpoint-10" / "model.safetensors") for folder in (whole, resumed)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    # the whole validation set counts, although one process has two batches and the other one
    trained = ResNetForImageClassification.from_pretrained(resumed / "checkpoint-10").eval()
    val = open_loader(data / "val", batch_size=21, num_classes=3, device="cpu", transform=EvalTransform(size=32))
    images, labels = next(iter(val))
    with torch.inference_mode():
        accuracy = (trained(pixel_values=images).logits.argmax(1) == labels).float().mean().item()
    assert f"eval_accuracy = {accuracy:.4f}" in " ".join(done.stdout.split())
