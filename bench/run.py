"""All benchmarks and, on a GPU, all GPU tests, in one go: one JSON file with every figure.

    python bench/run.py [--device cuda] [--shards FOLDER] [--quick] [--out bench/results]

writes OUT/<machine>-<date>.json and prints what each benchmark prints.
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
    figures["command"] = " ".join(["python", f"bench/{name}.py", *map(str, options)])
    return figures


def gpu_tests() -> dict[str, object]:
    """The tests that need a GPU: how many passed, failed and were skipped."""
    print("\n== tests/test_gpu.py", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "tests/test_gpu.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-6000:])
    return {
        "exit_status": done.returncode,
        "last_line": done.stdout.strip().splitlines()[-1:],
        "output": done.stdout[-6000:],
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument(
        "--shards", type=Path, help="a folder of shards with classes.json; default: generated photos"
    )
    arguments.add_argument("--quick", action="store_true", help="two rounds and small batches: does it all run?")
    arguments.add_argument("--out", type=Path, default=BENCH / "results")
    args = arguments.parse_args()
    device = ["--device", args.device]
    rounds = ["--rounds", 2 if args.quick else 5]
    shards = ["--shards", args.shards.resolve()] if args.shards else []
    gpu = args.device != "cpu"
    batch = ["--batch-size", 256 if gpu else 16 if args.quick else 64]

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    results: dict[str, object] = {"machine": machine()}
    if gpu:
        results["gpu_tests"] = gpu_tests()
    results["plan"] = run("plan", *rounds)
    results["mix_stage"] = run("mix_stage", *device, *rounds, *batch)
    results["pixels"] = run("pixels", *device, *shards)
    seconds = ["--seconds", 0.5 if args.quick else 5]
    results["end_to_end"] = run("end_to_end", *device, *rounds, *seconds, *batch, *shards)
    repeat = ["--repeat", 1 if args.quick else 16 if gpu else 4]
    small = batch if gpu else ["--batch-size", 16]  # a step of 64 * 5 rows takes seconds on a CPU
    results["training"] = run("training", *device, *rounds, *small, *shards, *repeat[:1], repeat[1] if gpu else 1)

    described = machine()
    name = re.sub(r"[^a-z0-9]+", "-", str(described.get("gpu", described["cpu"])).lower()).strip("-")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{name}-{described['date']}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
