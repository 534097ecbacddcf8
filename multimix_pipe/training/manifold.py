"""Manifold mixup: the K interpolations of each pair are formed at a layer of the network that is drawn for each step."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from multimix_pipe.config import check_int
from multimix_pipe.errors import ConfigError
from multimix_pipe.plan.seeding import Stream
from multimix_pipe.runtime.tensors import MixTensors
from multimix_pipe.training.plain import (
    PlainBatch,
    bare,
    check_labels,
    check_logits,
    check_plain,
    draw_choice,
    interpolate,
    is_compiled,
    is_compiled_wrapper,
    quoted,
)
from multimix_pipe.training.targets import mix_targets

INPUT = "input"
"""The name of the images as a layer."""


class ManifoldMix:
    """Runs a model on plain batches and mixes the output of one layer, drawn for each step.

        h_k = lam_k * h + (1 - lam_k) * h'        y_k = lam_k * y + (1 - lam_k) * y'

    The layers up to the drawn one see B rows and those above it B*K. The layer is the same for all K and, because it is keyed by
    the seed, the epoch and the step's first position, for all processes of a step and after a resume.

        loader = open_loader(..., mix=MultiMix(k=5, alpha=2.0), expand=False)
        mixing = ManifoldMix(model, ["input", "layer1", "layer2"])
        for batch in loader:
            logits, targets = mixing(batch)  # (B*K, C), (B*K, C)
            loss = MultiMixLoss()(logits, targets)

    Source: Verma et al. 2019, arXiv 1806.05236; K members per pair: Shen et al. 2024, arXiv 2406.01417.
    """

    layers: tuple[str, ...]
    """The names of the layers that a step's layer is drawn from, uniformly."""

    def __init__(self, model: nn.Module, layers: str | Sequence[str], *, seed: int = 0) -> None:
        """`layers` are names from `model.named_modules()`, regular expressions that match whole names, or "input" for the images.

        A model inside DistributedDataParallel keeps its names: give them without the leading `module.`. `seed` is that of the
        draws, 0 .. 2**64-1. Raises ConfigError if a name or expression matches no layer, or if a layer lies inside a compiled
        module, whose code does not call hooks.
        """
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model must be a torch.nn.Module; found {type(model).__name__}")
        check_int("seed", seed, 0, 2**64 - 1)
        self.model = model
        self.seed = seed
        self._modules = {name: module for name, module in bare(model).named_modules() if name}
        self.layers = _resolve([layers] if isinstance(layers, str) else list(layers), self._modules)
        for name in self.layers:
            _check_not_compiled(model, name)

    def layer(self, batch: PlainBatch) -> str:
        """Return the name of the layer that `batch` is mixed at."""
        plan = check_plain(batch, "ManifoldMix")
        return self.layers[draw_choice(len(self.layers), Stream.LAYER, self.seed, plan)]

    def __call__(self, batch: PlainBatch) -> tuple[Tensor, Tensor]:
        """Run the model on a batch of `open_loader(..., expand=False)`.

        Returns:
            The logits (B*K, C) and the targets (B*K, C), float32 rows that sum to 1 (with multilabel=True they need not). Row
            b*K + k is member k of pair b.

        Raises:
            ConfigError: the batch is mixed already, or the drawn layer cannot be mixed: it is not called exactly once, or does
                not return one tensor with B rows.
        """
        name = self.layer(batch)
        mix = MixTensors.of(batch.plan.mix, batch.images.device)
        if name == INPUT:
            logits = self.model(interpolate(batch.images, mix.partner, mix.lam))
        else:
            with _mixed_at(name, self._modules[name], mix):
                logits = self.model(batch.images)
        rows = mix.lam.numel()
        check_logits(logits, rows, f" for B*K = {rows} rows")
        check_labels(batch.labels, logits.shape[1])
        return logits, mix_targets(batch.labels, mix.partner, mix.lam, logits.shape[1])

    def __repr__(self) -> str:
        return f"ManifoldMix({type(bare(self.model)).__name__}, [{quoted(self.layers)}], seed={self.seed})"


@contextmanager
def _mixed_at(name: str, module: nn.Module, mix: MixTensors) -> Iterator[None]:
    """Within the block, the output of `module` is mixed once; leaves nothing on the model."""
    calls = 0

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ConfigError(f"layer {name!r} is called more than once in a step and cannot be mixed; leave it out")
        if not isinstance(output, Tensor) or output.ndim < 1 or len(output) != len(mix.lam):
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ConfigError(
                f"layer {name!r} must return one tensor (B, ...) with B = {len(mix.lam)}; found {found}. Leave it out"
            )
        return interpolate(output, mix.partner, mix.lam)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
    if not calls:
        raise ConfigError(f"layer {name!r} was not called in this step and nothing was mixed; leave it out of layers")


def _resolve(wanted: Sequence[str], modules: dict[str, nn.Module]) -> tuple[str, ...]:
    """Return the names that names and regular expressions stand for, each once."""
    names = [INPUT, *modules]
    found: dict[str, None] = {}
    for item in wanted:
        if not isinstance(item, str):
            raise ConfigError(f"layers must be names or regular expressions; found {item!r}")
        if item in names:
            matches = [item]
        else:
            try:
                matches = [name for name in names if re.fullmatch(item, name)]
            except re.error as error:
                raise ConfigError(
                    f"layers must be names or regular expressions; found {item!r}, in which {error}"
                ) from error
        if not matches:
            near = get_close_matches(item, names, n=5, cutoff=0.5) or names[:8]
            raise ConfigError(f"layers must name modules of the model; found {item!r}. Near it: {quoted(near)}")
        found.update(dict.fromkeys(matches))
    if not found:
        raise ConfigError("layers must name at least one layer; found none. Try ['input'] for mixup of the images")
    return tuple(found)


def _check_not_compiled(model: nn.Module, layer: str) -> None:
    """Raise ConfigError if hooks on `layer` would not be called, because it is compiled together with what is around it."""
    if layer == INPUT:
        return
    inner = bare(model)
    parts = layer.split(".")
    around = {
        ".".join(parts[:depth]): inner.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts) + 1)
    }
    compiled = [
        name
        for name, module in around.items()
        if getattr(module, "_compiled_call_impl", None) is not None or (is_compiled_wrapper(module) and name != layer)
    ]
    if is_compiled(model) or compiled:
        what = repr(compiled[0]) if compiled else "the whole model"
        raise ConfigError(
            f"layer {layer!r} cannot be mixed inside compiled code, which skips hooks; found that {what} is compiled. "
            f"Compile blocks that are layers themselves, model.{parts[0]} = torch.compile(model.{parts[0]})"
        )
