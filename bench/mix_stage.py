"""How fast is the mixing stage alone? Every route against copying what must be written.

    python bench/mix_stage.py [--device cuda] [--dtype float16] [--sweep]

On a CPU the measure is a broadcast copy of the images into kept memory; on a GPU the share of the bandwidth that a copy of the
result has, of the bytes that a route must read and write at the least. Each route's rows are first compared with the reference.
"""

from __future__ import annotations

import statistics
from itertools import product
from typing import Any

import numpy as np
import torch
from mix_routes import (
    NotAvailableError,
    Problem,
    Route,
    Work,
    blend_from_pixels,
    blend_kept,
    broadcast_copy,
    copy_of_the_result,
    triton_routes,
)

from multimix_pipe import MultiMix
from multimix_pipe.benchmark.harness import Figures, in_turn, parser, report, seconds
from multimix_pipe.plan import draw_mixing

BROADCAST, COPY = "broadcast copy", "copy of the result"
TRITON = [(4096, 8, True)]
SWEEP = list(product((1024, 2048, 4096, 8192), (4, 8), (True, False)))


def routes(sweep: bool) -> tuple[dict[str, Route], dict[str, str]]:
    """All routes, and why some are missing."""
    found: dict[str, Route] = {"blend": blend_kept, "blend, from uint8": blend_from_pixels}
    found |= triton_routes(SWEEP if sweep else TRITON)
    try:
        from mix_routes_dali import ROUTES
    except ImportError as error:
        return found, {"DALI": f"does not import: {error}"}
    return found | ROUTES, {}


def difference(problem: Problem, work: Work) -> float:
    """The largest difference of a route's rows from the reference, over a few pairs; not a number where nothing was written."""
    batches, pairs = len(problem.images), len(problem.lam)
    worst = 0.0
    for batch in range(batches):
        rows = work.mix(batch)
        for pair in {0, pairs // 2, pairs - 1}:
            apart = float((rows[pair].cpu().float() - problem.oracle(batch, pair).float()).abs().max())
            worst = float(np.maximum(worst, apart))  # unlike max(), it keeps a nan
    return worst


def prepare(problem: Problem, sweep: bool) -> tuple[dict[str, Work], dict[str, float], dict[str, str]]:
    """The work of all routes that run here, how far each is from the reference, and why the others do not run."""
    works = {COPY: copy_of_the_result(problem), BROADCAST: broadcast_copy(problem)}
    apart: dict[str, float] = {}
    found, missing = routes(sweep)
    for name, route in found.items():
        try:
            work = route(problem)
            apart[name] = difference(problem, work)
        except NotAvailableError as error:
            missing[name] = str(error)
        except Exception as error:  # one route that fails must not lose the others
            missing[name] = f"failed: {type(error).__name__}: {error}"
        else:
            works[name] = work
    return works, apart, missing


def shares(problem: Problem, works: dict[str, Work], figures: Figures) -> dict[str, float]:
    """Of each route: bytes a second, relative to a copy of the result in the same round."""
    moved = {name: work.bytes_read + problem.bytes_written for name, work in works.items()}
    pace = {name: [moved[name] / value for value in values] for name, values in figures.values.items()}
    return {
        name: statistics.median(mine / copy for mine, copy in zip(pace[name], pace[COPY], strict=True))
        for name in works
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--batch-size", type=int, default=64)
    arguments.add_argument("--k", type=int, default=5)
    arguments.add_argument("--size", type=int, default=224)
    arguments.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    arguments.add_argument("--repeat", type=int, default=5, help="calls a round")
    arguments.add_argument("--sweep", action="store_true", help="the Triton kernel in many settings")
    args = arguments.parse_args()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    lam = draw_mixing(MultiMix(k=args.k), 0, 0, 0, args.batch_size)[1]
    problem = Problem.random((args.batch_size, 3, args.size, args.size), lam, dtype, device)
    works, apart, missing = prepare(problem, args.sweep)

    def timed(work: Work) -> float:
        return 1e3 * seconds(lambda: [work.mix(i) for i in range(args.repeat)], device) / args.repeat

    figures = in_turn(
        {name: (lambda work=work: timed(work)) for name, work in works.items()},
        unit="ms",
        peer=BROADCAST,
        rounds=args.rounds,
    )
    share = shares(problem, works, figures)
    print(f"{args.batch_size} pairs of 3x{args.size}x{args.size}, K = {args.k}, {args.dtype}, on {device}")
    print(f"{problem.bytes_written / 1e6:.0f} MB written")
    print(figures.table())
    results = _results(problem, works, apart, share)
    width = max(map(len, works))
    for name, row in results.items():
        distance = f", {row['difference']:.3g} from the reference" if "difference" in row else ""
        print(f"{name:{width}}  {row['share_of_copy']:.2f} of the copy's bandwidth{distance}")
    for reason in dict.fromkeys(missing.values()):
        names = [name for name, why in missing.items() if why == reason]
        print(f"not available: {reason.strip().splitlines()[0]}: {', '.join(names[:3])}{', ...' if names[3:] else ''}")
    settings = {"pairs": args.batch_size, "k": args.k, "size": args.size, "dtype": args.dtype, "device": str(device)}
    report(
        __doc__.splitlines()[0],
        {**settings, "time": figures.summary(), "routes": results, "not_available": missing},
        args.json,
    )


def _results(
    problem: Problem, works: dict[str, Work], apart: dict[str, float], share: dict[str, float]
) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "bytes_read": work.bytes_read,
            "bytes_written": problem.bytes_written,
            "share_of_copy": share[name],
            **({"difference": apart[name]} if name in apart else {}),
        }
        for name, work in works.items()
    }


if __name__ == "__main__":
    main()
