"""`evaluate`: one pass over the data for every figure."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multimix_pipe.config import check_int
from multimix_pipe.errors import ConfigError
from multimix_pipe.shards.progress import Progress
from multimix_pipe.training.evaluation import calibration as calibrate
from multimix_pipe.training.evaluation.attacks import Attack
from multimix_pipe.training.evaluation.corruptions import SEVERITIES, check_corruptions, corrupt
from multimix_pipe.training.evaluation.published import published_sets
from multimix_pipe.training.plain import check_logits, evaluating

Variant = tuple[str, ...]
"""("clean",), ("corruptions", name, severity), ("attacks", name) or ("published", name, severity)."""
Change = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
"""Changes images (B, C, H, W) in [0, 1], given their labels and a number for each sample."""

CLEAN: Variant = ("clean",)


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    calibration: Iterable[Any] | None = None,
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = SEVERITIES,
    attacks: Sequence[Attack] = (),
    published: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure the accuracy and calibration of a model, also on corrupted and attacked images.

    The images are read once, and each variant of a batch is made from them. The model runs in eval mode, under the caller's
    autocast, and is put back into its modes afterwards.

    Args:
        model: maps normalised images (B, C, H, W) to logits (B, classes).
        loader: batches of `open_loader(..., transform=EvalTransform())`, or (images, class ids) from any other loader. If it is
            one of several processes' loaders, each process passes its own, and all get the figures of all samples.
        calibration: batches of held-out samples that a temperature is fitted on. Default: none, and no scaled figures. Do not use
            the samples of `loader`.
        corruptions: names in `multimix_pipe.training.evaluation.CORRUPTIONS`.
        severities: which of 1 .. 5 of each.
        attacks: `FGSM` and `PGD` objects.
        published: a folder in the layout of ImageNet-C or CIFAR-10-C. Images are resized to the loader's size if they differ.
        classes: names in the order of the class ids, for the folders in `published`. Default: alphabetical.
        mean, std: what the loader normalises by, for pixels in [0, 1]. Default: those of the loader's transform.
        seed: of the corruptions' noise, which is keyed by the sample.
        progress: whether to show progress on stderr.

    Returns:
        A dict that is ready for JSON. `report["clean"]["raw"]` has `top1`, `top5`, `nll`, `brier`, `ece`, `adaptive_ece` and
        `signed_gap` (see `multimix_pipe.training.evaluation.metrics`), `report["clean"]["scaled"]` the same after temperature
        scaling, or None. `report["corruptions"][name][severity]`, `report["attacks"][name]` and
        `report["published"][name][severity]` hold such pairs, too. The rest is `samples`, `classes`, `temperature` and, for the
        clean images, `reliability`.

    Raises:
        ConfigError: an argument is invalid, the batches are mixed or repeat samples, or a label is not among the model's outputs.

    >>> report = evaluate(nn.Linear(4, 3), [(torch.rand(8, 4), torch.arange(8) % 3)])
    >>> sorted(report["clean"]["raw"])
    ['adaptive_ece', 'brier', 'ece', 'nll', 'signed_gap', 'top1', 'top5']
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"evaluate takes the model first, then the loader; found {type(model).__name__} as the model")
    check_corruptions(corruptions)
    for severity in severities:
        check_int("severities", severity, 1, 5)
    place = _Place(model, loader, mean, std)
    sets = [] if published is None else published_sets(Path(published), classes)
    changes: dict[Variant, Change | None] = {CLEAN: None}
    for name in corruptions:
        for severity in severities:
            changes["corruptions", name, str(severity)] = partial(_corrupted, name, severity, seed)
    for attack in attacks:
        changes["attacks", attack.name] = partial(attack, place.forward)
    if (len(changes) > 1 or sets) and not place.can_denormalise:
        raise ConfigError(
            "corruptions and attacks work on pixels: pass the mean= and std= that the loader normalises by; found none"
        )
    with (
        evaluating(model),
        torch.no_grad(),
        Progress("evaluating", total=None, unit="batch", disable=not progress) as bar,
    ):
        temperature = None if calibration is None else _temperature(place, calibration, bar)
        rows: defaultdict[Variant, list[Tensor]] = defaultdict(list)
        for images, labels, samples in place.batches(loader, bar):
            pixels = place.pixels(images) if len(changes) > 1 else images
            for variant, change in changes.items():
                changed = (
                    images if change is None else place.normalise(change(pixels, labels, samples)).to(images.dtype)
                )
                rows[variant].append(place.rows(changed, labels, temperature))
        for part in sets:
            variant = ("published", part.corruption, part.severity)
            changes[variant] = None
            for pixels, labels in part.batches(place.size, place.rank, place.world):
                changed = place.normalise(pixels.to(place.device))
                rows[variant].append(place.rows(changed, labels.to(place.device), temperature))
                bar.update()
    report: dict[str, Any] = {}
    for variant in changes:
        everything = place.gather(torch.cat(rows[variant]) if rows[variant] else torch.zeros(0, 0))
        if not len(everything):
            raise ConfigError(f"evaluation needs at least one sample; found none for {' '.join(variant)}")
        found = _figures(everything, calibrate.metrics, temperature)
        if variant == CLEAN:
            classes_found = int(place.gather(torch.tensor([[float(place.classes)]])).max())
            report |= {"samples": len(everything), "classes": classes_found, "temperature": temperature}
            report["reliability"] = _figures(everything, calibrate.reliability, temperature)
        _nest(report, variant, found)
    return report


_WIDTH = len(calibrate.COLUMNS)


def _figures(rows: Tensor, of: Callable[[Tensor], dict[str, Any]], temperature: float | None) -> dict[str, Any]:
    return {"raw": of(rows[:, :_WIDTH]), "scaled": None if temperature is None else of(rows[:, _WIDTH:])}


def _nest(report: dict[str, Any], variant: Variant, found: dict[str, Any]) -> None:
    *outer, last = variant
    for key in outer:
        report = report.setdefault(key, {})
    report[last] = found


def _corrupted(name: str, severity: int, seed: int, pixels: Tensor, labels: Tensor, samples: Sequence[int]) -> Tensor:
    return corrupt(pixels, name, severity, samples, seed)


def _temperature(place: _Place, calibration: Iterable[Any], bar: Progress) -> float:
    logits, labels = [], []
    for images, ids, _ in place.batches(calibration, bar):
        logits.append(place.logits(images, ids).float().cpu())
        labels.append(ids.cpu())
    rows = torch.cat([torch.cat(logits), torch.cat(labels)[:, None].float()], dim=1) if logits else torch.zeros(0, 0)
    everything = place.gather(rows)
    if not len(everything):
        raise ConfigError("calibration needs at least one sample; found none")
    return calibrate.fit_temperature(everything[:, :-1], everything[:, -1].long())


class _Place:
    """Where an evaluation runs: the model and its device, the pixels behind normalised images, and the other processes."""

    def __init__(
        self, model: nn.Module, loader: Iterable[Any], mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> None:
        config = _config_of(loader)
        # DistributedDataParallel synchronises buffers in each forward pass, but processes may have different numbers of batches
        self.model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self.classes = 0
        self.size = (0, 0) if config is None else config.transform.height_width
        tensors = [*model.parameters(), *model.buffers()]
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self.rank, self.world = _processes(loader)
        mean = config.transform.mean if mean is None and config is not None else mean
        std = config.transform.std if std is None and config is not None else std
        self.can_denormalise = mean is not None and std is not None
        self._mean, self._std = (
            None if part is None else torch.tensor(list(part), device=self.device)[:, None, None]
            for part in (mean, std)
        )

    def batches(self, loader: Iterable[Any], bar: Progress) -> Iterator[tuple[Tensor, Tensor, Sequence[int]]]:
        """Yield images and labels on the model's device, and a number for each sample."""
        _check_whole(loader)
        seen = 0
        for batch in loader:
            images, labels = batch
            if (
                not isinstance(labels, Tensor)
                or labels.dtype != torch.int64
                or labels.ndim != 1
                or len(labels) != len(images)
            ):
                found = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
                raise ConfigError(
                    "evaluation takes plain images (B, ...) with class ids (B,) int64, as open_loader gives them with "
                    f"transform=EvalTransform(); found targets {found}. For several labels per sample see "
                    "docs/guides/multilabel.md"
                )
            numbers = getattr(getattr(batch, "plan", None), "sample", range(seen, seen + len(images)))
            seen += len(images)
            self.size = (images.shape[2], images.shape[3]) if images.ndim == 4 else self.size
            yield images.to(self.device), labels.to(self.device), list(map(int, numbers))
            bar.update()

    def logits(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return logits (B, C). Raises ConfigError if a label is not among the classes."""
        logits = check_logits(self.model(images), len(images))
        self.classes = logits.shape[1]
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise ConfigError(
                f"the evaluation set must have the model's classes, labels in [0, {self.classes}); "
                f"found {int(labels.min())} .. {int(labels.max())}"
            )
        return logits

    def rows(self, images: Tensor, labels: Tensor, temperature: float | None) -> Tensor:
        """Return what the metrics need of each row, float64: (B, 5), or (B, 10) with that after temperature scaling."""
        logits = self.logits(images, labels)
        scales = (1.0,) if temperature is None else (1.0, temperature)
        parts = [calibrate.row_statistics(logits, labels, scale) for scale in scales]
        return torch.cat(parts, dim=1)

    def pixels(self, images: Tensor) -> Tensor:
        """Return the pixels in [0, 1] of normalised images."""
        assert self._mean is not None
        assert self._std is not None
        return (images.float() * self._std + self._mean).clamp(0, 1)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return (pixels - mean) / std."""
        assert self._mean is not None
        assert self._std is not None
        return (pixels - self._mean) / self._std

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits of pixels in [0, 1]."""
        logits: Tensor = self.model(self.normalise(pixels))
        return logits

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, which may have different numbers of them."""
        if self.world == 1:
            return rows
        device = self.device if dist.get_backend() == "nccl" else torch.device("cpu")
        shapes = [torch.zeros(2, dtype=torch.int64, device=device) for _ in range(self.world)]
        dist.all_gather(shapes, torch.tensor(rows.shape, device=device))
        longest, width = torch.stack(shapes).amax(0).tolist()  # a process without any row does not know their width
        padded = torch.zeros(longest, width, dtype=torch.float64, device=device)
        padded[: len(rows), : rows.shape[1]] = rows.to(padded)
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(shape[0])] for part, shape in zip(parts, shapes, strict=True)]).cpu()


