"""How fast is the mix stage alone, from uint8 pixels to K rows per pair? Each implementation against a copy of its output.

    python bench/mix_stage.py [--device cuda] [--dtype float16] [--method cutmix]

The yardstick is a broadcast copy, which writes each normalised image K times into preallocated memory: the cost of mixing without
arithmetic. The rows of each implementation are first compared with the reference. Times are means per batch over --repeat calls.
An implementation that cannot run here is listed with the reason. bench/README.md lists those that were measured and rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness import in_turn, parser, report, seconds
from multimix_pipe import MultiMix
from multimix_pipe.config import TrainTransform
from multimix_pipe.mixing import MixPlan, reference
from multimix_pipe.plan import draw_mixing
from multimix_pipe.runtime.kernels import host_kernel
from multimix_pipe.runtime.kernels.device import blend as device_blend
from multimix_pipe.runtime.kernels.normalize import Normalize
from multimix_pipe.runtime.tensors import MixTensors
from multimix_pipe.shards.cores import usable_cores

BROADCAST = "broadcast copy"
MIXUP = "mixup's blend, from uint8"
NORMALIZE = Normalize.of(TrainTransform(), channels_last=False)

Mix = Callable[[int], Tensor]
"""Mixes batch i of a problem; the result (B, K, C, H, W) is valid until the next call."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Several batches of B pairs to be mixed K ways, so many that they do not fit into a cache."""

    pixels: Sequence[Tensor]
    """Batches (B, C, H, W) uint8."""
    plan: MixPlan
    dtype: torch.dtype
    """Type of the result."""
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result: (B, K, C, H, W)."""
        return (*self.plan.lam.shape, *self.pixels[0].shape[1:])

    def result(self) -> Tensor:
        """Allocate memory for a result, filled with NaN so that elements that are never written are noticed."""
        return torch.full(self.shape, torch.nan, dtype=self.dtype, device=self.device)

    def difference(self, mix: Mix) -> float:
        """Return the largest difference from the reference over a few pairs, or nan if some elements were not written."""
        worst = 0.0
        for i, batch in enumerate(self.pixels):
            rows = mix(i)
            for pair in {0, len(rows) // 2, len(rows) - 1}:
                two = [pair, int(self.plan.partner[pair])]
                images = normalised(batch[two]).cpu().numpy()
                of_two = MixPlan(
                    np.array([1, 0]),
                    self.plan.lam[two],
                    self.plan.method[two],
                    self.plan.box[two],
                    None if self.plan.factors is None else self.plan.factors[two],
                )
                z = reference.partners(batch[two].cpu().numpy(), of_two)
                z = normalised(torch.from_numpy(z)).numpy()
                expected = reference.mix_images(images, of_two, z)[: self.plan.k]
                apart = (rows[pair].cpu().float() - torch.from_numpy(expected).to(self.dtype).float()).abs().max()
                worst = float(np.maximum(worst, float(apart)))  # unlike max(), it keeps a nan
        return worst


def normalised(pixels: Tensor) -> Tensor:
    mean, scale = (
        torch.from_numpy(values).to(pixels.device)[:, None, None] for values in (NORMALIZE.mean, NORMALIZE.scale)
    )
    return torch.sub(pixels, mean).mul_(scale)


def copy_of_the_result(problem: Problem) -> Mix:
    """Copy a tensor of the result's size, to measure the device's bandwidth."""
    source, out = torch.randn(problem.shape, device=problem.device).to(problem.dtype), problem.result()
    return lambda i: out.copy_(source)


def broadcast_copy(problem: Problem) -> Mix:
    """Write each normalised image K times, without arithmetic."""
    out, images = problem.result(), [normalised(batch) for batch in problem.pixels]
    return lambda i: out.copy_(images[i][:, None].expand(problem.shape))


def blend_from_pixels(problem: Problem) -> Mix:
    """Blend as the loaders do outside a DALI graph: in one pass on a CPU, by torch operations on a GPU."""
    out, mix, kernel = problem.result(), MixTensors.of(problem.plan, problem.device), host_kernel()
    layout = NORMALIZE.layout(problem.pixels[0].shape)
    if problem.device.type != "cpu" or kernel is None:

        def on_the_device(i: int) -> Tensor:
            device_blend(normalised(problem.pixels[i]), mix, out, layout, problem.pixels[i], normalised)
            return out

        return on_the_device
    threads = ThreadPoolExecutor(min(kernel.MIXERS, usable_cores()))

    def on_the_host(i: int) -> Tensor:
        kernel.blend(problem.pixels[i], mix, out, layout, NORMALIZE, threads)
        return out

    return on_the_host


def dali_operators(problem: Problem) -> Mix:
    """Run crop_mirror_normalize and then the `dali.multi_mix` stage, which consists of stock DALI operators."""
    from nvidia.dali import Pipeline, fn, types

    from multimix_pipe.dali import stage

    if problem.dtype == torch.bfloat16:
        raise ValueError("DALI does not support bfloat16")
    on_gpu = problem.device.type == "cuda"
    handed: Iterator[Any] = cycle(problem.pixels if on_gpu else [batch.numpy() for batch in problem.pixels])
    mix, size = MultiMix(k=problem.plan.k, method=str(problem.plan.method[0])), (problem.shape[-2], problem.shape[-1])
    drawn = stage.input_arrays(problem.plan, stage.input_names(mix), size, mix.k)
    mean, std = NORMALIZE.mean.tolist(), (1 / NORMALIZE.scale).tolist()
    pipeline = Pipeline(
        batch_size=len(problem.plan),
        num_threads=torch.get_num_threads(),
        device_id=problem.device.index or 0 if on_gpu else None,
    )
    with pipeline:
        place = "gpu" if on_gpu else "cpu"
        pixels = fn.external_source(handed, batch=True, layout="CHW", device=place, no_copy=True)
        nodes = stage.mix_nodes(
            mix, {name: fn.external_source(cycle([part]), batch=True) for name, part in drawn.items()}
        )
        to_floats = {"mean": mean, "std": std, "dtype": types.FLOAT}
        resized = None
        if nodes.patch is not None:
            rows = fn.transpose(pixels, perm=[1, 2, 0])
            z = stage.resized_partners(fn.reinterpret(rows, layout="HWC"), nodes, size)
            resized = fn.crop_mirror_normalize(z, output_layout="FCHW", **to_floats)
        images = fn.crop_mirror_normalize(pixels, **to_floats)
        mixed = stage.mix_images(images, nodes, size, "CHW", resized)
        pipeline.set_outputs(fn.cast(mixed, dtype=types.FLOAT16) if problem.dtype == torch.float16 else mixed)
    pipeline.build()
    kept: list[Any] = []

    def run(_: int) -> Tensor:
        (rows,) = pipeline.run(torch.cuda.current_stream(problem.device) if on_gpu else None)
        kept[:] = [rows]
        mixed: Tensor = torch.utils.dlpack.from_dlpack(rows.as_tensor())
        return mixed

    return run


COPIES = {"copy of the result": copy_of_the_result, BROADCAST: broadcast_copy}
ROUTES = {"blend, from uint8": blend_from_pixels, "DALI, stock operators, from uint8": dali_operators}


def main() -> None:
    arguments = parser(__doc__, device="cpu", batch_size=64, k=5, size=224, repeat=5)
    arguments.add_argument("--method", default="mixup", choices=MultiMix.methods())
    arguments.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    args = arguments.parse_args()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    generator, shape = torch.Generator(device).manual_seed(0), (args.batch_size, 3, args.size, args.size)
    batches = 4 if device.type == "cuda" else 2
    pixels = [
        torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=generator) for _ in range(batches)
    ]
    problem, mixup = (
        Problem(
            pixels, draw_mixing(MultiMix(k=args.k, method=method), 0, 0, 0, args.batch_size, shape[2:]), dtype, device
        )
        for method in (args.method, "mixup")
    )
    works = {name: route(problem) for name, route in COPIES.items()}
    if args.method != "mixup":
        works[MIXUP] = blend_from_pixels(mixup)
    apart: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name, route in ROUTES.items():
        try:
            work = route(problem)
            apart[name] = problem.difference(work)
        except Exception as error:  # one implementation that does not run here must not stop the others
            missing[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
        else:
            works[name] = work

    def timed(work: Mix) -> float:
        repeat: int = args.repeat
        return 1e3 * seconds(lambda: [work(i % batches) for i in range(repeat)], device) / repeat

    contenders = {name: (lambda work=work: timed(work)) for name, work in works.items()}
    peer = BROADCAST if args.method == "mixup" else MIXUP
    figures = in_turn(contenders, unit="ms", peer=peer, rounds=args.rounds)
    written = int(np.prod(problem.shape)) * dtype.itemsize
    print(
        f"{args.method}, {args.batch_size} pairs of 3x{args.size}x{args.size}, K = {args.k}, {args.dtype}, on {device}"
    )
    print(f"{written / 1e6:.0f} MB written\n{figures.table()}")
    for name, distance in apart.items():
        print(f"{name}: differs from the reference by at most {distance:.3g}")
    for name, reason in missing.items():
        print(f"{name}: not available: {reason}")
    settings = {
        "method": args.method,
        "pairs": args.batch_size,
        "k": args.k,
        "size": args.size,
        "dtype": args.dtype,
        "device": str(device),
    }
    routes = {name: {"bytes_written": written, "difference": distance} for name, distance in apart.items()}
    report(__doc__, {**settings, "time": figures.summary(), "routes": routes, "not_available": missing}, args.json)


if __name__ == "__main__":
    main()
