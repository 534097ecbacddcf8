"""Fit on two gloo processes: with loaders opened before the group exists, with loaders opened in it, and from a checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "pipelines"))

import lightning  # noqa: E402
import torch.distributed as dist  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from multimix_pipe import EvalTransform, Loader, TrainTransform, open_loader  # noqa: E402
from trainers.test_lightning import Recorder  # noqa: E402


class Data(lightning.LightningDataModule):
    """Opens the loaders when the trainer asks for them."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.shared: dict[str, Any] = {"num_classes": 3, "device": "cpu", "num_threads": 1}

    def train_dataloader(self) -> Loader:
        return open_loader(self.folder / "train", batch_size=4, transform=TrainTransform(size=16), **self.shared)

    def val_dataloader(self) -> Loader:
        return open_loader(self.folder / "val", batch_size=8, transform=EvalTransform(size=16), **self.shared)


def fit(out: Path, data: Data, *, opened: str, resume: Path | None = None) -> dict[str, Any]:
    """Train for two epochs; return the keys of the batches and the final weights."""
    model = Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, default_root_dir=out,
        callbacks=[ModelCheckpoint(out, filename="{epoch}", save_top_k=-1)],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    if opened == "before":
        trainer.fit(model, data.train_dataloader(), data.val_dataloader())
    else:
        assert dist.is_initialized()
        trainer.fit(model, datamodule=data, ckpt_path=resume)
    return {
        "train": model.seen,
        "val": list(model.evaluated.elements()),
        "weights": [parameter.flatten().tolist() for parameter in model.parameters()],
    }


def main(folder: Path, out: Path) -> None:
    data = Data(folder)
    found = {
        "before": fit(out / "before", data, opened="before"),
        "in it": fit(out / "in it", data, opened="in it"),
        "resumed": fit(out / "resumed", data, opened="in it", resume=out / "before" / "epoch=0.ckpt"),
    }
    (out / f"{dist.get_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
