"""Everything that only a GPU can show, in one command: tests, parity, the mixing stage, the pipeline, training.

    python bench/gpu.py [--device cuda] [--shards FOLDER] [--out FILE] [--budget-seconds 540] [--only PART ...]

Parts run in the order of their worth, each in a process of its own and with a time limit, so that a crash or a hang in one loses
none of the others; FILE (default bench/results/gpu.json) is written anew after each part. A part that no longer fits the budget
is listed as skipped. It needs this package's requirements, DALI and pytest; nothing is installed or downloaded.
`--device cpu` is a dry run with small settings: it shows that all of it works, its figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multimix_pipe.benchmark.harness import machine

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
TESTS = ("tests/test_gpu.py", "tests/test_gpu_dali.py", "tests/test_mix_triton.py")
TAIL = 4000
"""Characters kept of what a part prints."""
SILENCE = 75
"""Seconds after which a test hangs: the first one has CUDA and DALI to load."""
LEAST = 20
"""Seconds under which no part is started."""

Results = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One process of the run."""

    name: str
    limit: float
    """Seconds after which it is ended."""
    run: Callable[[float], Results]


def run_process(
    command: list[str], limit: float, folder: Path, silence: float = float("inf")
) -> tuple[int | None, str]:
    """Exit status and all that it printed; its children end with it.

    The status is None where it was ended: after `limit` seconds, or after `silence` seconds in which it printed nothing.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    log = Path(tempfile.mkstemp(suffix=".log")[1])
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            status = _wait(process, log, limit, silence)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    printed = log.read_text(errors="replace")
    log.unlink()
    return status, printed


def _wait(process: subprocess.Popen[bytes], log: Path, limit: float, silence: float) -> int | None:
    start = heard = time.monotonic()
    size = 0
    while (now := time.monotonic()) < start + limit and now < heard + silence:
        try:
            return process.wait(1)
        except subprocess.TimeoutExpired:
            if log.stat().st_size != size:
                size, heard = log.stat().st_size, time.monotonic()
    return None


def bench(script: str, *options: object) -> Callable[[float], Results]:
    """A benchmark of this folder: its figures, or how it failed."""

    def run(limit: float) -> Results:
        command = ["python", f"bench/{script}.py", *map(str, options)]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "figures.json"
            status, printed = run_process(
                [sys.executable, str(BENCH / f"{script}.py"), *map(str, options), "--json", str(path)], limit, BENCH
            )
            figures: Results = json.loads(path.read_text()) if path.exists() else {}
        figures.pop("machine", None)  # stands once, at the top
        return {**figures, "command": " ".join(command), **_ended(status), "printed": printed[-TAIL:]}

    return run


def tests(limit: float) -> Results:
    """The GPU tests. A test that hangs or brings the process down is noted, and the run goes on behind it."""
    deadline, outcomes, crashed, printed = time.monotonic() + limit, {}, [], ""
    status: int | None = -1
    present = [name for name in TESTS if (ROOT / name).exists()]
    while (status is None or status < 0) and len(crashed) < 8 and (left := deadline - time.monotonic()) > LEAST:
        # -W default: another machine's versions may warn of what has nothing to do with GPUs
        command = [sys.executable, "-m", "pytest", "-v", "-rs", "-W", "default", "--tb=short", "-p", "no:cacheprovider"]
        command += ["-o", "faulthandler_timeout=60", *present]
        for name in outcomes:
            command += ["--deselect", name]
        status, output = run_process(command, left, ROOT, silence=SILENCE)
        printed += output
        found = dict(re.findall(r"^(tests/\S+::\S.*?) (PASSED|FAILED|SKIPPED|ERROR|XFAIL)\b", output, re.MULTILINE))
        outcomes |= found
        started = re.findall(r"^(tests/[^\s:]+::[^\n]*?)(?: (?:PASSED|FAILED|SKIPPED|ERROR|XFAIL)\b.*)?$", output, re.M)
        last = started[-1].split("Fatal Python error")[0].strip() if started else ""
        if last and last not in outcomes and (status is None or status < 0):
            crashed.append(last)
            outcomes[last] = "HUNG" if status is None else f"CRASHED ({status})"
        else:
            break  # it came to its end, or fell outside of any test: to start again would change nothing
    counts = {kind: list(outcomes.values()).count(kind) for kind in sorted(set(outcomes.values()))}
    bad = {name: kind for name, kind in outcomes.items() if kind not in ("PASSED", "SKIPPED", "XFAIL")}
    return {"counts": counts, "not_passed": bad, **_ended(status), "printed": printed[-4 * TAIL :]}


def _ended(status: int | None) -> Results:
    if status is None:
        return {"failed": "ended at its time limit"}
    return {"failed": f"exit status {status}"} if status else {}


def parts(device: str, shards: list[object]) -> list[Part]:
    """All parts, the one that is worth most first."""
    on, gpu = ["--device", device], device != "cpu"
    stage = ["--batch-size", 256, "--repeat", 20] if gpu else ["--batch-size", 2, "--size", 32, "--repeat", 2]
    rounds = ["--rounds", 5 if gpu else 2]
    rates = (
        ["--batch-size", 256, "--steps", 30, "--kernel"]
        if gpu
        else ["--batch-size", 8, "--size", 32, "--repeat", 1, "--steps", 2]
    )
    training = ["--kernel"] if gpu else ["--rows", 10, "--size", 32, "--repeat", 1, "--steps", 1]
    few = ["--rounds", 5 if gpu else 1]
    return [
        Part("tests", 200, tests),
        Part("mix_stage float32", 60, bench("mix_stage", *on, *rounds, *stage)),
        Part("pipeline", 150, bench("gpu_rates_dali", *on, *rounds, *shards, *rates)),
        Part("training", 200, bench("gpu_training", *on, *few, *shards, *training)),
        Part("pixels", 90, bench("pixels", *on, *shards)),
        Part(
            "mix_stage bfloat16, sweep", 90, bench("mix_stage", *on, *rounds, *stage, "--dtype", "bfloat16", "--sweep")
        ),
        Part("mix_stage float32, sweep", 90, bench("mix_stage", *on, *rounds, *stage, "--sweep")),
        Part("mix_stage float16", 60, bench("mix_stage", *on, *rounds, *stage, "--dtype", "float16")),
        Part("mix_stage float32, K=1", 60, bench("mix_stage", *on, *rounds, *stage, "--k", 1)),
        Part("pipeline float16", 120, bench("gpu_rates_dali", *on, *rounds, *shards, *rates, "--dtype", "float16")),
        Part("plan", 60, bench("plan", *rounds)),
    ]


def surroundings() -> Results:
    """The harness's machine, and what matters for a GPU besides."""
    found: Results = machine()
    for name in ("triton", "numba", "numba-cuda", "nvidia-nvimgcodec-cu13"):
        try:
            found["versions"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found["versions"][name] = None
    import torch

    found["cuda"] = torch.version.cuda
    try:
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem",
            "--format=csv,noheader",
        ]
        found["nvidia_smi"] = subprocess.run(
            query, capture_output=True, text=True, timeout=30, check=False
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        found["nvidia_smi"] = str(error)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument(
        "--shards", type=Path, help="a folder of shards with classes.json; default: generated photos"
    )
    arguments.add_argument(
        "--out", type=Path, default=BENCH / "results" / "gpu.json", help="a file; others' parts are kept"
    )
    arguments.add_argument("--budget-seconds", type=float, default=540)
    arguments.add_argument("--only", nargs="+", metavar="PART", help="parts by name, or by how their names start")
    args = arguments.parse_args()
    deadline = time.monotonic() + args.budget_seconds
    shards = ["--shards", args.shards.resolve()] if args.shards else []
    chosen = parts(args.device, shards)
    if args.only:
        chosen = [part for part in chosen if part.name.startswith(tuple(args.only))]
        if not chosen:
            known = ", ".join(part.name for part in parts(args.device, shards))
            arguments.error(f"--only must name parts; found {args.only}, there are: {known}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results: Results = json.loads(args.out.read_text()) if args.out.exists() else {}
    results["machine"] = surroundings()
    results["command"] = " ".join(["python", "bench/gpu.py", *sys.argv[1:]])
    for part in chosen:
        left = deadline - time.monotonic()
        print(f"\n== {part.name}: {left:.0f} s left", flush=True)
        start = time.monotonic()
        if left < LEAST:
            found: Results = {"skipped": f"{max(left, 0):.0f} of {args.budget_seconds:.0f} s were left"}
        else:
            found = part.run(min(part.limit, left - 5))
            found["seconds"] = round(time.monotonic() - start, 1)
        results[part.name] = found
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        print(found.get("printed", "")[-1500:] or found, flush=True)
    print(f"\n== summary, written to {args.out}")
    for part in chosen:
        found = results[part.name]
        says = found.get("skipped") or found.get("failed") or "done"
        counts = " ".join(str(found[name]) for name in ("counts", "not_passed") if found.get(name))
        print(f"{part.name:28} {says:40} {found.get('seconds', 0):6.1f} s  {counts}")


if __name__ == "__main__":
    main()
