"""Replays a CUDA graph of a network on the batches of a loader, and compares each result with that of the network.

    python -m programs.cuda_graphs before|meanwhile BACKEND SHARDS

The graph is captured before the first batch is taken, or again at each batch, while the loader works on the next ones.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from helpers.samples import CLASSES, TRANSFORM
from multimix_pipe import MultiMix, open_loader


def captured(network: torch.nn.Module, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """Return a graph that reads `images`, and its result. The mode is that of torch.compile: other threads may use CUDA."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = network(images)
    return graph, result


@torch.no_grad()
def main(when: str, backend: str, shards: str) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(4))
    network.cuda()
    options = {"batch_size": 8, "num_classes": CLASSES, "mix": MultiMix(k=2), "transform": TRANSFORM}
    with open_loader(shards, backend=backend, device="cuda", **options) as loader:  # type: ignore[arg-type]
        images = torch.zeros(16, 3, *TRANSFORM.height_width, device="cuda")
        for _ in range(3):
            network(images)
        torch.cuda.synchronize()
        graph, result = captured(network, images)
        for batch in loader:
            if when == "meanwhile":
                graph, result = captured(network, images)
            images.copy_(batch.images)
            graph.replay()
            assert torch.allclose(result, network(batch.images), atol=1e-5)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
