"""What a process takes from its surroundings: rank, threads, device, backend; and what it refuses for want of memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.batches import Open, all_same
from multimix_pipe import ConfigError, MultiMix, TrainTransform
from multimix_pipe.loader.rank import choose_device
from multimix_pipe.runtime.mix_stage import HostMixStage
from multimix_pipe.shards import cores
from multimix_pipe.shards.cores import share_of_cores, usable_cores

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
    assert done.stderr.count("pip install 'multimix-pipe[dali]'") == 1


def test_a_launcher_that_binds_each_process_to_cores_has_shared_them_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(cores, "_quotas", lambda root: iter(()))
    assert share_of_cores() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert share_of_cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert share_of_cores() == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16 if process else 4)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert share_of_cores() == 4


CGROUPS = {
    "no cgroups": ({}, 16),
    "v2, no limit": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
    "v2": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
    "v2, a part of a core": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
    "v2, one and a half": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
    "v2, an ancestor's": (
        {
            "proc/self/cgroup": "0::/pod/app\n",
            "sys/fs/cgroup/pod/app/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/cpu.max": "300000 100000\n",
        },
        3,
    ),
    "v2, the least": (
        {
            "proc/self/cgroup": "0::/pod/app\n",
            "sys/fs/cgroup/pod/app/cpu.max": "800000 100000\n",
            "sys/fs/cgroup/pod/cpu.max": "500000 100000\n",
        },
        5,
    ),
    "v1": (
        {
            "proc/self/cgroup": "9:memory:/x\n4:cpu,cpuacct:/x\n",
            "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    "v1, no limit": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        16,
    ),
    "more than there are": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 16),
}


@pytest.mark.parametrize(("files", "expected"), CGROUPS.values(), ids=CGROUPS)
def test_a_containers_quota_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == expected


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="needs a CUDA GPU"):
        choose_device("cuda")
    for device in ("tpu", "xpu", "", "cpu:x"):
        with pytest.raises(ConfigError, match="device must be"):
            choose_device(device)


def test_a_batch_larger_than_the_memory_is_refused_at_opening(opened: Open, backend: str) -> None:
    sizes = "batch_size=1000000 times k=1000 images of 3x224x224"
    with pytest.raises(ConfigError, match=rf"must fit in the memory of cpu, .* {sizes} .* Lower batch_size or k"):
        opened(backend=backend, batch_size=10**6, mix=MultiMix(k=1000), transform=TrainTransform(size=224))


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError("Critical error in pipeline:\nCan't allocate 129499136 bytes on device 0."),  # DALI's words
    RuntimeError("Error in thread 0: std::bad_alloc"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["torch", "python", "device", "host"])
def test_out_of_memory_is_an_error_that_says_what_a_batch_needs(
    opened: Open, backend: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(self: HostMixStage, step: object, pixels: object) -> None:
        raise error

    options = {"backend": backend, "mix": MultiMix(k=4), "transform": TrainTransform(size=50), "dtype": "float16"}
    loader = opened(**options, prefetch=3)
    with monkeypatch.context() as patch:
        patch.setattr(HostMixStage, "finish", full)
        with pytest.raises(ConfigError) as raised:
            next(iter(loader))
    assert raised.value.__cause__ is error
    message = str(raised.value)
    assert "on cpu needs more memory than is free" in message
    assert f"{type(error).__name__}: {' '.join(str(error).split())}" in message
    assert "\n" not in message
    assert "batch_size=8 times k=4 images of 3x50x50 in float16 take 0.00048 GB" in message
    assert "prefetch=3 keeps 4 batches of 8 decoded images, 0.00024 GB" in message
    loader.set_epoch(0)
    assert all_same(list(loader), list(opened(**options)))


def test_another_runtime_error_stays_what_it_is(opened: Open, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: HostMixStage, step: object, pixels: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(HostMixStage, "finish", broken)
    with pytest.raises(RuntimeError, match="an illegal memory access"):
        next(iter(opened(backend=backend)))
