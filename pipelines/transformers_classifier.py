"""Train with the Hugging Face Trainer: an adapter makes dicts of the batches, and keeps the loader's position in checkpoints.

python pipelines/transformers_classifier.py --train_shards shards/train --val_shards shards/val --output_dir out
torchrun --nproc-per-node 8 pipelines/transformers_classifier.py ... --resume_from_checkpoint out/checkpoint-500
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import HfArgumentParser, ResNetConfig, ResNetForImageClassification
from transformers.trainer import Trainer, TrainerCallback, TrainingArguments

from multimix_pipe import EvalTransform, Loader, MixedAccuracy, MultiMix, MultiMixLoss, TrainTransform, open_loader


class DictBatches(TrainerCallback):
    """The batches of a loader as dicts; as a callback, it writes the loader's position into each checkpoint."""

    FILE = "multimix_pipe.json"

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.set_epoch = loader.set_epoch  # which the Trainer calls if it is there

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for images, targets in self.loader:
            yield {"pixel_values": images, "labels": targets}

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **more: Any) -> None:
        if state.is_world_process_zero:
            file = Path(args.output_dir, f"checkpoint-{state.global_step}", self.FILE)
            file.write_text(json.dumps(self.loader.state_dict()))


class LoaderTrainer(Trainer):
    """A Trainer over two loaders."""

    def __init__(self, *, train: Loader, val: Loader, **options: Any) -> None:
        self.batches, self.val = DictBatches(train), val
        super().__init__(callbacks=[self.batches], **options)
        self.model_accepts_loss_kwargs = False  # compute_loss gives a mean: divide it by gradient_accumulation_steps

    def get_train_dataloader(self) -> DictBatches:
        return self.batches

    def train(self, resume_from_checkpoint: str | None = None, **options: Any) -> Any:
        self.args.ignore_data_skip = True  # the loader continues at its position: there are no batches to skip
        if resume_from_checkpoint:
            state = json.loads(Path(resume_from_checkpoint, DictBatches.FILE).read_text())
            self.batches.loader.load_state_dict(state)
        self.batches.loader.check_ranks()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **options)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *unused: Any, **more: Any) -> Tensor:
        return MultiMixLoss()(model(pixel_values=inputs["pixel_values"]).logits, inputs["labels"])

    def evaluate(self, *unused: Any, **more: Any) -> dict[str, float]:
        """Return the accuracy. It communicates once: processes may have unequal numbers of batches."""
        accuracy = MixedAccuracy()
        self.model.eval()
        with torch.inference_mode():
            for images, labels in self.val:
                accuracy.update(self.model(pixel_values=images).logits, labels)
        metrics = {"eval_accuracy": accuracy.compute().item()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def main() -> None:
    parser = HfArgumentParser(TrainingArguments)
    parser.add_argument("--train_shards", required=True)
    parser.add_argument("--val_shards", required=True)
    parser.add_argument("--num_classes", type=int, help="default: as many as classes.json has names")
    args, data = parser.parse_args_into_dataclasses()
    # args.device also starts the process group, from which the loaders take their rank
    options = {"batch_size": args.per_device_train_batch_size, "device": args.device, "num_classes": data.num_classes}
    train = open_loader(data.train_shards, mix=MultiMix(k=2), transform=TrainTransform(size=32), **options)
    options |= {"num_classes": train.num_classes, "classes": train.classes}
    val = open_loader(data.val_shards, transform=EvalTransform(size=32), **options)
    torch.manual_seed(args.seed)
    model = ResNetForImageClassification(ResNetConfig(hidden_sizes=[64], depths=[1], num_labels=train.num_classes))
    with train, val:
        trainer = LoaderTrainer(model=model, args=args, train=train, val=val)
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        trainer.log_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    main()
