"""Train an image classifier on WebDataset shards with multi-mix, in a plain PyTorch loop for one or many processes.

    python pipelines/train_classifier.py "train-{000000..001281}.tar" --val "val-{000000..000049}.tar" \
        --num-classes 1000 --model torchvision.models:resnet50
    torchrun --nproc-per-node 8 pipelines/train_classifier.py ... --resume out/checkpoint.pt

SGD with Nesterov momentum, warm-up and cosine; on a GPU in bfloat16 (autocast) and channels_last. Ctrl-C and SIGTERM save a
checkpoint after the running step. `--resume` continues from a checkpoint with exactly the samples, crops, mixing weights and
learning rates that remained, also with another number of processes.

Exit status: 0 if nothing is left to train, 2 after an error of one line, 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import signal
import sys
import time
from collections import ChainMap
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import multimix_pipe as mmp
from multimix_pipe import Batch, ConfigError, Loader, MultiMixError

SETTINGS = ("model", "num_classes", "epochs", "lr", "weight_decay", "label_smoothing")
"""Beside the loader's settings, those that a resumed run must have as before."""
CHANGES = "Keep the settings, or pass --allow-changes"


def small_net(num_classes: int) -> nn.Module:
    """Return a small network for small images, so that this recipe runs without a model library."""
    widths = (3, 32, 64, 128, 256)
    convolutions = [nn.Conv2d(a, b, 3, stride=2 if a > 3 else 1, padding=1, bias=False) for a, b in pairwise(widths)]
    blocks = [nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU()) for layer in convolutions]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes))


def make_model(name: str, num_classes: int) -> nn.Module:
    """Build the model `name`: "small", or "module:function", which is called with num_classes=."""
    module, _, function = name.partition(":")
    try:
        build = small_net if name == "small" else getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f'--model must be "small" or module:function; found {name!r}: {error}') from error
    model: nn.Module = build(num_classes=num_classes)
    return model


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return SGD without weight decay on norms and biases."""
    matrices, others = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)


def learning_rate(peak: float, before: float, after: float) -> float:
    """Return the rate of the step that takes training from a share `before` of its samples to `after`.

    It rises for the first 5% of training, then falls as a cosine, alike with any number of processes.
    """
    return peak * min(after / 0.05, 0.5 + 0.5 * math.cos(math.pi * before))


def backward(
    model: nn.Module, batch: Batch, loss_function: nn.Module, chunks: int, amp: AbstractContextManager[Any]
) -> Tensor:
    """Accumulate the gradients of the batch's mean loss over so many chunks, and return the loss."""
    total = torch.zeros((), device=batch.images.device)
    for number, part in enumerate(parts := list(batch.chunks(chunks)), start=1):
        alone = isinstance(model, DistributedDataParallel) and number < len(parts)
        with model.no_sync() if alone else nullcontext():  # the last chunk exchanges the gradients of all
            with amp:
                logits = model(part.images)
            loss = loss_function(logits, part.targets) * part.chunk_weight  # chunks may differ by a pair
            loss.backward()
        total += loss.detach()
    return total


class Meter:
    """What happened since the last reading: losses, rate, and the time waited for data.

    A GPU's steps are queued ahead, so its own clock is read: from the end of a step to the point where the next batch is there.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"

    def batches(self, loader: Loader) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        self.restart()
        ended = self.now()
        for batch in loader:
            self.waits.append((ended, self.now()))
            yield batch
            ended = self.now()

    def restart(self) -> None:
        self.started, self.losses, self.waits = time.perf_counter(), list[Tensor](), list[tuple[Any, Any]]()

    def now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> tuple[list[float], float, float]:
        """Return each step's loss over all processes, seconds per step, and the largest share of time a process waited."""
        losses = torch.stack(self.losses).tolist()  # waits for the GPU
        seconds = time.perf_counter() - self.started
        waited = sum(a.elapsed_time(b) / 1000 if self.on_gpu else b - a for a, b in self.waits)
        self.restart()
        everywhere = gather((losses, waited / seconds))
        means = [math.fsum(step) / len(step) for step in zip(*(theirs for theirs, _ in everywhere), strict=True)]
        return means, seconds / len(means), max(share for _, share in everywhere)


class Interrupt:
    """Notes Ctrl-C and SIGTERM during a step, which then ends first. A second Ctrl-C does not wait for it."""

    number, in_step = 0, False

    def __call__(self, number: int, _: object) -> None:
        if not self.in_step or number == self.number == signal.SIGINT:
            raise KeyboardInterrupt(number)
        self.number = number

    def agree(self) -> int:
        """Return the signal that came to any process, or 0. The processes communicate on the CPU."""
        if dist.is_initialized():
            dist.all_reduce(number := torch.tensor(self.number), dist.ReduceOp.MAX)
            self.number = int(number)
        return self.number


