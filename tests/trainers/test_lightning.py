"""Lightning: every kind of its checkpoints resumes with exactly the batches that remained, alone and on two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_classifier import Classifier

from helpers.processes import ROOT, environment
from multimix_pipe import Batch, EvalTransform, MultiMix, TrainTransform, open_loader

EPOCHS, STEPS = 3, 5
CHECKPOINTS = {
    "mid-epoch": ({"every_n_train_steps": 3}, 3),
    "mid-epoch, later": ({"every_n_train_steps": 4}, 8),
    "last step of an epoch": ({"every_n_train_steps": STEPS}, STEPS),
    "end of epoch": ({"save_on_train_epoch_end": True}, STEPS),
    "end of the second epoch": ({"save_on_train_epoch_end": True}, 2 * STEPS),
    "after validation": ({"save_on_train_epoch_end": False}, STEPS),
    "after validation, later": ({"save_on_train_epoch_end": False}, 2 * STEPS),
    "validation in mid-epoch": ({"save_on_train_epoch_end": False, "_val_check_interval": 2}, 4),
}


class Recorder(Classifier):
    """Notes the batches that it is trained on."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3)), 0.1)
        self.seen: list[tuple[int, list[str]]] = []
        self.evaluated: Counter[str] = Counter()

    def training_step(self, batch: Batch, step: int) -> torch.Tensor:
        self.seen.append((batch.plan.epoch, batch.keys))
        return super().training_step(batch, step)

    def on_validation_epoch_start(self) -> None:
        self.evaluated.clear()
        super().on_validation_epoch_start()

    def validation_step(self, batch: Batch, step: int) -> None:
        self.evaluated.update(batch.keys)
        super().validation_step(batch, step)


def fit(data: Path, out: Path, resume: Path | None = None, **checkpoint: Any) -> Recorder:
    interval = checkpoint.pop("_val_check_interval", 1.0)
    model = Recorder()
    shared: dict[str, Any] = {"num_classes": 3, "device": "cpu", "num_threads": 1}
    train = open_loader(data / "train", batch_size=8, mix=MultiMix(k=2), transform=TrainTransform(size=16), **shared)
    val = open_loader(data / "val", batch_size=8, transform=EvalTransform(size=16), **shared)
    keep = ModelCheckpoint(out, filename="{step}", save_top_k=-1, **checkpoint)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=EPOCHS, callbacks=[keep], logger=False,
        enable_progress_bar=False, enable_model_summary=False, val_check_interval=interval, default_root_dir=out,
    )  # fmt: skip
    with train, val:
        trainer.fit(model, train, val, ckpt_path=resume)
    return model


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """A run without an interruption."""
    model = fit(data, tmp_path_factory.mktemp("whole"))
    assert [epoch for epoch, _ in model.seen] == [epoch for epoch in range(EPOCHS) for _ in range(STEPS)]
    return model


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_each_kind_of_checkpoint_resumes_exactly(name: str, whole: Recorder, data: Path, tmp_path: Path) -> None:
    options, step = CHECKPOINTS[name]
    fit(data, tmp_path / "first", **options)
    resumed = fit(data, tmp_path / "second", resume=tmp_path / "first" / f"step={step}.ckpt", **options)
    assert resumed.seen == whole.seen[step:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_validation_sees_each_sample_once(whole: Recorder) -> None:
    assert set(whole.evaluated.values()) == {1}
    assert len(whole.evaluated) == 21


@pytest.mark.parametrize("opened", ["before the group", "in the process"])
def test_two_processes_share_an_epoch(opened: str, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainers.lightning_ddp", opened.split()[0], str(data), str(tmp_path)]
    done = subprocess.run(command, env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for epoch in range(2):
        seen = [[keys for at, keys in rank["train"] if at == epoch] for rank in ranks]
        shown = Counter(key for steps in seen for keys in steps for key in keys)
        assert [len(steps) for steps in seen] == [5, 5]
        assert (len(shown), sum(shown.values())) == (37, 40)
    assert sorted(key for rank in ranks for key in rank["val"]) == [f"{number:02}" for number in range(21)]
    assert ranks[0]["weights"] == ranks[1]["weights"]


def test_the_recipe_resumes_on_two_processes(data: Path, tmp_path: Path) -> None:
    recipe = [sys.executable, str(ROOT / "pipelines" / "lightning_classifier.py"), str(data / "train")]
    command = [*recipe, "--val", str(data / "val"), "--num-classes", "3", "--accelerator", "cpu", "--devices", "2"]
    weights = {}
    for out, epochs, more in (("whole", 2, []), ("parts", 1, []), ("parts", 2, ["--resume", "last.ckpt"])):
        folder = tmp_path / out
        options = ["--epochs", str(epochs), "--out", str(folder)]
        options += ["--resume", str(folder / "checkpoints" / "last.ckpt")] if more else []
        done = subprocess.run(
            [*command, *options], env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("accuracy 0.") + done.stdout.count("accuracy 1.") == 1
        saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)
        weights[out] = saved["state_dict"]
    assert all(torch.equal(weights["whole"][name], weights["parts"][name]) for name in weights["whole"])
