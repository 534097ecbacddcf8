"""Train with Lightning: the loader goes straight into `Trainer.fit`, and its position into Lightning's own checkpoints.

python pipelines/lightning_classifier.py shards/train --val shards/val --devices 2
python pipelines/lightning_classifier.py ... --resume out/checkpoints/last.ckpt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from train_classifier import make_model

from multimix_pipe import Batch, EvalTransform, MixedAccuracy, MultiMix, MultiMixLoss, TrainTransform, open_loader


class Classifier(lightning.LightningModule):
    """A model, its loss, and the accuracy over all validation samples."""

    def __init__(self, model: torch.nn.Module, lr: float) -> None:
        super().__init__()
        self.model, self.lr, self.loss, self.accuracy = model, lr, MultiMixLoss(), MixedAccuracy()

    def on_train_start(self) -> None:
        self.trainer.train_dataloader.check_ranks()  # all processes have the same data, settings and position

    def training_step(self, batch: Batch, step: int) -> torch.Tensor:
        loss: torch.Tensor = self.loss(self.model(batch.images), batch.targets)
        self.log("loss", loss, batch_size=len(batch.labels))
        return loss

    def validation_step(self, batch: Batch, step: int) -> None:
        self.accuracy.update(self.model(batch.images), batch.labels)

    def on_validation_epoch_end(self) -> None:  # once per epoch, because processes may have unequal numbers of batches
        self.log("accuracy", self.accuracy.compute(), rank_zero_only=True)
        self.accuracy.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("train", help="training shards")
    parser.add_argument("--val", required=True, help="validation shards")
    parser.add_argument("--num-classes", type=int, help="default: as many as classes.json has names")
    parser.add_argument("--model", default="small", help='"small" or module:function')
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8, help="pairs per process and step")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--resume", help="checkpoint to continue from")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(0)
    common = {"batch_size": args.batch_size, "device": "cpu" if args.accelerator == "cpu" else "auto"}
    mix, augment = MultiMix(k=2), TrainTransform(size=args.size)
    # Lightning starts its processes later: the loader asks for its rank when an epoch begins
    train = open_loader(args.train, num_classes=args.num_classes, mix=mix, transform=augment, **common)
    names = {"num_classes": train.num_classes, "classes": train.classes}
    val = open_loader(args.val, transform=EvalTransform(size=args.size), **names, **common)
    trainer = lightning.Trainer(
        accelerator=args.accelerator,
        devices=args.devices,
        max_epochs=args.epochs,
        default_root_dir=args.out,
        callbacks=[ModelCheckpoint(args.out / "checkpoints", save_last=True)],
        logger=False,
    )
    with train, val:
        trainer.fit(Classifier(make_model(args.model, train.num_classes), args.lr), train, val, ckpt_path=args.resume)
    if trainer.is_global_zero:
        print(f"accuracy {float(trainer.callback_metrics['accuracy']):.4f}")


if __name__ == "__main__":
    main()
