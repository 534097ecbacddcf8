"""How fast is the mixing stage? This package's kernel and DALI's graph against copying what they must write.

    python bench/mixing_dali.py [--device cuda]

K rows a pair have to be written once and two images read, so a copy of the result is the limit: read and write once.
"""

from __future__ import annotations

import torch
from harness import in_turn, parser, report, seconds
from nvidia.dali import Pipeline, fn, types

from multimix_pipe import MultiMix
from multimix_pipe.dali.stage import blend as dali_blend
from multimix_pipe.mixing.blend import blend
from multimix_pipe.plan import draw_mixing


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--batch-size", type=int, default=64)
    arguments.add_argument("--k", type=int, default=5)
    arguments.add_argument("--size", type=int, default=224)
    arguments.add_argument("--repeat", type=int, default=5, help="calls a round")
    args = arguments.parse_args()
    device = torch.device(args.device)
    pairs, k, shape = args.batch_size, args.k, (3, args.size, args.size)

    images = torch.rand(pairs, *shape, device=device)
    plan = draw_mixing(MultiMix(k=k), 0, 0, 0, pairs)
    partner, lam = (torch.from_numpy(array).to(device) for array in plan)
    out, result = torch.empty(2, pairs, k, *shape, device=device).unbind()
    pipeline = dali_pipeline(images, *plan)

    def with_dali() -> None:
        pipeline.run()

    work = {
        "copy of the result": lambda: out.copy_(result),
        "blend, memory reused": lambda: blend(images, partner, lam, out),
        "blend, new memory": lambda: blend(images, partner, lam, torch.empty_like(out)),
        "DALI graph": with_dali,
    }
    contenders = {
        name: (lambda call=call: 1e3 * seconds(lambda: [call() for _ in range(args.repeat)], device) / args.repeat)
        for name, call in work.items()
    }
    figures = in_turn(contenders, unit="ms", peer="copy of the result", rounds=args.rounds)
    print(f"{pairs} pairs of {shape}, K = {k}, float32, on {device}: {out.numel() * 4 / 1e6:.0f} MB written")
    print(figures.table())
    results = {"pairs": pairs, "k": k, "bytes_written": out.numel() * 4, "device": str(device)}
    report(__doc__.splitlines()[0], {**results, "time": figures.summary()}, args.json)


def dali_pipeline(images: torch.Tensor, partner: object, lam: object) -> Pipeline:
    """The stage alone: its inputs are handed over anew each time, which costs DALI a copy of the B images, not of the B*K."""
    on_gpu = images.device.type == "cuda"
    source = images if on_gpu else images.numpy()
    pipeline = Pipeline(
        batch_size=len(images),
        num_threads=torch.get_num_threads(),
        device_id=images.device.index or 0 if on_gpu else None,
    )
    with pipeline:
        batch = fn.external_source(
            source=lambda: source,
            batch=True,
            dtype=types.FLOAT,
            ndim=3,
            device="gpu" if on_gpu else "cpu",
            no_copy=True,
        )
        partners = fn.external_source(source=lambda: partner.astype("int32"), batch=True, dtype=types.INT32, ndim=0)
        weights = fn.external_source(source=lambda: lam, batch=True, dtype=types.FLOAT, ndim=1)
        pipeline.set_outputs(dali_blend(batch, partners, weights, ndim=3))
    pipeline.build()
    return pipeline


if __name__ == "__main__":
    main()
