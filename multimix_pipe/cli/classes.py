"""Names to show for class ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from multimix_pipe.shards.index import Index

if TYPE_CHECKING:
    from torch import Tensor


def class_names(index: Index) -> list[str]:
    """Return a name for each class id in the index; a class without a name gets its id."""
    names = list(index.classes or ())
    count = max(int(index.class_ids.max(initial=-1)) + 1, 0 if index.sets is None else index.sets.num_classes)
    return names + [str(number) for number in range(len(names), count)] or ["0"]


def shown_labels(labels: Tensor, names: Sequence[str]) -> list[str]:
    """Return the name of each sample's class, or those of several; "" for none. `labels` are those of a batch."""
    if labels.ndim == 1:
        return [names[label] if label >= 0 else "" for label in labels.tolist()]
    return [", ".join(names[i] for i in row.nonzero().flatten().tolist()) for row in labels]