def _config_of(loader: Iterable[Any]) -> Any:
    """Return the settings of one of this package's loaders, or None."""
    return getattr(getattr(loader, "context", None), "config", None)


def _check_whole(loader: Iterable[Any]) -> None:
    """Raise ConfigError if a loader of this package repeats samples or leaves some out."""
    config = _config_of(loader)
    if config is None or config.last_batch == "partial":
        return
    count = len(loader.context.plan.samples)  # type: ignore[attr-defined]
    if count % (config.batch_size * _processes(loader)[1]):
        raise ConfigError(
            f'evaluation needs each sample once; found last_batch="{config.last_batch}", with which an epoch of {count} samples '
            "repeats some or drops some. Open the loader with transform=EvalTransform()"
        )


def _processes(loader: Iterable[Any]) -> tuple[int, int]:
    """Return this process's rank and their number: those that the loader divides the samples among."""
    active = dist.is_available() and dist.is_initialized()
    own = getattr(loader, "world", None) if _config_of(loader) is not None else None
    world = own.size if own is not None else dist.get_world_size() if active else 1
    if world == 1:
        return 0, 1
    if not active or dist.get_world_size() != world:
        raise ConfigError(
            f"the loader is one of {world} processes' loaders, whose figures are added up by torch.distributed; found "
            f"{dist.get_world_size() if active else 'no'} initialised processes. Pass rank=0, world_size=1 to open_loader to "
            "evaluate everything in this process"
        )
    return dist.get_rank(), world
