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


def test_two_processes_share_an_epoch_and_resume_exactly(data: Path, tmp_path: Path) -> None:
    done = run([sys.executable, "-m", "trainers.lightning_ddp", str(data), str(tmp_path)])
    # the process that Lightning started, about the two loaders that it opened before the group existed
    assert done.stderr.count("this process cannot tell its rank") == 2
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for opened in ("before", "in it"):
        for epoch in range(2):
            seen = [[keys for at, keys in rank[opened]["train"] if at == epoch] for rank in ranks]
            shown = Counter(key for steps in seen for keys in steps for key in keys)
            assert [len(steps) for steps in seen] == [5, 5]
            assert (len(shown), sum(shown.values())) == (37, 40)
        val = [rank[opened]["val"] for rank in ranks]
        assert list(map(len, val)) == [13, 8]  # one process has batches of 8 and 5, the other one of 8
        assert sorted(val[0] + val[1]) == [f"{number:02}" for number in range(21)]
        assert ranks[0][opened]["weights"] == ranks[1][opened]["weights"]
    for rank in ranks:
        assert rank["before"] == rank["in it"]
        assert rank["resumed"]["train"] == rank["before"]["train"][5:]
        assert rank["resumed"]["weights"] == rank["before"]["weights"]


def test_the_recipe_resumes_on_two_processes(data: Path, tmp_path: Path) -> None:
    recipe = [sys.executable, str(ROOT / "pipelines" / "lightning_classifier.py"), str(data / "train")]
    command = [*recipe, "--val", str(data / "val"), "--num-classes", "3", "--accelerator", "cpu", "--devices", "2"]
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    for epochs, more in (("1", []), ("2", ["--resume", str(checkpoint)])):
        done = run([*command, "--epochs", epochs, "--out", str(tmp_path), *more])
        assert done.stdout.count("accuracy 0.") + done.stdout.count("accuracy 1.") == 1
    saved = torch.load(checkpoint, weights_only=False)
    (position,) = saved["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert (saved["epoch"], saved["global_step"]) == (1, 2 * 3)
    assert (position["epoch"], position["samples"]) == (2, 0)


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    variables = environment(OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done