def gather(value: Any) -> list[Any]:
    """Return the value of each process."""
    if not dist.is_initialized():
        return [value]
    dist.all_gather_object(values := [None] * dist.get_world_size(), value)
    return values


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="%(prog)s TRAIN [--val VAL] [options]", description=__doc__.splitlines()[0] if __doc__ else None
    )
    add = parser.add_argument
    add("train", help="training shards: a path, glob, brace pattern or folder")
    add("--val", help="validation shards")
    add("--num-classes", type=int, help="default: the number of names in classes.json beside the shards")
    add("--model", default="small", help='"small" or module:function, e.g. torchvision.models:resnet50')
    add("--compile", action="store_true", help="compile the model")
    add("--epochs", type=positive, default=90)
    add("--batch-size", type=positive, default=64, help="pairs per process and step; the model gets K rows per pair")
    add("--accumulate", type=positive, default=1, help="chunks per batch, to save memory; batch norm sees each alone")
    add("--k", type=int, default=5, help="interpolations per pair; 0 trains without mixing")
    add("--alpha", type=float, default=1.0)
    add("--sampling", default="iid", choices=["iid", "stratified"])
    add("--method", default="mixup", choices=mmp.MultiMix.methods())
    add("--crops", default="same", choices=["same", "each"], help="each: K crops of each image, decoded once")
    add("--size", type=int, default=224, help="of training crops; evaluation resizes to 8/7 of it and crops the centre")
    add("--lr", type=float, default=0.1, help="peak learning rate for the rows of all processes")
    add("--weight-decay", type=float, default=5e-5, help="not of norms and biases")
    add("--label-smoothing", type=float, default=0.0)
    add("--backend", default="auto", choices=["auto", "dali", "torch"])
    add("--device", default="auto")
    add("--on-bad-sample", default="replace", choices=["raise", "replace"])
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("out"), help="for checkpoint.pt and log.jsonl; default: out")
    add("--print-every", type=positive, default=50, help="steps between lines; their rates are since the last line")
    add("--checkpoint-every", type=positive, default=1000, help="steps between checkpoints; each epoch ends with one")
    add("--max-steps", type=positive, help="stop after this step, counted from the start of training, not of a resume")
    add("--resume", type=Path, help="checkpoint of this recipe to continue from")
    add("--allow-changes", action="store_true", help="resume although data or settings differ, e.g. the batch size")
    return parser.parse_args(argv)


