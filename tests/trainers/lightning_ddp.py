"""Fit on two gloo processes with loaders that are opened in the main script, or in each process once the group exists."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "pipelines"))

import lightning  # noqa: E402
import torch.distributed as dist  # noqa: E402

from multimix_pipe import EvalTransform, Loader, TrainTransform, open_loader  # noqa: E402
from trainers.test_lightning import Recorder  # noqa: E402


def main(when: str, data: Path, out: Path) -> None:
    shared: dict[str, Any] = {"num_classes": 3, "device": "cpu", "num_threads": 1, "mix": None}

    def open_train() -> Loader:
        return open_loader(data / "train", batch_size=4, transform=TrainTransform(size=16), **shared)

    def open_val() -> Loader:
        return open_loader(data / "val", batch_size=4, transform=EvalTransform(size=16), **shared)

    class InTheProcess(lightning.LightningDataModule):
        def train_dataloader(self) -> Loader:
            assert dist.is_initialized()
            return open_train()

        def val_dataloader(self) -> Loader:
            return open_val()

    model = Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=out,
    )  # fmt: skip
    if when == "before":
        trainer.fit(model, open_train(), open_val())
    else:
        trainer.fit(model, datamodule=InTheProcess())
    found = {
        "train": model.seen,
        "val": list(model.evaluated.elements()),
        "weights": [parameter.flatten().tolist() for parameter in model.parameters()],
    }
    (out / f"{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
