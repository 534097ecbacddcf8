"""How fast is the mix stage alone, from uint8 pixels to K rows per pair, compared to a copy of its output and to mixup?

    python bench/mix_stage.py [--device cuda] [--dtype float16] [--method cutmix]

The stage is the one outside a DALI graph: on a CPU a compiled kernel, on a GPU torch operations. The yardstick is a broadcast
copy, which writes each normalised image K times into preallocated memory: the cost of mixing without arithmetic. Times are means
per batch over --repeat calls; `tests/test_blends.py` checks the results. `loading.py mixing` and `gpu/rates.py` compare whole
loaders that mix in the graph and after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from harness import in_turn, parser, report, seconds
from multimix_pipe import MultiMix, TrainTransform
from multimix_pipe.mixing import MixPlan
from multimix_pipe.plan import draw_mixing
from multimix_pipe.runtime.kernels import host_kernel
from multimix_pipe.runtime.kernels.device import blend as device_blend
from multimix_pipe.runtime.kernels.normalize import Normalize
from multimix_pipe.runtime.tensors import MixTensors
from multimix_pipe.shards.cores import usable_cores

BROADCAST = "broadcast copy"
NORMALIZE = Normalize.of(TrainTransform(), channels_last=False)


def normalised(pixels: Tensor) -> Tensor:
    mean, scale = (
        torch.from_numpy(values).to(pixels.device)[:, None, None] for values in (NORMALIZE.mean, NORMALIZE.scale)
    )
    return torch.sub(pixels, mean).mul_(scale)


def broadcast(batches: Sequence[Tensor], out: Tensor) -> Callable[[int], object]:
    """Return a function that writes each normalised image of batch i K times, without arithmetic."""
    images = [normalised(batch) for batch in batches]
    return lambda i: out.copy_(images[i][:, None].expand(out.shape))


def blended(batches: Sequence[Tensor], out: Tensor, plan: MixPlan) -> Callable[[int], object]:
    """Return a function that mixes batch i by `plan`, as the loaders do outside a DALI graph."""
    mix, kernel, layout = MixTensors.of(plan, out.device), host_kernel(), NORMALIZE.layout(batches[0].shape)
    if out.device.type != "cpu" or kernel is None:
        return lambda i: device_blend(normalised(batches[i]), mix, out, layout, batches[i], normalised)
    threads = ThreadPoolExecutor(min(kernel.MIXERS, usable_cores()))
    return lambda i: kernel.blend(batches[i], mix, out, layout, NORMALIZE, threads)


def main() -> None:
    arguments = parser(__doc__, device="cpu", batch_size=64, k=5, size=224, repeat=5)
    arguments.add_argument("--method", default="mixup", choices=MultiMix.methods())
    arguments.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    args = arguments.parse_args()
    device, shape = torch.device(args.device), (args.batch_size, 3, args.size, args.size)
    # several batches, which do not fit into a cache together
    batches = [torch.randint(0, 256, shape, dtype=torch.uint8, device=device) for _ in range(4)]
    out = torch.empty(args.batch_size, args.k, *shape[1:], dtype=getattr(torch, args.dtype), device=device)
    works = {BROADCAST: broadcast(batches, out)}
    for method in ("mixup", args.method):
        plan = draw_mixing(MultiMix(k=args.k, method=method), 0, 0, 0, args.batch_size, shape[2:])
        works[method] = blended(batches, out, plan)

    def milliseconds(work: Callable[[int], object]) -> float:
        repeat: int = args.repeat
        return 1e3 * seconds(lambda: [work(i % len(batches)) for i in range(repeat)], device) / repeat

    contenders = {name: partial(milliseconds, work) for name, work in works.items()}
    figures = in_turn(contenders, unit="ms", peer=BROADCAST, rounds=args.rounds)
    print(f"{args.batch_size} pairs of 3x{args.size}x{args.size}, K = {args.k}, {args.dtype}, on {device}")
    print(f"{out.nbytes / 1e6:.0f} MB written\n{figures.table()}")
    to_mixup = figures.compare([(args.method, "mixup")] if args.method != "mixup" else [])
    settings = {name: getattr(args, name) for name in ("method", "batch_size", "k", "size", "dtype", "device")}
    report(__doc__, {**settings, "time": figures.summary(), "to_mixup": to_mixup}, args.json)


if __name__ == "__main__":
    main()
