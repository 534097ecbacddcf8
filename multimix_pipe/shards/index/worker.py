"""What a process started by `build` runs; nothing imports it.

It reads one JSON line a job (shard, label, index file) from stdin and answers each with one JSON line on stdout: null, or the
error's message and whether the shard is to blame. It ends when stdin does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from multimix_pipe.errors import MultiMixError, ShardError
from multimix_pipe.shards.index.build import build_one


def serve() -> None:
    """Work until stdin ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever else prints must not pass for an answer
    for line in sys.stdin:
        shard, label, target = json.loads(line)
        answer = None
        try:
            build_one(Path(shard), label, Path(target))
        except MultiMixError as error:
            answer = str(error), isinstance(error, ShardError)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
