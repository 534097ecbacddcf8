"""Small DALI pipelines for tests. Import this only if DALI can be imported."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def

from multimix_pipe.dali import multi_mix


def run(pipeline: Pipeline) -> list[torch.Tensor]:
    """Return copies of a pipeline's next outputs."""
    return [torch.from_dlpack(output.as_tensor()).clone() for output in pipeline.run()]


def stage_on(
    images: np.ndarray, labels: np.ndarray, /, input_layout: str = "CHW", device: str = "cpu", **options: object
) -> Iterator[list[torch.Tensor]]:
    """Yield `multi_mix` of the same batch again and again: images (B, K, ...) and targets (B, K, num_classes)."""

    @pipeline_def(batch_size=len(images), num_threads=1, device_id=None if device == "cpu" else 0)
    def pipeline() -> tuple[object, ...]:
        x = fn.external_source(source=lambda: list(images), layout=input_layout, ndim=3)
        y = fn.external_source(source=lambda: list(labels), ndim=labels.ndim - 1)
        if device == "gpu":
            x, y = x.gpu(), y.gpu()
        return multi_mix(x, y, **options)  # type: ignore[arg-type]

    built = pipeline()
    built.build()
    while True:
        yield run(built)
