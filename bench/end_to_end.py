"""How many images a second come out, decoded and mixed? This package's loader against what people use today.

    python bench/end_to_end.py [--shards FOLDER] [--k 5 1 none] [--device cuda] [--out bench/results]

The same as `multimix-pipe bench`, which explains its options, on generated photos where no shards are named. With --out it writes
OUT/end_to_end-<processor>-<date>.json and .png.
"""

from __future__ import annotations

import argparse
import logging
import re
import shlex
import sys
from pathlib import Path

from data import add_shards, chosen_shards

from multimix_pipe.benchmark.harness import machine
from multimix_pipe.cli import bench


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_shards(parser)
    bench.add_options(parser)
    parser.add_argument("--out", type=Path, help="a folder to write figures and chart to")
    parser.set_defaults(device="cpu", label="cls", cache_dir=None)
    args = parser.parse_args()
    args.source = [str(chosen_shards(args.shards)[0])]
    args.command_line = shlex.join(["python", "bench/end_to_end.py", *sys.argv[1:]])
    if args.out:
        about = machine()
        name = re.sub(r"[^a-z0-9]+", "-", str(about.get("gpu", about["cpu"])).lower()).strip("-")
        args.json, args.chart = (args.out / f"end_to_end-{name}-{about['date']}{end}" for end in (".json", ".png"))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return bench.run(args)


if __name__ == "__main__":
    sys.exit(main())
