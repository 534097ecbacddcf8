"""torch.distributed.checkpoint and torch.compile take the loader's state and batches as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from helpers.batches import same_batch
from multimix_pipe import Loader, MultiMix, MultiMixLoss, TrainTransform, open_loader


def open_train(data: Path) -> Loader:
    transform = TrainTransform(size=16)
    options: dict[str, Any] = {"batch_size": 8, "num_classes": 3, "device": "cpu", "num_threads": 1}
    return open_loader(data / "train", mix=MultiMix(k=2), transform=transform, **options)


@pytest.mark.parametrize("steps", [0, 3, 5])
def test_a_distributed_checkpoint_keeps_the_position(steps: int, data: Path, tmp_path: Path) -> None:
    with open_train(data) as first, open_train(data) as second:
        batches = iter(first)
        for _ in range(steps):
            next(batches)
        dcp.save({"loader": first.state_dict()}, checkpoint_id=tmp_path / "checkpoint")
        state = {"loader": second.state_dict()}
        dcp.load(state, checkpoint_id=tmp_path / "checkpoint")
        assert state["loader"] == first.state_dict()
        second.load_state_dict(state["loader"])
        expected = next(batches) if steps < 5 else next(iter(first))
        assert same_batch(next(iter(second)), expected)


def test_a_distributed_checkpoint_takes_the_loader_itself(data: Path, tmp_path: Path) -> None:
    with open_train(data) as first, open_train(data) as second:
        batches = iter(first)
        next(batches)
        dcp.save({"loader": first}, checkpoint_id=tmp_path / "checkpoint")
        dcp.load({"loader": second}, checkpoint_id=tmp_path / "checkpoint")
        assert same_batch(next(iter(second)), next(batches))


def test_a_compiled_step_is_compiled_once_and_gives_the_same_loss(data: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3))
    loss_function = MultiMixLoss()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    def step(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = loss_function(model(images), targets)
        return loss

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    with open_train(data) as loader:
        for images, targets in loader:
            assert torch.equal(compiled(images, targets), step(images, targets))
    assert len(graphs) == 1
