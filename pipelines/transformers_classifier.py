"""Train with the Hugging Face Trainer: an adapter makes dicts of the batches, a callback keeps the loader's position.

python pipelines/transformers_classifier.py shards/train --val shards/val --num-classes 3
python pipelines/transformers_classifier.py ... --resume out/checkpoint-500
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from train_classifier import make_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from multimix_pipe import EvalTransform, Loader, MultiMix, MultiMixLoss, TrainTransform, open_loader

STATE = "multimix_pipe.json"
# the loader resumes itself, so the Trainer must not skip batches
FIXED: dict[str, Any] = {"ignore_data_skip": True, "report_to": [], "label_names": ["labels"]}


class Adapter(TrainerCallback):  # type: ignore[misc]
    """A loader whose batches are dicts, and whose position goes into each checkpoint."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.set_epoch = loader.set_epoch

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for images, targets in self.loader:
            yield {"pixel_values": images, "labels": targets}

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **more: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / STATE).write_text(json.dumps(self.loader.state_dict()))


class LoaderTrainer(Trainer):  # type: ignore[misc]
    """A Trainer over two loaders, with a loss for mixed rows and for class ids."""

    def __init__(self, *, train: Loader, val: Loader, **options: Any) -> None:
        self.train_batches, self.val_batches = Adapter(train), Adapter(val)
        super().__init__(callbacks=[self.train_batches], **options)

    def get_train_dataloader(self) -> Adapter:
        return self.train_batches

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Adapter:
        return self.val_batches

    def train(self, resume_from_checkpoint: str | None = None, **options: Any) -> Any:
        if resume_from_checkpoint:
            state = json.loads((Path(resume_from_checkpoint) / STATE).read_text())
            self.train_batches.loader.load_state_dict(state)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **options)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **more: Any
    ) -> Any:
        logits = model(inputs["pixel_values"])
        loss = MultiMixLoss()(logits, inputs["labels"])
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("train", help="training shards")
    parser.add_argument("--val", required=True, help="validation shards")
    parser.add_argument("--num-classes", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--out", default="out")
    parser.add_argument("--save-steps", type=int, default=500)
    parser.add_argument("--resume", help="checkpoint folder to continue from")
    args = parser.parse_args()
    arguments = TrainingArguments(
        args.out, num_train_epochs=args.epochs, use_cpu=args.cpu, save_steps=args.save_steps, **FIXED
    )
    common = {"num_classes": args.num_classes, "batch_size": 8, "device": arguments.device}
    train = open_loader(args.train, mix=MultiMix(k=2), transform=TrainTransform(size=32), **common)
    val = open_loader(args.val, transform=EvalTransform(size=32), **common)
    model = make_model("small", args.num_classes)
    metrics = lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())}  # noqa: E731
    trainer = LoaderTrainer(model=model, args=arguments, train=train, val=val, compute_metrics=metrics)
    with train, val:
        trainer.train(resume_from_checkpoint=args.resume)
        print(f"accuracy {trainer.evaluate()['eval_accuracy']:.4f}")


if __name__ == "__main__":
    main()
