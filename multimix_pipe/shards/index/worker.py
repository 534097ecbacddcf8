"""The worker process that `build` starts; no module imports this one.

It reads jobs from stdin, one JSON line per job: [shard, label, index file]. It answers each job with one JSON line on stdout:
null, or [error message, whether the shard is to blame]. It ends at the end of stdin.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from multimix_pipe.errors import MultiMixError, ShardError
from multimix_pipe.shards.index.build import build_one


def serve() -> None:
    """Process the jobs on stdin until it ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # other prints must not be read as answers
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
