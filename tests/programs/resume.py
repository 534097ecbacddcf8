"""Resume runs from their states, in a process of its own, for tests/test_resume.py: `python -m programs.resume JOBS.json`."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from helpers.batches import fingerprint, until_epoch
from helpers.samples import CLASSES, TINY
from multimix_pipe import MultiMix, open_loader


def resume(shards: str, context: dict[str, Any], batches: int | None) -> dict[str, Any]:
    """The next `batches` of a run, None: all to the end of its second epoch; and the state after them."""
    settings = {"num_classes": CLASSES, "transform": TINY, "mix": MultiMix(k=context["k"]), "device": "cpu"}
    with open_loader(shards, num_threads=2, **settings, **context["options"]) as loader:
        loader.load_state_dict(context["state"])
        found = []
        if batches is not None:
            while len(found) < batches:  # at the very end of an epoch its iteration is empty
                for batch in islice(loader, batches - len(found)):
                    found.append(fingerprint(batch))
        else:
            found = [fingerprint(batch) for batch in until_epoch(loader, 2)]
        return {"batches": found, "state": loader.state_dict()}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps([resume(asked["shards"], context, asked["batches"]) for context in asked["jobs"]]))
