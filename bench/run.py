"""All benchmarks that need no GPU, in one go: one JSON file with every figure. `gpu.py` is the one for a GPU.

    python bench/run.py [--shards FOLDER] [--quick] [--only QUESTION ...] [--out bench/results]

writes OUT/<processor>-<date>.json, and end to end's chart beside it, and prints what each benchmark prints.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from multimix_pipe.benchmark.harness import machine

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent


def run(name: str, *options: object) -> dict[str, object]:
    """One benchmark in a process of its own; its figures, or how it failed."""
    print(f"\n== {name} {' '.join(map(str, options))}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        command = [sys.executable, BENCH / f"{name}.py", *options, "--json", path]
        status = subprocess.run([str(part) for part in command], cwd=BENCH, check=False).returncode
        if status or not path.exists():
            return {"failed": f"exit status {status}"}
        figures: dict[str, object] = json.loads(path.read_text())
    figures.pop("machine")  # stands once, at the top
    shown = [_shown(option) for option in options]
    figures["command"] = " ".join(["python", f"bench/{name}.py", *shown])
    return figures


def _shown(option: object) -> str:
    """An option as a reader would give it: where files lie on this machine is of no use."""
    if isinstance(option, Path):
        return "FOLDER" if option.is_dir() else option.name
    return str(option)


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument(
        "--shards", type=Path, help="a folder of shards with classes.json; default: generated photos"
    )
    arguments.add_argument("--quick", action="store_true", help="two rounds of little work: does it all run?")
    arguments.add_argument("--only", nargs="+", metavar="QUESTION", help="these benchmarks alone")
    arguments.add_argument("--out", type=Path, default=BENCH / "results")
    args = arguments.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    described = machine()
    processor = re.sub(r"[^a-z0-9]+", "-", str(described["cpu"]).lower()).strip("-")
    path = args.out.resolve() / f"{processor}-{described['date']}.json"

    rounds = ["--rounds", 2 if args.quick else 5]
    shards = ["--shards", args.shards.resolve()] if args.shards else []
    chart = ["--chart", path.with_suffix(".png")]
    results: dict[str, object] = {"machine": described}
    questions: tuple[tuple[object, ...], ...] = (
        ("end_to_end", "--k", 5, *rounds, "--seconds", 0.5 if args.quick else 6, *shards, *chart),
        ("decode", "--rounds", 2 if args.quick else 9, "--images", 128 if args.quick else 1280, *shards),
        ("mix_stage", *rounds),
        ("overhead", "--steps", 5 if args.quick else 40, *shards),
        ("reader", *rounds, "--steps", 5 if args.quick else 20, *shards),
        ("index", *rounds),
        ("growth", "--rounds", 1 if args.quick else 3, "--steps", 201 if args.quick else 2000, *shards),
        ("plan", *rounds),
        ("pixels", *shards),
        ("shuffle", *rounds),
        ("judgement",),
        ("bad_samples", *rounds, "--images", 128 if args.quick else 1280, *shards),
        ("training", *rounds, "--batch-size", 16, *shards, "--repeat", 1),
    )
    unknown = set(args.only or ()) - {str(question) for question, *_ in questions}
    if unknown:
        arguments.error(f"--only: there is no benchmark {', '.join(sorted(unknown))}")
    for question, *options in questions:
        name = str(question)
        if args.only and name not in args.only:
            continue
        results[name] = run(name, *options)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
