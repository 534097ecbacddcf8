"""The demo's training: one recipe, run with and without multi-mix.

Both runs share the network and its initial weights, the images in each step with their crops and flips, the number of optimiser
steps, the learning rate at each step and the evaluation. They differ in the rows per step: multi-mix shows the network K mixed
rows per image, the other run the image itself, so multi-mix spends about K times as long in the network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimix_pipe.batch import Batch
from multimix_pipe.cli.demo.data import DemoData
from multimix_pipe.cli.demo.net import small_net
from multimix_pipe.config import Backend, EvalTransform, TrainTransform
from multimix_pipe.loader import Loader, open_loader
from multimix_pipe.mixing import MultiMix
from multimix_pipe.shards.progress import Progress
from multimix_pipe.training.losses import MultiMixLoss

BATCH_SIZE = 32
MAX_LR = 0.1
WEIGHT_DECAY = 5e-4
SCALE = (0.5, 1.0)
ECE_BINS = 15
EVAL_BATCH = 250
TIME_MARGIN = 1.15
"""Safety margin: training may take this many times as long as the first steps suggest."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines what a run computes, apart from its data."""

    mix: MultiMix
    size: int
    seed: int
    backend: Backend

    @property
    def train_transform(self) -> TrainTransform:
        return TrainTransform(size=self.size, scale=SCALE)

    def steps(self, epochs: float, count: int) -> int:
        """Return the number of steps in which `epochs * count` images are decoded."""
        return max(1, round(epochs * count / BATCH_SIZE))


@dataclass(frozen=True)
class Evaluation:
    """Metrics on the test set."""

    accuracy: float
    nll: float
    """Mean negative log-likelihood, in nats."""
    ece: float
    """Expected calibration error, 15 bins of equal width."""


@dataclass
class Run:
    """The result of one training."""

    name: str
    steps: int
    rows: int
    """Number of images that the network was shown, mixed or not."""
    seconds: float = 0.0
    """Time of training and evaluation together."""
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def last(self) -> dict[str, float]:
        return self.history[-1]


def open_training(recipe: Recipe, data: DemoData, mixed: bool) -> Loader:
    """Open the training loader; with or without mixing, it gives the same images in the same steps."""
    return open_loader(
        data.train,
        batch_size=BATCH_SIZE,
        num_classes=len(data.classes),
        mix=recipe.mix if mixed else None,
        transform=recipe.train_transform,
        exclude=data.held_out,
        backend=recipe.backend,
        on_bad_sample="replace",
        seed=recipe.seed,
        channels_last=True,
    )


def open_evaluation(recipe: Recipe, data: DemoData) -> Loader:
    """Open the loader of the test set, in stored order and without mixing."""
    return open_loader(
        data.test,
        batch_size=min(EVAL_BATCH, data.test_count),
        num_classes=len(data.classes),
        transform=EvalTransform(size=recipe.size, resize=recipe.size),
        samples=data.held_out,
        backend=recipe.backend,
        on_bad_sample="replace",
        channels_last=True,
    )


def train(recipe: Recipe, data: DemoData, epochs: float, mixed: bool, test: Loader, *, progress: bool = True) -> Run:
    """Train for `epochs` epochs and evaluate after each of them."""
    steps = recipe.steps(epochs, data.train_count)
    name = f"multi-mix, K = {recipe.mix.k}" if mixed else "no mixing"
    run = Run(name, steps, steps * BATCH_SIZE * (recipe.mix.k if mixed else 1))
    evaluate_after = {recipe.steps(epoch, data.train_count) for epoch in range(1, int(epochs) + 1)} | {steps}
    with (
        open_training(recipe, data, mixed) as loader,
        Progress(f"{name:16}", total=steps, unit="step", disable=not progress) as bar,
    ):
        trainer = Trainer(recipe, len(data.classes), loader.device, steps)
        started, losses = time.perf_counter(), torch.zeros((), device=loader.device)
        last = 0
        for step, batch in zip(range(1, steps + 1), endless(loader), strict=False):
            losses += trainer.step(batch)
            bar.update()
            if step in evaluate_after:
                metrics = evaluate(trainer.net, test)
                epoch, loss = step * BATCH_SIZE / data.train_count, losses.item() / (step - last)
                run.history.append({"step": step, "epoch": epoch, "train_loss": loss, **asdict(metrics)})
                bar.set_postfix_str(f"loss {loss:.3f}, test accuracy {metrics.accuracy:.1%}", refresh=False)
                losses.zero_()
                last = step
        run.seconds = time.perf_counter() - started
    return run


