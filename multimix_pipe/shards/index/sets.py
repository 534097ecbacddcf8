"""Several labels per sample: the different sets of class ids, each stored once."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from multimix_pipe.shards.classes import MAX_CLASSES
from multimix_pipe.shards.index.problems import BAD_LABELS, FINE, LABEL_NOT_INT

if TYPE_CHECKING:
    from multimix_pipe.shards.index.index import Index

Ints = npt.NDArray[np.int64]

_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
_SEPARATORS = re.compile(r"[,;\n]")
_MAX_SHOWN = 60  # characters of a text


@dataclass(frozen=True, eq=False)
class LabelSets:
    """The different sets of labels of an index. Set s is the class ids `ids[start[s] : start[s + 1]]`, in ascending order."""

    start: Ints
    """(S + 1,)"""
    ids: Ints
    num_classes: int
    """The width of rows. Ids may be larger, see `outside`."""

    def __getitem__(self, number: int) -> list[int]:
        """Return the class ids of a set."""
        ids: list[int] = self.ids[self.start[number] : self.start[number + 1]].tolist()
        return ids

    def rows(self, numbers: Ints) -> npt.NDArray[np.float32]:
        """Return the sets of these numbers as rows (B, num_classes) of 0 and 1."""
        out = np.zeros((len(numbers), self.num_classes), dtype=np.float32)
        first = self.start[numbers]
        count = self.start[numbers + 1] - first
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        out[np.repeat(np.arange(len(numbers)), count), self.ids[np.repeat(first, count) + within]] = 1
        return out

    def counts(self, numbers: Ints) -> Ints:
        """Return how many of the sets of these numbers have each class id: (num_classes,), or longer if ids are larger."""
        times = np.bincount(numbers, minlength=len(self.start) - 1)
        return np.bincount(self.ids, np.repeat(times, np.diff(self.start)), self.num_classes).astype(np.int64)

    def outside(self) -> Ints:
        """Return the numbers of the sets that have an id >= num_classes."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))[self.ids >= self.num_classes]


def translate_sets(
    index: Index, is_json: bool, num_classes: int | None, names: Mapping[str, int] | None, offset: int
) -> Index:
    """Return the index with the noted texts of labels as `Index.sets`; a sample whose text is invalid gets BAD_LABELS.

    A text holds class ids, from which `offset` is subtracted, or `names`, separated by commas, semicolons or white space. A field
    of JSON holds an id, a name, or a list: of ids and names, or of num_classes times 0 or 1 (or false and true), one for each
    class. Without num_classes it is found from the labels.
    """
    label, problem = np.full(len(index), -1, dtype=np.int64), index.problem.copy()
    here = problem == LABEL_NOT_INT
    note = np.full(len(index), -1, np.int32) if index.note is None else index.note.copy()
    notes, names = list(index.notes), names or {}
    used = np.unique(note[here & (note >= 0)]).tolist()
    values = {place: _from_json(notes[place]) if is_json else _words(notes[place], names) for place in used}
    width = _longest_vector(values.values()) if num_classes is None else num_classes
    sets: dict[tuple[int, ...], int] = {}
    number = np.full(len(notes) + 1, -1, dtype=np.int64)  # the last entry is for note -1
    for place, value in values.items():
        try:
            number[place] = sets.setdefault(_ids(value, width, names, offset), len(sets))
        except ValueError as error:
            text = notes[place]
            notes[place] = f"{text[:_MAX_SHOWN]!r}{'...' * (len(text) > _MAX_SHOWN)}: {error}"
    label[here] = number[note[here]]
    problem[here] = np.where(label[here] >= 0, FINE, BAD_LABELS)
    start = np.cumsum([0, *map(len, sets)], dtype=np.int64)
    ids = np.array([i for found in sets for i in found], dtype=np.int64)
    if num_classes is None:
        width = max(width, int(ids.max(initial=-1)) + 1)
    return replace(
        index, label=label, problem=problem, note=note, notes=tuple(notes), sets=LabelSets(start, ids, width)
    )


def looks_several(text: str, names: Collection[str]) -> bool:
    """Return whether a text that is no single label may be several: ids or names, or a list in JSON."""
    words = _words(text, names)
    return text.startswith("[") or (len(words) > 1 and all(isinstance(word, int) or word in names for word in words))


def _from_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # no scan notes this, but index files may come from anywhere
        return None


def _words(text: str, names: Collection[str]) -> tuple[int | str, ...]:
    """Return the ids and names in a text. White space separates them unless it is a part of one of `names`."""
    words: list[str] = []
    for part in (text,) if text in names else map(str.strip, _SEPARATORS.split(text)):
        words += [part] if part in names else part.split()
    return tuple(int(word) if _NUMBER.fullmatch(word) else word for word in words)


def _ids(value: Any, num_classes: int, names: Mapping[str, int], offset: int) -> tuple[int, ...]:
    """Return the class ids of words, or of what a field of JSON holds. Raises ValueError if they are invalid."""
    if isinstance(value, list) and _is_vector(value, num_classes):
        return tuple(np.flatnonzero(value).tolist())
    items = value if isinstance(value, (list, tuple)) else [value]
    found = sorted(_id(item, names, offset) for item in items)
    if len(set(found)) < len(found):
        raise ValueError("a class is repeated")
    return tuple(found)


def _id(item: object, names: Mapping[str, int], offset: int) -> int:
    found = names.get(item) if isinstance(item, str) else item - offset if type(item) is int else None
    if found is None:
        raise ValueError(f"{item!r} is neither a class id nor a known class name")
    if not 0 <= found < MAX_CLASSES:
        raise ValueError(f"{item} is no class id" + (f" with label_offset={offset}" if offset else ""))
    return found


def _is_vector(values: Sequence[object], num_classes: int) -> bool:
    """Return whether a list says for each class whether the sample has it. Raises ValueError if it could also be ids."""
    if not _zeros_and_ones(values):
        return False
    if len(values) == num_classes:
        if values and not _cannot_be_ids(values):
            raise ValueError("it could be class ids or a vector of 0 and 1; write names, or true and false")
        return True
    if _cannot_be_ids(values):
        raise ValueError(f"ids must differ, and a vector of 0 and 1 must have num_classes={num_classes} numbers")
    return False


def _zeros_and_ones(values: Sequence[object]) -> bool:
    return all(isinstance(value, (int, float)) and value in (0, 1) for value in values)


def _cannot_be_ids(values: Sequence[object]) -> bool:
    return any(type(value) is not int for value in values) or len(set(values)) < len(values)


def _longest_vector(values: Collection[object]) -> int:
    lists = (value for value in values if isinstance(value, list) and _zeros_and_ones(value) and _cannot_be_ids(value))
    return max(map(len, lists), default=0)