class Training:
    """A run of this recipe: what is trained on what, and how far it is."""

    def __init__(self, args: argparse.Namespace, on_gpu: bool) -> None:
        torch.manual_seed(args.seed)
        self.args, self.interrupt, self.leads = args, Interrupt(), not dist.is_initialized() or dist.get_rank() == 0
        names = ("backend", "device", "seed", "on_bad_sample")
        common: dict[str, Any] = {name: getattr(args, name) for name in names} | {"channels_last": on_gpu}
        names = ("k", "alpha", "sampling", "method", "crops")
        mix = mmp.MultiMix(**{name: getattr(args, name) for name in names}) if args.k else None
        kind = {"mix": mix, "transform": mmp.TrainTransform(size=args.size), "num_classes": args.num_classes}
        self.data = mmp.open_loader(args.train, batch_size=args.batch_size, **kind, **common)
        kind = {"transform": mmp.EvalTransform(size=args.size), "classes": self.data.classes}
        kind["num_classes"] = args.num_classes = self.data.num_classes
        self.val = mmp.open_loader(args.val, batch_size=2 * args.batch_size, **kind, **common) if args.val else None

        self.device, layout = self.data.device, torch.preserve_format
        self.amp: AbstractContextManager[Any] = nullcontext()
        if on_gpu:
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.benchmark = True
            layout, self.amp = torch.channels_last, torch.autocast("cuda", dtype=torch.bfloat16)
        self.model = make_model(args.model, args.num_classes).to(self.device, memory_format=layout)
        self.optimizer = make_optimizer(self.model, args.lr, args.weight_decay)
        self.parts = {"model": self.model, "optimizer": self.optimizer, "loader": self.data}
        self.loss_function, self.meter = mmp.MultiMixLoss(label_smoothing=args.label_smoothing), Meter(self.device)
        self.run = {name: getattr(args, name) for name in SETTINGS}
        self.run |= {"step": 0, "epoch": 0, "loss": 0.0, "losses": 0}  # steps and epochs done; sum and number of losses
        if args.resume:
            self.resume(args.resume)
        self.data.check_ranks()  # all processes have the same data, settings and position
        self.pairs = args.batch_size * (dist.get_world_size() if dist.is_initialized() else 1)
        self.steps_per_epoch = math.ceil(self.data.num_samples / self.pairs)
        whole_epochs = args.epochs - 1 - self.data.state_dict()["epoch"]
        self.total = self.run["step"] + len(self.data) - self.data.steps_done + whole_epochs * self.steps_per_epoch

    def resume(self, path: Path) -> None:
        """Load a checkpoint; raise ConfigError, with what is wrong with it."""
        wanted = "--resume must name a checkpoint of this recipe"
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise ConfigError(f"{wanted}; found {error}") from error
        except Exception as error:  # of many kinds, some with advice to trust the file
            raise ConfigError(f"{wanted}; torch.load cannot read {path}") from error
        if not isinstance(saved, dict) or saved.keys() != {"run", *self.parts}:
            found = ", ".join(map(str, saved)) if isinstance(saved, dict) else type(saved).__name__
            raise ConfigError(f"{wanted}, which has run, {', '.join(self.parts)}; {path} has {found:.200}")
        was, names = saved["run"], [name for name in SETTINGS if self.run[name] != saved["run"][name]]
        changed = "; ".join(f"{name} is {self.run[name]}, was {was[name]}" for name in names)
        if changed and not self.args.allow_changes:
            raise ConfigError(f"{path} has other settings: {changed}. {CHANGES}")
        try:
            self.data.load_state_dict(saved["loader"], strict=not self.args.allow_changes)
            self.model.load_state_dict(saved["model"])
        except mmp.StateMismatchError as error:
            advice = "Open the loader with the state's settings, or resume anyway with strict=False"
            raise ConfigError(f"{path} has other data or settings: {error}".replace(advice, CHANGES)) from error
        except RuntimeError as error:
            raise ConfigError(f"{path} has another model: {' '.join(str(error).split()):.300}") from error
        saved["optimizer"]["param_groups"] = self.optimizer.state_dict()["param_groups"]  # settings are this run's
        self.optimizer.load_state_dict(saved["optimizer"])
        self.run |= {name: was[name] for name in ("step", "epoch", "loss", "losses")}

    def save(self) -> None:
        """Write a checkpoint atomically: an interrupt never leaves half a file."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        torch.save({"run": self.run, **states}, self.args.out / "checkpoint.tmp")
        os.replace(self.args.out / "checkpoint.tmp", self.args.out / "checkpoint.pt")

    def train(self) -> int:
        """Train, and return the exit status."""
        args, run = self.args, self.run
        if run["epoch"] >= args.epochs or (args.max_steps and run["step"] >= args.max_steps):
            print(f"nothing left to train: {args.resume} is at step {run['step']:,}, after {run['epoch']} epochs")
            return 0
        args.out.mkdir(parents=True, exist_ok=True)
        self.print_header()
        net = torch.compile(self.model) if args.compile else self.model  # self.model.compile() can be without effect
        net = DistributedDataParallel(net) if dist.is_initialized() else net
        signal.signal(signal.SIGINT, self.interrupt)
        signal.signal(signal.SIGTERM, self.interrupt)
        while run["epoch"] < args.epochs and self.train_epoch(net):
            self.end_epoch()
        bad = ChainMap(*gather(self.data.bad_samples | (self.val.bad_samples if self.val is not None else {})))
        for key, why in islice(bad.items(), 1):
            print(f"{len(bad)} bad sample(s) were replaced: {key}: {why}, ...; multimix-pipe verify lists them")
        return 128 + self.interrupt.number if self.interrupt.number and run["epoch"] < args.epochs else 0

    def print_header(self) -> None:
        args, data, val, rows = self.args, self.data, self.val, self.pairs * max(self.args.k, 1)
        gpu = f"{torch.cuda.get_device_name(self.device)}, bfloat16" if self.device.type == "cuda" else ""
        beta = f"Beta({args.alpha:g}, {args.alpha:g})"
        mix = f"{args.method}, K={args.k}, {args.sampling} weights from {beta}" if args.k else "no mixing"
        mix += ", a crop for each" if args.k and args.crops == "each" else ""
        mix += f", in {args.accumulate} chunks per process" if args.accumulate > 1 else ""
        print(f"""\
