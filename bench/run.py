"""All benchmarks that need no GPU, in one go: one JSON file with every figure. gpu/run.py is the one for a GPU.

    python bench/run.py [--shards FOLDER] [--quick] [--only QUESTION ...] [--out bench/results]

writes OUT/<processor>-<date>.json, and end to end's chart beside it, and prints what each benchmark prints.
"""

from __future__ import annotations

import argparse
import re
import sys
from functools import partial
from pathlib import Path

from harness import ROOT, Part, machine, run_parts, run_script


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("--shards", type=Path, help="folder of shards with classes.json; default: generated photos")
    add("--quick", action="store_true", help="two rounds of little work: does it all run?")
    add("--only", nargs="+", metavar="QUESTION", help="these benchmarks alone")
    add("--out", type=Path, default=ROOT / "bench" / "results", help="folder; default: %(default)s")
    args = arguments.parse_args()
    described, quick = machine(), args.quick
    processor = re.sub(r"[^a-z0-9]+", "-", str(described["cpu"]).lower()).strip("-")
    path = args.out.resolve() / f"{processor}-{described['date']}.json"

    rounds: list[object] = ["--rounds", 2 if quick else 5]
    shards: list[object] = ["--shards", args.shards.resolve()] if args.shards else []
    images = ["--images", 128 if quick else 1280, *shards]
    race = ["--k", 5, "--seconds", 0.5 if quick else 6, "--chart", path.with_suffix(".png"), *shards]
    questions: dict[str, list[object]] = {
        "end_to_end": [*rounds, *race],
        "loading mixing": ["--rounds", 2 if quick else 9, *images],
        "loading methods": [*rounds, *images],
        "loading sizes": [*rounds, *images],
        "loading memory": ["--steps", 201 if quick else 2000, *shards],
        "mix_stage": rounds,
        "scaling": [*rounds, *(["--images", 256, "--seconds", 0.3] if quick else []), *shards],
        "many_cores": [*rounds, "--seconds", 0.3 if quick else 3],
        "host_side": [*rounds, *(["--samples", 512, "--tars", 8, "--seconds", 0.3] if quick else [])],
        "slow_storage": [*rounds, *(["--samples", 512, "--seconds", 0.2] if quick else []), *shards],
        "training": [*rounds, "--batch-size", 16, *shards, *(["--steps", 3] if quick else [])],
        "at_the_model": ["--rounds", 1, "--batch-size", 2, "--size", 64] if quick else [*rounds, *shards],
        "index": [*rounds, *(["--opened", 20] if quick else [])],
        "plan": rounds,
        "shuffle": rounds,
        "pixels": shards,
        "bad_samples": [*rounds, *images],
    }
    if unknown := set(args.only or ()) - set(questions):
        arguments.error(f"--only: there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(questions)}")
    parts: dict[str, Part] = {}
    for name in args.only or questions:
        script, *first = name.split()
        parts[name] = (None, partial(run_script, f"{script}.py", *first, *questions[name]))
    return run_parts(parts, {"machine": described}, path)


if __name__ == "__main__":
    sys.exit(main())
