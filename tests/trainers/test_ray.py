"""Ray Train: two workers share the data, and a run whose worker dies continues at its last checkpoint, exactly."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.processes import ROOT, environment
from multimix_pipe import MultiMix, MultiMixLoss, TrainTransform, open_loader

ray = pytest.importorskip("ray", reason="Ray has no wheel for this Python")

STEPS = 10  # two epochs of 37 samples in batches of 4 on 2 workers


def expected_weights(data: Path) -> dict[str, torch.Tensor]:
    """Train the recipe's model on the batches of both workers, in this process and without a crash."""
    import ray_classifier

    torch.manual_seed(0)
    settings: dict[str, Any] = {"batch_size": 4, "num_classes": 3, "device": "cpu", "num_threads": 1}
    settings |= {"mix": MultiMix(k=2), "transform": TrainTransform(size=32)}
    loaders = [open_loader(data / "train", rank=rank, world_size=2, **settings) for rank in range(2)]
    model = ray_classifier.make_model(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    loss_function = MultiMixLoss()
    for _ in range(2):
        for pair in zip(*loaders, strict=True):
            optimizer.zero_grad()
            for images, targets in pair:
                (loss_function(model(images), targets) / 2).backward()
            optimizer.step()
    return model.state_dict()


def test_a_run_whose_worker_dies_ends_as_one_that_nothing_happened_to(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_and_die_once(settings: dict[str, Any]) -> None:
        """Run the recipe; worker 1 dies in the seventh step, by when Ray knows of a checkpoint."""
        import ray_classifier

        worker, attempt = ray.train.get_context().get_world_rank(), len(list(tmp_path.glob("losses-0-*")))
        losses = []

        class Loss(MultiMixLoss):
            def forward(self, *arguments: Any) -> torch.Tensor:
                loss = super().forward(*arguments)
                losses.append(loss.item())
                (tmp_path / f"losses-{worker}-{attempt}").write_text(json.dumps(losses))
                if (worker, attempt, len(losses)) == (1, 0, 7):
                    os._exit(1)
                return loss

        ray_classifier.MultiMixLoss = Loss
        ray_classifier.train_worker(settings)  # the recipe's own: the worker has imported it anew

    import ray_classifier

    monkeypatch.setattr(ray_classifier, "train_worker", train_and_die_once)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))  # else Ray writes one to the home folder
    (tmp_path / "token").write_text(secrets.token_hex(32))
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # of 2 s, which each checkpoint waits for
    paths = [str(ROOT / "pipelines"), environment()["PYTHONPATH"]]  # for the workers
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    settings = {"train": str(data / "train"), "num_classes": 3, "epochs": 2, "batch_size": 4, "checkpoint_every": 2}
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        result = ray_classifier.fit({**settings, "workers": 2, "gpu": False, "out": str(tmp_path / "out")})
    finally:
        ray.shutdown()
    with result.checkpoint.as_directory() as folder:
        final = torch.load(Path(folder) / "parts.pt", weights_only=True)
    attempts = [json.loads((tmp_path / f"losses-1-{attempt}").read_text()) for attempt in range(2)]
    resumed_after = STEPS - len(attempts[1])
    assert resumed_after in (2, 4, 5)  # a checkpoint, and not the start
    assert attempts[0][resumed_after:] == attempts[1][: 7 - resumed_after]
    assert (final["loader"]["epoch"], final["loader"]["samples"]) == (2, 0)
    for name, weight in expected_weights(data).items():
        torch.testing.assert_close(final["model"][name], weight, rtol=0, atol=1e-6)
