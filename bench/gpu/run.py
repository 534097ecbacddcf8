"""Everything that only a GPU can show, in one command: tests, the mixing stage, the pipeline, training, pixels.

    python bench/gpu/run.py [--device cuda] [--shards FOLDER] [--out FILE] [--budget-seconds 540] [--only PART ...]

Parts run in the order of their worth, each in a process of its own and with a time limit, so that a crash or a hang in one loses
none of the others; FILE is written anew after each part, and keeps the parts that it has. A part that no longer fits the budget
is listed as skipped. It needs this package's requirements, DALI, pytest and torchvision (for its ResNet-50); nothing is installed
or downloaded. `--device cpu` is a dry run with small settings: it shows that all of it works, its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import ROOT, Part, machine, run_parts, run_python, run_script

TAIL = 16_000
"""Characters kept of what the tests print."""


def run_tests(file: str, limit: float) -> dict[str, Any]:
    """The tests of one file: counts, and the names of those that did not pass. A crash or a hang loses those after it."""
    # -W default: another machine's versions may warn of what has nothing to do with GPUs
    options = ["-v", "-rs", "-W", "default", "--tb=short", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=60"]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        command = ["-m", "pytest", *options, "-o", "faulthandler_exit_on_timeout=true", file]
        failure = run_python(command, limit, stdout=log, stderr=subprocess.STDOUT)
        log.seek(0)
        printed = log.read()
    print(printed[-1500:], flush=True)
    outcomes = dict(re.findall(r"^(tests/\S+::\S.*?) (PASSED|FAILED|SKIPPED|ERROR|XFAIL)\b", printed, re.MULTILINE))
    bad = {name: kind for name, kind in outcomes.items() if kind not in ("PASSED", "SKIPPED", "XFAIL")}
    return {"counts": dict(Counter(outcomes.values())), "not_passed": bad, **failure, "printed": printed[-TAIL:]}


def parts(device: str, shards: list[object]) -> dict[str, Part]:
    """All parts by name, the one that is worth most first."""
    gpu = device != "cpu"
    common = ["--device", device, "--rounds", 5 if gpu else 1]
    tiny = [] if gpu else ["--batch-size", 4, "--size", 32, "--repeat", 1, "--steps", 2]
    stage = ["--batch-size", 256, "--repeat", 20] if gpu else ["--batch-size", 2, "--size", 32, "--repeat", 2]
    resnet = ["--network", "torchvision.models:resnet50", "--steps", 10, "--repeat", 64] if gpu else []
    handover = ["--device", device, *shards, *([] if gpu else ["--batch-size", 4, "--repeat", 1, "--take", 2])]
    host_side = [*common[2:], *([] if gpu else ["--samples", 512, "--tars", 8, "--seconds", 0.2])]
    methods = ["--batch-size", 256, "--images", 12800] if gpu else ["--batch-size", 4, "--size", 32, "--images", 8]
    scaling = (
        ["--rounds", 3, *shards] if gpu else ["--rounds", 1, "--seconds", 0.2, "--images", 256, "--threads", 2, *shards]
    )
    mix_stage = partial(run_script, "mix_stage.py", *common, *stage)
    rates = partial(run_script, "gpu/rates.py", *common, *shards, *tiny)
    training = partial(run_script, "training.py", *common, *shards, *resnet)
    # more hardware queues than the default 8: where streams share one, work of one waits for another's
    queues = {"CUDA_DEVICE_MAX_CONNECTIONS": "32"}
    return {
        "tests/test_gpu.py": (200, partial(run_tests, "tests/test_gpu.py")),
        "tests/test_gpu_dali.py": (60, partial(run_tests, "tests/test_gpu_dali.py")),
        "mix_stage": (60, mix_stage),
        "pipeline": (150, rates),
        "handover": (60, partial(run_script, "gpu/handover.py", *handover)),
        "handover, 32 queues": (60, partial(run_script, "gpu/handover.py", *handover, variables=queues)),
        "host_side": (90, partial(run_script, "host_side.py", *host_side)),
        "training, K=5": (100, partial(training, "--batch-size", 128, *tiny)),
        "training, K=5, 32 queues": (100, partial(training, "--batch-size", 128, *tiny, variables=queues)),
        "training, no mixing": (100, partial(training, "--batch-size", 640, "--k", 0, *tiny)),
        "pixels": (90, partial(run_script, "pixels.py", "--device", device, *shards)),
        "pipeline float16": (120, partial(rates, "--dtype", "float16")),
        "methods": (
            180,
            partial(run_script, "loading.py", "methods", *common, *shards, "--backends", "dali", *methods),
        ),
        "mix_stage bfloat16, cutmix": (60, partial(mix_stage, "--method", "cutmix", "--dtype", "bfloat16")),
        "scaling": (540, partial(run_script, "scaling.py", *scaling)),
        "plan": (60, partial(run_script, "plan.py", *common[2:])),
    }


def driver() -> str:
    """The GPU's name, driver, memory and clocks, or why they are not known."""
    query = "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout.strip()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("--device", default="cuda")
    add("--shards", type=Path, help="folder of shards with classes.json; default: generated photos")
    add("--out", type=Path, default=ROOT / "bench" / "results" / "gpu.json", help="file; default: %(default)s")
    add("--budget-seconds", type=float, default=540)
    add("--only", nargs="+", metavar="PART", help="parts by name, or by how their names start")
    args = arguments.parse_args()
    known = parts(args.device, ["--shards", args.shards.resolve()] if args.shards else [])
    asked = args.only or [""]
    chosen = {
        name: part
        for name, part in known.items()
        if any(name == text or (text not in known and name.startswith(text)) for text in asked)
    }
    if not chosen:
        arguments.error(f"--only must name parts; found {args.only}, there are: {', '.join(known)}")
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    results["machine"] = {**machine(), "nvidia_smi": driver()}
    return run_parts(chosen, results, args.out, deadline=time.monotonic() + args.budget_seconds)


if __name__ == "__main__":
    sys.exit(main())
