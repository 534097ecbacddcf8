"""What a process takes from its surroundings: rank, threads, device, backend; and what it refuses for want of memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Open

from multimix_pipe import ConfigError, MultiMix, TrainTransform
from multimix_pipe.environment import choose_device, default_threads, rank_and_world

WITHOUT_DALI = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "nvidia":
            raise ImportError("nvidia is blocked")

sys.meta_path.insert(0, Block())
import multimix_pipe
assert not any(name.split(".")[0] == "nvidia" for name in sys.modules)
options = dict(batch_size=4, num_classes=7, device="cpu", transform=multimix_pipe.TrainTransform(size=16))
loader = multimix_pipe.open_loader(sys.argv[1], **options)
print(loader.backend, tuple(next(iter(loader)).images.shape))
try:
    multimix_pipe.open_loader(sys.argv[1], backend="dali", **options)
except multimix_pipe.MissingBackendError as error:
    print(error)
"""


def test_without_dali_auto_is_torch_and_dali_is_an_error_with_the_pip_command(shards: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", WITHOUT_DALI, str(shards)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    used, refused = done.stdout.splitlines()
    assert used == "torch (20, 3, 16, 16)"
    assert "nvidia is blocked" in refused
    assert "pip install 'multimix-pipe[dali]'" in refused
    assert 'backend="torch"' in refused


def test_rank_and_world_size_come_from_torchruns_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_and_world(None, None) == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert rank_and_world(None, None) == (3, 8)
    assert rank_and_world(1, 2) == (1, 2)
    with pytest.raises(ConfigError, match="given together"):
        rank_and_world(1, None)
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ConfigError, match="RANK must be a whole number; found 'first'"):
        rank_and_world(None, None)


def test_the_cores_are_shared_between_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    assert default_threads() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert default_threads() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert default_threads() == 1


def test_cuda_is_the_gpu_of_the_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert choose_device("cuda") == choose_device("auto") == torch.device("cuda", 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ConfigError, match="cuda:4 must be one of the 4 GPUs"):
        choose_device("cuda")


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="needs a CUDA GPU"):
        choose_device("cuda")
    for device in ("tpu", "xpu", "", "cpu:x"):
        with pytest.raises(ConfigError, match="device must be"):
            choose_device(device)


def test_a_batch_larger_than_the_memory_is_refused_before_anything_is_read(opened: Open, backend: str) -> None:
    with pytest.raises(ConfigError, match=r"a batch must fit the memory of cpu, .* Lower batch_size or k"):
        opened(backend=backend, batch_size=10**6, mix=MultiMix(k=1000), transform=TrainTransform(size=224))
