"""Ray Train: two workers share the data, and a run whose worker dies ends as one that nothing happened to."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.processes import ROOT, environment

ray = pytest.importorskip("ray", reason="Ray has no wheel for this Python")


def weights(data: Path, out: Path, **more: Any) -> dict[str, torch.Tensor]:
    import ray_classifier

    fixed = {"train": str(data / "train"), "num_classes": 3, "epochs": 2, "batch_size": 4, "checkpoint_every": 2}
    result = ray_classifier.fit({**fixed, "workers": 2, "gpu": False, "out": str(out), **more})
    with result.checkpoint.as_directory() as folder:
        loaded: dict[str, dict[str, torch.Tensor]] = torch.load(Path(folder) / "parts.pt", weights_only=True)
    assert loaded["loader"]["epoch"] == 2
    return loaded["model"]


def test_a_run_whose_worker_dies_ends_as_one_that_nothing_happened_to(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = tmp_path / "died"

    def die_once(step: int, checkpoint: object) -> None:
        if step == 4 and checkpoint is None and ray.train.get_context().get_world_rank() == 1:
            died.touch()
            os._exit(1)

    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))  # else Ray writes one to the home folder
    (tmp_path / "token").write_text(secrets.token_hex(32))
    paths = [str(ROOT / "pipelines"), environment()["PYTHONPATH"]]  # for the workers
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        whole = weights(data, tmp_path / "whole")
        crashed = weights(data, tmp_path / "crashed", after_step=die_once)
    finally:
        ray.shutdown()
    assert died.exists()
    assert all(torch.equal(whole[name], crashed[name]) for name in whole)
