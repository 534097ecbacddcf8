"""Resumes runs from their states, in a process of its own, for tests/test_resume.py."""

from __future__ import annotations

from itertools import islice
from typing import Any

from helpers.batches import fingerprint, until_epoch
from helpers.samples import CLASSES, TINY
from multimix_pipe import MultiMix, open_loader


def main(shards: str, jobs: list[dict[str, Any]], batches: int | None) -> list[dict[str, Any]]:
    """Resume each of `jobs`, see `resume`."""
    return [resume(shards, job, batches) for job in jobs]


def resume(shards: str, job: dict[str, Any], batches: int | None) -> dict[str, Any]:
    """The next `batches` of a run, None: all to the end of its second epoch; and the state after them."""
    settings = {"num_classes": CLASSES, "transform": TINY, "mix": MultiMix(k=job["k"]), "device": "cpu"}
    with open_loader(shards, num_threads=2, **settings, **job["options"]) as loader:
        loader.load_state_dict(job["state"])
        if batches is not None:
            found = [fingerprint(batch) for batch in islice(loader, batches)]
        else:
            found = [fingerprint(batch) for batch in until_epoch(loader, 2)]
        return {"batches": found, "state": loader.state_dict()}