processes    {self.pairs // args.batch_size}, on {gpu or self.device}, with the backend {data.backend}
training     {data.num_samples:,} samples of {data.num_classes:,} classes
validation   {"none" if val is None else f"{val.num_samples:,} samples"}
steps        {self.steps_per_epoch:,} per epoch, {self.total:,} in all; {self.pairs:,} pairs make {rows:,} rows ({mix})
model        {args.model}, {sum(part.numel() for part in self.model.parameters()):,} parameters; lr {args.lr:g} at its peak
checkpoints  {args.out / "checkpoint.pt"}, every {args.checkpoint_every:,} steps, after each epoch and when stopped""")
        if not args.resume and (args.out / "checkpoint.pt").exists():
            print(
                f"note         {args.out / 'checkpoint.pt'} exists and will be replaced; --resume continues it, --out keeps it"
            )
        if args.resume:
            print(f"resuming     {args.resume}, in epoch {self.run['epoch'] + 1} after step {self.run['step']:,}")

    def train_epoch(self, net: nn.Module) -> bool:
        """Train to the epoch's end, and return True; or False if training is to stop before."""
        args, run, samples = self.args, self.run, self.data.num_samples
        trained = self.data.state_dict()["epoch"] > run["epoch"]  # but not validated
        left = 0 if trained else len(self.data) - self.data.steps_done
        end = run["step"] + left
        net.train()
        self.interrupt.in_step = True
        for batch in islice(self.meter.batches(self.data), left):
            position = run["epoch"] * samples + batch.plan.step_start
            rate = learning_rate(args.lr, *(at / samples / args.epochs for at in (position, position + self.pairs)))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(args.seed + run["epoch"] * samples + batch.plan.start)  # of dropout: as without a resume
            self.meter.losses.append(backward(net, batch, self.loss_function, args.accumulate, self.amp))
            self.optimizer.step()
            self.optimizer.zero_grad()
            run["step"] += 1
            stop = self.interrupt.agree() or run["step"] == args.max_steps
            saves = stop or run["step"] == end or run["step"] % args.checkpoint_every == 0
            if saves or run["step"] % args.print_every == 0:
                self.print_progress(rate)
            if saves and self.leads:
                self.save()
            if stop:
                why = signal.Signals(self.interrupt.number).name if self.interrupt.number else "--max-steps"
                print(f"stopped by {why} after step {run['step']:,}: --resume {args.out / 'checkpoint.pt'} continues")
                return False
        self.interrupt.in_step = False
        return True

    def print_progress(self, rate: float) -> None:
        """Print how training goes, and how fast since the last line."""
        args, run, (losses, seconds, waited) = self.args, self.run, self.meter.read()
        loss, step = math.fsum(losses) / len(losses), run["step"]
        if not math.isfinite(loss):
            raise MultiMixError(
                f"the loss must be finite; found {loss} at step {step:,}. Lower --lr, or look at the data"
            )
        run["loss"], run["losses"] = run["loss"] + math.fsum(losses), run["losses"] + len(losses)
        last = min(self.total, args.max_steps or self.total)
        eta = timedelta(seconds=round((last - step) * seconds))
        print(
            f"epoch {run['epoch'] + 1}/{args.epochs}  step {step:,}/{last:,}  loss {loss:.4f}  lr {rate:.4g}",
            f" {self.pairs / seconds:,.0f} images/s  {self.pairs * max(args.k, 1) / seconds:,.0f} rows/s",
            f" waited for data {waited:.0%}  ETA {eta}",
        )

    def end_epoch(self) -> None:
        """Validate, and note the epoch in the log and the checkpoint."""
        run, epoch = self.run, self.run["epoch"] + 1
        row = {"epoch": epoch, "step": run["step"], "loss": round(run["loss"] / run["losses"], 6)}
        if self.val is not None:
            with self.amp:
                row |= mmp.evaluate(self.model, self.val)["clean"]["raw"]
            top1, top5 = (f"{row[name]:.2%}" for name in ("top1", "top5"))
            print(f"epoch {epoch}/{self.args.epochs}  validation: top-1 {top1}, top-5 {top5}")
        run |= {"epoch": epoch, "loss": 0.0, "losses": 0}
        if self.leads:
            with (self.args.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            self.save()


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the arguments say, and return the exit status."""
    args = parse_arguments(argv)
    on_gpu = args.device.startswith("cuda") or (args.device == "auto" and torch.cuda.is_available())
    sys.path.append(os.getcwd())  # for --model
    sys.stdout.reconfigure(line_buffering=True)
    try:
        if "RANK" in os.environ:
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
            if dist.get_rank():
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return Training(args, on_gpu).train()
    except (MultiMixError, OSError) as error:
        print(f"{Path(__file__).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("stopped between steps; --resume continues from the last checkpoint", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
