"""What only a GPU can show: parity with the CPU, and that no memory is used again while a kernel still reads it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.backends import needs_dali
from helpers.batches import Open, same_batch
from helpers.methods import registered
from helpers.processes import environment
from helpers.samples import CLASSES
from multimix_pipe import Batch, EvalTransform, MultiMix, MultiMixLoss, TrainTransform, mix_batch, mixed_accuracy
from multimix_pipe.mixing import MixPlan, reference
from multimix_pipe.plan import draw_mixing
from multimix_pipe.runtime.kernels import Layout, blend
from multimix_pipe.runtime.tensors import MixTensors
from test_bad_samples import WHOLE, shards_with

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU that torch can use")

SWITCH = {"mixup": 0.4, "cutmix": 0.3, "smoothmix": 0.3}
BLEND_TOLERANCE = 1e-6
"""Float32 arithmetic on a GPU, for values of a few units: its compilers may fuse a product and a sum."""


def a_batch(method: str = "mixup") -> tuple[np.ndarray, MixPlan]:
    """Six images (3, 17, 19) and a plan for them with K = 5."""
    images = np.random.default_rng(3).standard_normal((6, 3, 17, 19), dtype=np.float32)
    return images, draw_mixing(MultiMix(k=5, method=method), 3, 0, 0, 6, (17, 19))


@pytest.mark.parametrize("name", ["mixup", "cutmix", "smoothmix", "split"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_device_blend_is_the_reference_and_one_member_gives_its_row(dtype: torch.dtype, name: str) -> None:
    with registered("split"):
        array, plan = a_batch(name)
        images, layout = torch.from_numpy(array).cuda(), Layout.of(array.shape[1:])
        mix = MixTensors.of(plan, images.device)
        five = blend(images, mix, images.new_empty((6, 5, *images.shape[1:]), dtype=dtype), layout)
        oracle = torch.from_numpy(reference.mix_images(array, plan)).unflatten(0, (6, 5))
    tolerance = BLEND_TOLERANCE if dtype == torch.float32 else torch.finfo(dtype).eps
    assert torch.allclose(five.cpu().float(), oracle.to(dtype).float(), rtol=tolerance, atol=BLEND_TOLERANCE)
    for k in range(5):
        box, factors = (None if part is None else part[:, k : k + 1] for part in (mix.box, mix.factors))
        alone = replace(mix, lam=mix.lam[:, k : k + 1], box=box, factors=factors)
        one = blend(images, alone, images.new_empty((6, 1, *images.shape[1:]), dtype=dtype), layout)
        assert one[:, 0].equal(five[:, k])


@needs_dali
def test_the_dali_stage_is_the_oracle_on_the_gpu() -> None:
    from helpers.dali_pipelines import stage_on

    images, labels = a_batch()[0], np.arange(6) % CLASSES
    on_cpu, on_gpu = (
        next(stage_on(images, labels, device=device, num_classes=CLASSES, k=5)) for device in ("cpu", "gpu")
    )
    for expected, found in zip(on_cpu, on_gpu, strict=True):
        assert found.is_cuda
        assert torch.allclose(found.cpu(), expected, rtol=0, atol=BLEND_TOLERANCE)


@pytest.mark.parametrize("targets", ["rows", "pairs"])
def test_several_labels_on_a_gpu_are_those_on_the_cpu(opened: Open, backend: str, targets: str) -> None:
    settings = {"backend": backend, "mix": MultiMix(k=3, partners="each"), "multilabel": True, "targets": targets}
    on_cpu, on_gpu = (next(iter(opened(device=device, **settings))) for device in ("cpu", "cuda"))
    assert on_gpu.labels.is_cuda
    for expected, found in zip(*map(_parts, (on_cpu, on_gpu)), strict=True):
        assert torch.allclose(found.cpu(), expected, rtol=0, atol=BLEND_TOLERANCE)
    logits = torch.randn(24, CLASSES)
    loss = MultiMixLoss(multilabel=True)
    assert torch.allclose(loss(logits.cuda(), on_gpu.targets).cpu(), loss(logits, on_cpu.targets), rtol=0, atol=1e-6)


def _parts(batch: Batch) -> tuple[Tensor, ...]:
    return (batch.labels, *(batch.targets if isinstance(batch.targets, tuple) else (batch.targets,)))


def test_rows_of_several_labels_give_nan_where_one_is_meant() -> None:
    logits, rows = torch.zeros(4, 3, device="cuda"), torch.ones(4, 3, device="cuda")
    assert MultiMixLoss()(logits, rows).isnan()
    assert mixed_accuracy(logits, rows).isnan()
    assert MultiMixLoss()(logits, rows / 3).isfinite()


@needs_dali
def test_the_dali_stage_mixes_several_labels_on_the_gpu() -> None:
    from helpers.dali_pipelines import stage_on

    images, labels = a_batch()[0], (np.arange(6 * CLASSES).reshape(6, CLASSES) % 3 == 0).astype(np.int64)
    options: dict[str, object] = {"num_classes": CLASSES, "k": 5, "multilabel": True}
    on_cpu, on_gpu = (next(stage_on(images, labels, device=device, **options))[1] for device in ("cpu", "gpu"))
    assert torch.allclose(on_gpu.cpu(), on_cpu, rtol=0, atol=BLEND_TOLERANCE)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_gpu_batch_is_the_cpus(opened: Open, backend: str, dtype: str, channels_last: bool) -> None:
    settings: dict[str, object] = {"backend": backend, "mix": MultiMix(k=3), "channels_last": channels_last}
    found = next(iter(opened(device="cuda", dtype=dtype, **settings)))
    expected = next(iter(opened(device="cpu", **settings)))
    assert found.images.is_cuda
    assert found.images.dtype == getattr(torch, dtype)
    assert found.images.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert found.keys == expected.keys
    assert found.targets.cpu().equal(expected.targets)  # type: ignore[union-attr, arg-type]
    assert not found.images.isnan().any()
    # nvJPEG is not libjpeg-turbo: a value of 0..255 may differ by one or two
    assert (found.images.cpu().float() - expected.images).abs().mean() < 0.03


@pytest.mark.parametrize(
    "transform", [TrainTransform(size=24), EvalTransform(size=24, resize=28)], ids=["train", "eval"]
)
@pytest.mark.parametrize("exif", [False, True])
def test_two_runs_on_a_gpu_are_the_same(opened: Open, backend: str, transform: TrainTransform, exif: bool) -> None:
    settings: dict[str, object] = {"backend": backend, "device": "cuda", "transform": transform, "exif": exif}
    if transform.random and exif:
        settings["mix"] = CROPS["switch"]
    first, second = opened(**settings), opened(**settings)
    assert all(map(same_batch, first, second))


@pytest.mark.parametrize("mix", [MultiMix(k=3), MultiMix(k=3, method=SWITCH, partners="each")], ids=["mixup", "switch"])
def test_a_gpu_loaders_rows_are_the_oracle_of_its_plain_batch(opened: Open, backend: str, mix: MultiMix) -> None:
    plain = next(iter(opened(device="cuda", backend=backend, mix=None)))
    mixed = next(iter(opened(device="cuda", backend=backend, mix=mix)))
    assert plain.images.is_cuda
    oracle = torch.from_numpy(reference.mix_images(plain.images.cpu().numpy(), mixed.plan.mix))
    assert torch.allclose(mixed.images.cpu(), oracle, rtol=0, atol=BLEND_TOLERANCE)


CROPS: dict[str, MultiMix] = {
    "mixup": MultiMix(k=3, crops="each"),
    "switch": MultiMix(k=3, method=SWITCH, partners="each", crops="each"),
    "no mixing": MultiMix(k=3, prob=0.0, crops="each"),
}


@pytest.mark.parametrize("exif", [False, True])
@pytest.mark.parametrize("name", CROPS)
def test_the_crops_of_each_member_are_mixed_as_the_oracle_does_and_shown_as_on_the_cpu(
    opened: Open, backend: str, name: str, exif: bool
) -> None:
    settings: dict[str, object] = {"backend": backend, "mix": CROPS[name], "exif": exif, "decode": "exact"}
    plain, mixed = (next(iter(opened(device="cuda", expand=expand, **settings))) for expand in (False, True))
    assert plain.images.is_cuda
    assert plain.images.shape == mixed.images.shape == (24, 3, 24, 24)
    oracle = torch.from_numpy(reference.mix_images(plain.images.cpu().numpy(), mixed.plan.mix.of_crops()))
    assert torch.allclose(mixed.images.cpu(), oracle, rtol=0, atol=BLEND_TOLERANCE)
    on_cpu = next(iter(opened(device="cpu", expand=False, **settings)))
    assert np.array_equal(on_cpu.plan.window, plain.plan.window)
    # nvJPEG is not libjpeg-turbo: a value of 0..255 may differ by one or two
    assert (plain.images.cpu() - on_cpu.images).abs().mean() < 0.03
    same = next(iter(opened(device="cuda", **{**settings, "mix": None})))
    # a decoder may treat the edges of a region otherwise: chroma there is made of pixels outside
    assert (plain.images[::3] - same.images).abs().mean() < 0.01


def test_settings_with_other_crops_from_an_epoch_on_follow_on_a_gpu(opened: Open, backend: str) -> None:
    parts = [MultiMix(k=3, crops="each"), MultiMix(k=2), MultiMix(k=2, method="resizemix", crops="each"), None]
    settings: dict[str, object] = {"backend": backend, "device": "cuda", "batch_size": 25, "decode": "exact"}
    loader = opened(mix=dict(enumerate(parts)), **settings)
    for epoch, mix in enumerate(parts):
        alone = opened(mix=mix, **settings)
        alone.set_epoch(epoch)
        for batch, expected in zip(loader, alone, strict=True):
            assert np.array_equal(batch.plan.window, expected.plan.window)
            assert torch.allclose(batch.images, expected.images, rtol=0, atol=BLEND_TOLERANCE)


@needs_dali
def test_exact_pixels_do_not_depend_on_the_batch_and_fast_ones_repeat(
    opened: Open, backend: str, tmp_path: Path
) -> None:
    """Of JPEG, progressive, gray and PNG alike; "fast" shares a batch between two decoders."""
    if backend != "dali":
        pytest.skip("decode= is for DALI")
    settings: dict[str, object] = {"backend": backend, "device": "cuda", "mix": None, "shuffle": "none"}
    settings |= {"transform": EvalTransform(size=24, resize=28), "last_batch": "partial"}

    def by_key(**options: object) -> dict[str, Tensor]:
        batches = opened(**{**settings, **options})
        return {key: image for batch in batches for key, image in zip(batch.keys, batch.images.cpu(), strict=True)}

    expected = by_key(decode="exact", batch_size=100)
    for batch_size in (1, 7, 64):
        found = by_key(decode="exact", batch_size=batch_size)
        assert all(found[key].equal(image) for key, image in expected.items())
    first, second = by_key(decode="fast", batch_size=64), by_key(decode="fast", batch_size=64)
    assert all(second[key].equal(image) for key, image in first.items())


def slowly(images: Tensor) -> Tensor:
    """A sum over the batch that a stream computes some tens of milliseconds later."""
    torch.cuda._sleep(100_000_000)
    return images.double().sum((1, 2, 3))


def reference_sums(opened: Open, **settings: object) -> list[Tensor]:
    sums = []
    for batch in opened(**settings):
        torch.cuda.synchronize()
        sums.append(batch.images.double().sum((1, 2, 3)))
        torch.cuda.synchronize()
    return sums


@pytest.mark.parametrize(
    "mix", [None, MultiMix(k=2), MultiMix(k=2, crops="each")], ids=["plain", "mixed", "crops each"]
)
def test_a_batch_dropped_while_a_kernel_is_pending_is_not_overwritten(
    opened: Open, backend: str, mix: MultiMix | None
) -> None:
    settings: dict[str, object] = {"backend": backend, "device": "cuda", "mix": mix}
    sums = []
    for batch in opened(**settings):
        sums.append(slowly(batch.images))
        del batch
    torch.cuda.synchronize()
    assert all(map(torch.equal, sums, reference_sums(opened, **settings)))


def test_a_consumer_on_another_stream_sees_whole_batches(opened: Open, backend: str) -> None:
    settings: dict[str, object] = {"backend": backend, "device": "cuda", "mix": MultiMix(k=2)}
    side, sums, kept = torch.cuda.Stream(), [], []
    for batch in opened(**settings):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            sums.append(slowly(batch.images))
        kept.append(batch)  # the contract of another stream: it waits, and keeps the batch
    torch.cuda.synchronize()
    assert all(map(torch.equal, sums, reference_sums(opened, **settings)))


def test_a_loop_inside_another_stream_works(opened: Open, backend: str) -> None:
    settings: dict[str, object] = {"backend": backend, "device": "cuda", "mix": MultiMix(k=2)}
    with torch.cuda.stream(torch.cuda.Stream()):
        sums = [slowly(batch.images) for batch in opened(**settings)]
    torch.cuda.synchronize()
    assert all(map(torch.equal, sums, reference_sums(opened, **settings)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "mix", [None, MultiMix(k=2), MultiMix(k=2, crops="each")], ids=["plain", "mixed", "crops each"]
)
def test_a_stream_that_lags_behind_sees_whole_batches(
    opened: Open, backend: str, mix: MultiMix | None, dtype: str
) -> None:
    """What the executor itself still has to do on the stream waits there too, and what it reads must not be used again."""
    settings: dict[str, object] = {"backend": backend, "device": "cuda", "mix": mix, "dtype": dtype, "prefetch": 1}
    batches = iter(opened(**settings))
    next(batches)  # all is built now: what follows takes milliseconds
    torch.cuda._sleep(2_000_000_000)  # about a second: all batches are handed out before the second one is looked at
    sums = [batch.images.double().sum((1, 2, 3)) for batch in batches]
    torch.cuda.synchronize()
    assert all(map(torch.equal, sums, reference_sums(opened, **settings)[1:]))


@pytest.mark.parametrize("targets", ["rows", "pairs"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "options",
    [
        {"method": "mixup"},
        {"method": {"resizemix": 0.5, "cutmix": 0.5}},
        {"method": {"resizemix": 0.5, "smoothmix": 0.5}, "crops": "each"},
        {"prob": 0.0, "crops": "each"},
    ],
    ids=str,
)
def test_handing_a_batch_over_waits_for_nothing_on_the_stream(
    opened: Open, backend: str, options: dict[str, Any], dtype: str, targets: str
) -> None:
    """The steps of a training run ahead of the device; a wait at each hand-over would leave it idle between them.

    DALI with decode="fast" does wait, as docs/guides/performance.md says.
    """
    settings: dict[str, object] = {"backend": backend, "device": "cuda", "dtype": dtype, "decode": "exact"}
    loader = opened(targets=targets, mix=MultiMix(k=2, **options), prefetch=2, **settings)
    batches = iter(loader)
    for _ in range(4):  # compiled, allocated, and in full run
        next(batches)
    torch.cuda.synchronize()
    torch.cuda._sleep(4_000_000_000)  # about two seconds
    busy = torch.cuda.Event()
    busy.record()
    for _ in range(3):
        next(batches)
    waited = busy.query()
    torch.cuda.synchronize()
    assert not waited


def test_a_stream_of_its_own_for_each_step_works(opened: Open, backend: str) -> None:
    settings: dict[str, object] = {"backend": backend, "device": "cuda", "mix": MultiMix(k=2)}
    streams, sums = [torch.cuda.Stream() for _ in range(3)], []
    batches = iter(opened(**settings))
    for step in range(9):
        with torch.cuda.stream(streams[step % 3]):
            batch = next(batches)
            sums.append(slowly(batch.images))
            del batch
    torch.cuda.synchronize()
    assert all(map(torch.equal, sums, reference_sums(opened, **settings)[:9]))


def test_batches_outlive_their_loader(opened: Open, backend: str) -> None:
    settings: dict[str, object] = {"backend": backend, "device": "cuda", "mix": MultiMix(k=2)}
    loader = opened(**settings)
    batches = iter(loader)
    kept = [next(batches)]
    torch.cuda._sleep(2_000_000_000)
    kept += [next(batches) for _ in range(3)]
    loader.close()
    for _ in opened(**settings):  # takes memory that the first one gave back
        pass
    torch.cuda.synchronize()
    sums = [batch.images.double().sum((1, 2, 3)) for batch in kept]
    assert all(map(torch.equal, sums, reference_sums(opened, **settings)[:4]))


def test_device_memory_stops_growing(opened: Open, backend: str) -> None:
    loader = opened(backend=backend, device="cuda", mix=MultiMix(k=5))
    used = []
    for _ in range(6):
        for batch in loader:
            batch.images.sum()
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        used.append(total - free)
    assert used[-1] <= used[1] + (8 << 20), used


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_a_loader_on_a_gpu_that_is_not_the_current_one(opened: Open, backend: str) -> None:
    settings: dict[str, object] = {"backend": backend, "mix": MultiMix(k=2)}
    first, second = opened(device="cuda:0", **settings), opened(device="cuda:1", **settings)
    for a, b in zip(first, second, strict=True):
        assert b.images.device == torch.device("cuda", 1)
        assert b.targets.device == b.images.device  # type: ignore[union-attr]
        assert a.images.cpu().equal(b.images.cpu())
    assert torch.cuda.current_device() == 0


def test_a_kept_batch_never_changes(opened: Open, backend: str) -> None:
    kept: list[Batch] = list(opened(backend=backend, device="cuda", prefetch=1))
    assert all(map(same_batch, kept, opened(backend=backend, device="cuda", prefetch=4)))


@pytest.mark.parametrize("mix", [MultiMix(), MultiMix(k=3, crops="each")], ids=["mixed", "crops each"])
def test_bad_samples_are_replaced_on_the_gpu_too(opened: Open, backend: str, tmp_path: Path, mix: MultiMix) -> None:
    folder = shards_with(tmp_path, {1: "cut at 70%", 9: "no scan data", 10: "cut at 70%", 12: "zero bytes"})
    settings: dict[str, object] = {"backend": backend, "device": "cuda", "on_bad_sample": "replace", "transform": WHOLE}
    settings["mix"] = mix
    first, second = opened(folder, **settings), opened(folder, **settings)
    assert all(map(same_batch, first, second))
    assert len(first.bad_samples) >= 1


def test_a_training_step_under_autocast(opened: Open, backend: str) -> None:
    loader = opened(backend=backend, device="cuda", dtype="float16", channels_last=True, mix=MultiMix(k=2))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model.append(torch.nn.Linear(8, CLASSES))
    model.cuda().to(memory_format=torch.channels_last)
    loss_function, optimiser = MultiMixLoss(), torch.optim.SGD(model.parameters(), lr=0.01)
    for images, targets in loader:
        with torch.autocast("cuda"):
            logits = model(images)
        loss = loss_function(logits, targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        assert loss.isfinite()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_cuda_graphs_can_be_captured_beside_a_loader(shards: Path, backend: str, when: str) -> None:
    """In a process of its own: a capture that fails loses the process's CUDA context."""
    command = [sys.executable, "-m", "programs.cuda_graphs", when, backend, str(shards)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_mix_batch_stays_on_the_gpu() -> None:
    images, labels = torch.rand(6, 3, 4, 4), torch.arange(6)
    found = mix_batch(images.cuda(), labels.cuda(), MultiMix(k=3), num_classes=6, step=0)
    expected = mix_batch(images, labels, MultiMix(k=3), num_classes=6, step=0)
    assert found.images.is_cuda
    assert torch.allclose(found.images.cpu(), expected.images, rtol=0, atol=BLEND_TOLERANCE)
    assert found.targets.cpu().equal(expected.targets)  # type: ignore[union-attr, arg-type]