class Trainer:
    """Trains the network by SGD with Nesterov momentum and a one-cycle learning rate over `steps` steps."""

    def __init__(self, recipe: Recipe, num_classes: int, device: torch.device, steps: int) -> None:
        with torch.random.fork_rng(devices=[]):  # do not change the caller's random state
            torch.manual_seed(recipe.seed)
            net = small_net(num_classes)
        self.net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._loss = MultiMixLoss()
        self._optimiser = torch.optim.SGD(
            self.net.parameters(), lr=MAX_LR, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
        )
        self._lr = one_cycle(steps)
        self._done = 0

    def step(self, batch: Batch) -> Tensor:
        """Train on a batch and return its detached loss."""
        for group in self._optimiser.param_groups:
            group["lr"] = MAX_LR * self._lr(self._done)
        self.net.train()
        loss: Tensor = self._loss(self.net(batch.images), batch.targets)
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimiser.step()
        self._done += 1
        return loss.detach()


def one_cycle(steps: int) -> Callable[[int], float]:
    """Return the factor of the learning rate at steps 0..steps-1: linear up to 1 in the first fifth, then down to 0."""
    rise = max(1, steps // 5)
    return lambda step: min((step + 1) / rise, (steps - step) / max(1, steps - rise + 1), 1.0)


def endless(loader: Loader) -> Iterator[Batch]:
    """Yield batches, epoch after epoch."""
    while True:
        yield from loader


@torch.inference_mode()
def evaluate(net: nn.Module, test: Loader) -> Evaluation:
    """Return the network's accuracy, NLL and ECE on all of `test`."""
    net.eval()
    outputs = [(net(batch.images).log_softmax(1), batch.labels) for batch in test]
    log_p, labels = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    confidence, predicted = log_p.exp().max(1)
    right = (predicted == labels).float()
    return Evaluation(
        accuracy=right.mean().item(),
        nll=F.nll_loss(log_p, labels).item(),
        ece=calibration_error(confidence, right),
    )


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Return the expected calibration error; both inputs are (N,), in [0, 1].

    It is the sum over the bins of (fraction of the samples in the bin) * |accuracy - mean confidence|.
    """
    number = (confidence * ECE_BINS).long().clamp(max=ECE_BINS - 1)
    gap = torch.zeros(ECE_BINS, device=confidence.device).index_add_(0, number, right - confidence)
    return gap.abs().sum().item() / len(confidence)


def epochs_within(minutes: float, recipe: Recipe, data: DemoData, test: Loader) -> float:
    """Estimate how many epochs both runs can train in `minutes` together, from the speed of their first steps.

    Measuring does not change any result: it trains throw-away networks, and the loaders' draws depend on positions only.
    """
    seconds = min(6.0, 6 * minutes)  # spent on measuring each
    per_step = sum(_seconds_per_step(recipe, data, mixed, seconds) for mixed in (True, False))
    net = Trainer(recipe, len(data.classes), test.device, 1).net
    started, evaluated = time.perf_counter(), 0
    net.eval()
    with torch.inference_mode():
        for batch in test:
            net(batch.images)
            evaluated += len(batch.labels)
            if time.perf_counter() - started > seconds / 3:
                break
    per_evaluation = (time.perf_counter() - started) / evaluated * data.test_count
    per_epoch = per_step * data.train_count / BATCH_SIZE + 2 * per_evaluation
    epochs = 60 * minutes / (per_epoch * TIME_MARGIN)
    return max(round(epochs, 1), 0.1)


def _seconds_per_step(recipe: Recipe, data: DemoData, mixed: bool, seconds: float) -> float:
    with open_training(recipe, data, mixed) as loader:
        trainer = Trainer(recipe, len(data.classes), loader.device, 10**6)
        started, done = 0.0, -3  # three steps to warm up
        for batch in endless(loader):
            trainer.step(batch).item()
            done += 1
            if done == 0:
                started = time.perf_counter()
            elif done >= 5 and time.perf_counter() - started > seconds:
                break
        return (time.perf_counter() - started) / done
