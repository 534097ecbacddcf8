"""Does taking a batch from the loader wait for the consumer's stream? It must not: a training runs ahead of the device.

    python bench/gpu/handover.py --device cuda

The consumer's stream sleeps for about two seconds. Meanwhile --take batches are taken; after each of them the time is noted, and
whether the stream still sleeps: by backend, `decode=`, type, and stream. A dry run on a CPU has no stream.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data import chosen_shards, open_backend, repeated
from harness import forever, parser, report

SLEEP = 4_000_000_000
"""Cycles: about two seconds."""


def times(batches: Iterator[object], take: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds after which each batch was taken, and whether the stream had ended its sleep by then."""
    for _ in islice(batches, 6):
        pass
    busy = sleeping(device) if device.type == "cuda" else None
    start, taken, awake = time.perf_counter(), [], []
    for _ in islice(batches, take):
        taken.append(1e3 * (time.perf_counter() - start))
        awake.append(busy is None or bool(busy.query()))  # type: ignore[no-untyped-call]
    if busy is not None:
        busy.synchronize()
    return {"ms": taken, "stream_awake": awake}


def sleeping(device: torch.device) -> torch.cuda.Event:
    """Let the current stream sleep; the event is the end of it."""
    torch.cuda.synchronize(device)
    torch.cuda._sleep(SLEEP)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event()  # type: ignore[no-untyped-call]
    end.record()
    return end


def main() -> None:
    args = parser(__doc__, shards=True, device="cuda", batch_size=64, take=4, repeat=16).parse_args()
    folder, num_classes = chosen_shards(args.shards)
    device, shards = torch.device(args.device), repeated(folder, args.repeat)
    results = {}
    for backend, decode in (("dali", "fast"), ("dali", "exact"), ("torch", "fast")):
        for dtype in ("float32", "bfloat16"):
            for side in (False, True) if device.type == "cuda" else (False,):
                options = {"shards": shards, "num_classes": num_classes, "batch_size": args.batch_size}
                options |= {"device": args.device, "dtype": dtype, "last_batch": "wrap", "decode": decode}
                stream = torch.cuda.stream(torch.cuda.Stream(device)) if side else nullcontext()  # type: ignore[no-untyped-call]
                with open_backend(backend, **options) as loader, stream:
                    found = times(forever(loader), args.take, device)
                name = f"{backend}, {decode}, {dtype}{', side stream' if side else ''}"
                steps = ", ".join(f"{ms:.0f}" for ms in found["ms"])
                print(f"{name:40} taken after {steps} ms; waited: {found['stream_awake'][-1]}", flush=True)
                results[name] = found
    report(__doc__, {"handover": results, "device": str(device)}, args.json)


if __name__ == "__main__":
    main()
