"""torch.distributed.checkpoint, torch.compile and DistributedDataParallel take the loader's state and batches as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.nn.parallel import DistributedDataParallel

from helpers.batches import fingerprint, same_batch
from helpers.processes import torchrun
from multimix_pipe import Loader, MultiMix, MultiMixLoss, TrainTransform, open_loader


def open_train(data: Path, batch_size: int = 8, **more: Any) -> Loader:
    options: dict[str, Any] = {"batch_size": batch_size, "num_classes": 3, "device": "cpu", "num_threads": 1, **more}
    return open_loader(data / "train", mix=MultiMix(k=2), transform=TrainTransform(size=16), **options)


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


def test_a_distributed_checkpoint_of_two_processes_takes_the_loader_itself(data: Path, tmp_path: Path) -> None:
    torchrun(2, "-m", "trainers.dcp_two", data, tmp_path, timeout=120)
    for rank in range(2):
        with open_train(data, batch_size=4, rank=rank, world_size=2) as loader:
            model = torch.nn.Linear(2, 2).state_dict()
            dcp.load({"model": model, "loader": loader}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
            assert loader.steps_done == 3
            remaining = json.loads((tmp_path / f"{rank}.json").read_text())
            assert [fingerprint(batch) for batch in loader] == remaining
            assert len(remaining) == 2


@pytest.mark.parametrize(("last_batch", "compilations"), [("wrap", 1), ("partial", 2)])
def test_a_step_is_compiled_once_per_shape_and_gives_the_same_loss(
    last_batch: str, compilations: int, data: Path
) -> None:
    torch.compiler.reset()
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
    with open_train(data, last_batch=last_batch) as loader:
        for _ in range(2):
            for images, targets in loader:
                assert torch.equal(compiled(images, targets), step(images, targets))
    assert len(graphs) == compilations


def test_ddp_communicates_in_the_first_step_of_a_validation_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(torch.nn.BatchNorm1d(2))
        model(torch.rand(4, 2)).sum().backward()
        passes: list[None] = []
        monkeypatch.setattr(model, "_sync_buffers", lambda: passes.append(None))
        counts = []
        with torch.inference_mode():
            for _ in range(3):
                model.eval()(torch.zeros(4, 2))
                counts.append(len(passes))
    finally:
        dist.destroy_process_group()
    assert counts == [1, 1, 1]
