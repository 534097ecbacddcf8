"""The study: what multi-mix does to a trained network, against controls that hold one thing equal at a time.

    multimix-pipe pack cifar10_jpeg.zip cifar                # class folders in train/ and test/, as shards
    python pipelines/evidence/study.py --data cifar          # run it, or go on with it; stop it at any time
    python pipelines/evidence/study.py --report              # tables and figure of the runs that there are

Each finished run is a line of OUT/runs.jsonl; an interrupted run is done again from its start. docs/evidence/study.md describes
the design and has the results. `--size full` is for a GPU and has not been run there yet.

The rule by which alpha is chosen, stated before any run: for each arm that mixes, train with every alpha on the selection seeds,
which no other run uses, and take the alpha whose mean accuracy on the held-out images is highest; of equals, the smallest. Test
images are not looked at until then, and no arm is left out after its result is seen.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch

from multimix_pipe import MultiMixError
from study_report import mean, write_report
from study_run import Arm, Data, Size, run

K = 5
SELECTION_SEED = 1000

_CPU = {"net": "small", "device": "cpu", "weight_decay": 5e-4, "scale": (0.5, 1.0), "flip": 0.5}
SIZES = {
    "small": Size(
        **_CPU, lr=0.1, pixels=16, train=5120, held_out=5000, epochs=60, batch_size=64,
        seeds=10, further_seeds=5, selection_seeds=2,
    ),
    "full": Size(
        net="airbench", device="auto", weight_decay=5e-4, scale=(0.5, 1.0), flip=0.5, lr=0.2, pixels=32,
        train=44_800, held_out=5000, epochs=40, batch_size=256, seeds=10, further_seeds=5, selection_seeds=2,
    ),
    "digits": Size(
        **{**_CPU, "scale": (0.7, 1.0), "flip": 0.0}, lr=0.1, pixels=8, train=160, held_out=500, epochs=120, batch_size=32,
        seeds=30, further_seeds=30, selection_seeds=3,
    ),
    "quick": Size(
        **_CPU, lr=0.05, pixels=8, train=20, held_out=8, epochs=1, batch_size=4,
        seeds=3, further_seeds=1, selection_seeds=1, corruptions=("contrast",),
    ),
}  # fmt: skip

ARMS = {
    "no mixing": Arm(core=True),
    "mixup": Arm({"k": 1}, core=True),
    "mixup, 5x the pairs": Arm({"k": 1}, core=True, pairs=K),
    "mixup, 5x longer": Arm({"k": 1}, core=True, longer=K),
    "K=2 stratified": Arm({"k": 2, "sampling": "stratified"}, core=True),
    "K=5 stratified": Arm({"k": K, "sampling": "stratified"}, core=True),
    "K=5 iid": Arm({"k": K}, core=True),
    "K=5 partners each": Arm({"k": K, "sampling": "stratified", "partners": "each"}, core=True),
    "K=5 crops each": Arm({"k": K, "sampling": "stratified", "crops": "each"}, core=True),
    "RegMixup": Arm({"k": 1}, core=True, members="clean"),
    "K=5 identical weights": Arm({"k": 1}, members="identical"),
    "no mixing, 5 updates a batch": Arm(echo=K),
    "no mixing, 5 crops": Arm({"k": K, "crops": "each", "prob": 0.0}),
    "no mixing, 5x longer": Arm(longer=K),
    "cutmix": Arm({"k": 1, "method": "cutmix"}),
    "cutmix, K=5 stratified": Arm({"k": K, "method": "cutmix", "sampling": "stratified"}),
    "switch": Arm({"k": 1, "method": {"mixup": 0.5, "cutmix": 0.5}}),
}


def members(arm: Arm) -> int:
    """Return K, the rows that an arm trains on for each image."""
    return {"identical": K, "clean": 2, "": (arm.mix or {}).get("k", 1)}[arm.members]


@dataclass(frozen=True)
class Run:
    """A run of the study, before its alpha is known."""

    arm: str
    seed: int
    alpha: float | None = None
    """Of a selection run."""
    final: bool = True
    """Whether it is measured on the test images; else it serves to choose alpha."""


def schedule(size: Size, arms: dict[str, Arm]) -> Iterator[Run]:
    """Yield the runs in order: seed by seed over all arms, and before an arm's first run those that choose its alpha."""
    for seed in range(max(size.seeds, size.further_seeds)):
        for name, arm in arms.items():
            if seed == 0 and arm.has_alpha:
                for selection in range(SELECTION_SEED, SELECTION_SEED + size.selection_seeds):
                    yield from (Run(name, selection, alpha, final=False) for alpha in size.alphas)
            if seed < (size.seeds if arm.core else size.further_seeds):
                yield Run(name, seed)


