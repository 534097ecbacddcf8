"""Class names, read from the classes.json that `pack` writes next to the shards."""

from __future__ import annotations

import json
import logging

from multimix_pipe.shards.index import Index

CLASSES_FILE = "classes.json"  # {"0": "airplane", ...}

logger = logging.getLogger("multimix_pipe")


def class_names(index: Index) -> list[str]:
    """Return the names in the order of the class ids, for all ids in the index; a class without a name gets its id."""
    path = index.shards[0].parent / CLASSES_FILE
    names: dict[int, str] = {}
    try:
        names = {int(number): str(name) for number, name in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, AttributeError) as error:
        logger.warning("%s: must hold {id: name, ...}; showing class ids instead: %s", path, error)
    highest = max([int(index.label.max()), 0, *names])
    return [names.get(number, str(number)) for number in range(highest + 1)]
