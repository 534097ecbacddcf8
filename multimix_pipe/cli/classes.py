"""Names to show for class ids."""

from __future__ import annotations

from multimix_pipe.shards.index import Index


def class_names(index: Index) -> list[str]:
    """Return a name for each class id in the index; a class without a name gets its id."""
    names = list(index.classes or ())
    return names + [str(number) for number in range(len(names), int(index.label.max()) + 1)] or ["0"]