def chosen_alpha(arm: str, records: list[dict[str, Any]]) -> float:
    """Return the alpha of an arm by the rule at the top of this file."""
    found: dict[float, list[float]] = {}
    for record in records:
        if record["arm"] == arm and not record["final"]:
            found.setdefault(record["alpha"], []).append(record["held_out"]["top1"])
    return min(found, key=lambda alpha: (-mean(found[alpha]), alpha))


class Study:
    """The file of a study: a line of settings, then a line for each finished run."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Open it or begin it. Exits with one line if it has other settings, or if a process writes to it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "runs.jsonl"
        settings = json.loads(json.dumps(settings))
        self.file: IO[bytes] = self.path.open("a+b")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.close()
            raise SystemExit(
                f"study.py: {self.path} is being written by another process: wait for it or end it"
            ) from None
        self.file.seek(0)
        text = self.file.read()
        whole = text.rfind(b"\n") + 1  # a line without its end was cut off in the middle
        self.file.truncate(whole)
        lines = [json.loads(line) for line in text[:whole].splitlines()]
        self.records = lines[1:]
        if not lines:
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
            self._write({"settings": settings, "hash": digest})
        for name, value in settings.items():
            before = lines[0]["settings"].get(name) if lines else value
            if before != value:
                self._refuse(f"{name}={before!r}", repr(value))

    def check_arms(self, arms: dict[str, Arm]) -> None:
        """Exit with one line if a run was made with an arm that was defined otherwise."""
        for record in self.records:
            now = definition(arms[record["arm"]]) if record["arm"] in arms else record["is"]
            if record["is"] != now:
                self._refuse(f"the arm {record['arm']!r} as {record['is']}", str(now))

    def _refuse(self, before: str, now: str) -> None:
        self.file.close()
        raise SystemExit(
            f"study.py: a study goes on with the settings that it was begun with; {self.path} has {before}, now it is {now}. "
            "Pass another --out"
        )

    def find(self, run: Run) -> dict[str, Any] | None:
        """Return the record of a finished run."""
        for record in self.records:
            same = (record["arm"], record["seed"], record["final"]) == (run.arm, run.seed, run.final)
            if same and (run.final or record["alpha"] == run.alpha):
                return record
        return None

    def close(self) -> None:
        """Let other processes write to it."""
        self.file.close()

    def add(self, record: dict[str, Any]) -> None:
        """Append a finished run."""
        self._write(record)
        self.records.append(record)

    def _write(self, line: dict[str, Any]) -> None:
        if not self.path.exists() or not os.path.samefile(self.path, self.file.fileno()):
            raise SystemExit(
                f"study.py: {self.path} was replaced while the study ran; start it again to go on with that file"
            )
        self.file.write(json.dumps(line).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())


def definition(arm: Arm) -> dict[str, Any]:
    """Return what makes an arm, without what is default: it may have more seeds later."""
    default = asdict(Arm())
    plain = {name: value for name, value in asdict(arm).items() if value != default[name] and name != "core"}
    return json.loads(json.dumps(plain))


def machine(device: str) -> str:
    """Return the versions and the processor that a run was made with."""
    if device != "cpu" and torch.cuda.is_available():
        return f"torch {torch.__version__}, {torch.cuda.get_device_name()}"
    cpu = Path("/proc/cpuinfo")
    names = [line for line in cpu.read_text().splitlines() if line.startswith("model name")] if cpu.exists() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    return f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads"


def work(size: Size, arm: Arm) -> int:
    """Return what a run costs, in rows: on one core, decoding a small image takes about as long as training on a row."""
    images = size.train * size.epochs * arm.longer * arm.pairs
    return images * (1 + members(arm) * arm.echo) + 2 * (size.train + size.held_out)


def pace(size: Size, arms: dict[str, Arm], records: list[dict[str, Any]]) -> float:
    """Return the seconds that the latest runs took for each unit of `work`; 0 if there are none."""
    latest = [record for record in records if record["arm"] in arms][-10:]
    done = sum(work(size, arms[record["arm"]]) for record in latest)
    return sum(record["seconds"] for record in latest) / max(done, 1)


def carry_out(size: Size, arms: dict[str, Arm], data: Data, study: Study, minutes: float | None) -> None:
    """Do the runs that are not in the study yet, as long as there is time."""
    runs = list(schedule(size, arms))
    left = [run for run in runs if study.find(run) is None]
    end = float("inf") if minutes is None else time.perf_counter() + 60 * minutes
    for place, todo in enumerate(left):
        arm = arms[todo.arm]
        if time.perf_counter() + pace(size, arms, study.records) * work(size, arm) > end:
            print(f"stopped with {len(left) - place} runs left: the next one would not end in time", flush=True)
            return
        alpha = todo.alpha if not todo.final or not arm.has_alpha else chosen_alpha(todo.arm, study.records)
        found = run(size, arm, members(arm), alpha, todo.seed, data, final=todo.final)
        key = {"arm": todo.arm, "seed": todo.seed, "alpha": alpha, "final": todo.final, "is": definition(arm)}
        date = time.strftime("%Y-%m-%d", time.gmtime())
        study.add({**key, **found, "on": machine(size.device), "date": date})
        rest = sum(work(size, arms[later.arm]) for later in left[place + 1 :])
        hours, seconds = divmod(round(rest * pace(size, arms, study.records)), 3600)
        top1 = found["test" if todo.final else "held_out"]["top1"]
        print(
            f"run {len(runs) - len(left) + place + 1} of {len(runs)}: {todo.arm}, {'' if todo.final else 'choosing '}"
            f"alpha {alpha}, seed {todo.seed}: {top1:.1%} in {found['seconds']:.0f} s; time left {hours} h {seconds // 60} min",
            flush=True,
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, help="folder with shards in train/, and in test/ or val/, as `multimix-pipe pack` writes"
    )
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="small",
        help="small: CIFAR-10 on one CPU core; digits: see digits.py; full: a GPU, not tried yet; quick: a test",
    )
    parser.add_argument("--out", type=Path, help="folder of the study; default: results/study-SIZE beside this file")
    parser.add_argument("--arms", help="only these, separated by semicolons; default: all")
    parser.add_argument("--minutes", type=float, help="begin no run that would end later than this")
    parser.add_argument(
        "--report", action="store_true", help="write table.md and figure.png into --out, from runs.jsonl alone"
    )
    args = parser.parse_args()
    args.out = args.out or Path(__file__).parent / "results" / f"study-{args.size}"
    if args.data is None and not args.report:
        parser.error("--data is required: a folder with shards in train/, and in test/ or val/")
    return args


def chosen_arms(names: str | None) -> dict[str, Arm]:
    """Return the arms of those names, or all."""
    wanted = list(ARMS) if names is None else [name.strip() for name in names.split(";")]
    for name in wanted:
        if name not in ARMS:
            raise SystemExit(f"study.py: --arms must be among {'; '.join(ARMS)}; found {name!r}")
    return {name: ARMS[name] for name in wanted}


def main() -> None:
    args = parse_arguments()
    size = SIZES[args.size]
    if args.report:
        arms = chosen_arms(None)
        planned = {name: size.seeds if arm.core else size.further_seeds for name, arm in arms.items()}
        print(write_report(args.out, planned, total=sum(1 for _ in schedule(size, arms))))
        return
    arms = chosen_arms(args.arms)
    if size.device == "cpu":
        torch.set_num_threads(1)
    try:
        data = Data(args.data, size)
        shared = {name: value for name, value in asdict(size).items() if name not in ("seeds", "further_seeds")}
        with closing(Study(args.out, {**shared, "data": data.fingerprint})) as study:
            study.check_arms(ARMS)
            carry_out(size, arms, data, study, args.minutes)
    except MultiMixError as error:
        sys.exit(f"study.py: {error}")


if __name__ == "__main__":
    main()
