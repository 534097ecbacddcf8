"""Several labels per sample: sets of class ids, each stored once for all samples with the same text."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
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
    """The sets of labels of an index. Set s is the class ids `ids[start[s] : start[s + 1]]`, in ascending order."""

    start: Ints
    """(S + 1,)"""
    ids: npt.NDArray[np.int32]
    num_classes: int
    """The width of rows. Ids may be larger, see `outside`."""

    def __getitem__(self, number: int) -> list[int]:
        """Return the class ids of a set."""
        ids: list[int] = self.ids[self.start[number] : self.start[number + 1]].tolist()
        return ids

    def rows(self, numbers: Ints) -> npt.NDArray[np.float32]:
        """Return the sets of these numbers as rows (B, num_classes) of 0 and 1; -1 gives a row of 0."""
        out = np.zeros((len(numbers), self.num_classes), dtype=np.float32)
        first = self.start[numbers]
        count = np.where(numbers < 0, 0, self.start[numbers + 1] - first)
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        out[np.repeat(np.arange(len(numbers)), count), self.ids[np.repeat(first, count) + within]] = 1
        return out

    def counts(self, numbers: Ints) -> Ints:
        """Return how many of the sets of these numbers have each class id: (num_classes,), or longer if ids are larger."""
        times = np.bincount(numbers, minlength=len(self.start) - 1)
        return np.bincount(self.ids, np.repeat(times, np.diff(self.start)), self.num_classes).astype(np.int64)

    def outside(self) -> Ints:
        """Return the numbers of the sets that have an id >= num_classes."""
        return np.searchsorted(self.start, np.flatnonzero(self.ids >= self.num_classes), side="right") - 1


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
    note = np.full(len(index), -1, np.int32) if index.note is None else index.note
    notes, names = list(index.notes), names or {}
    used = np.unique(note[here & (note >= 0)]).tolist()
    read: Callable[[str], Any] = _from_json if is_json else partial(_words, names=names)
    width = num_classes
    if width is None:
        width = _longest_vector(notes[place] for place in used) if is_json else 0
    # arrays and one text at a time: a million sets as Python objects would take gigabytes
    ids, counts = array("i"), array("i")
    number = np.full(len(notes) + 1, -1, dtype=np.int64)  # the last entry is for note -1
    for place in used:
        try:
            found = _ids(read(notes[place]), width, names, offset)
        except ValueError as error:
            text = notes[place]
            notes[place] = f"{text[:_MAX_SHOWN]!r}{'...' * (len(text) > _MAX_SHOWN)}: {error}"
            continue
        number[place] = len(counts)
        counts.append(len(found))
        ids.extend(found)
    label[here] = number[note[here]]
    problem[here] = np.where(label[here] >= 0, FINE, BAD_LABELS)
    start = np.cumsum(np.append(0, np.array(counts)), dtype=np.int64)
    sets = LabelSets(start, np.array(ids, dtype=np.int32), width)
    if num_classes is None:
        sets = replace(sets, num_classes=max(width, int(sets.ids.max(initial=-1)) + 1))
    kept = number[:-1] < 0  # no message needs the texts that are labels
    place_of = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1).astype(np.int32)
    notes = [text for text, keep in zip(notes, kept.tolist(), strict=True) if keep]
    return replace(index, label=label, problem=problem, note=place_of[note], notes=tuple(notes), sets=sets)


def looks_several(text: str, names: Collection[str]) -> bool:
    """Return whether a text that is no single label may be several, or none: ids or names, or a list in JSON."""
    words = _words(text, names)
    return text.startswith("[") or (len(words) != 1 and all(isinstance(word, int) or word in names for word in words))


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
    return tuple(map(_word, words))


@lru_cache(maxsize=2**16)
def _word(word: str) -> int | str:
    return int(word) if _NUMBER.fullmatch(word) else word


def _ids(value: object, num_classes: int, names: Mapping[str, int], offset: int) -> list[int]:
    """Return the class ids of words, or of what a field of JSON holds, ascending. Raises ValueError if they are invalid."""
    if isinstance(value, list) and _is_vector(value, num_classes):
        return [i for i, has in enumerate(value) if has]
    items = value if isinstance(value, (list, tuple)) else [value]
    if set(map(type, items)) <= {int}:  # nearly always
        found = [item - offset for item in sorted(items)] if offset else sorted(items)
    else:
        found = sorted(_id(item, names, offset) for item in items)
    wrong = [i for i in (*found[:1], *found[-1:]) if not 0 <= i < MAX_CLASSES]
    if wrong:
        raise ValueError(f"{wrong[0] + offset} is no class id" + (f" with label_offset={offset}" if offset else ""))
    if len(set(found)) < len(found):
        raise ValueError("a class is repeated")
    return found


def _id(item: object, names: Mapping[str, int], offset: int) -> int:
    found = names.get(item) if isinstance(item, str) else item - offset if type(item) is int else None
    if found is None:
        raise ValueError(f"{item!r} is neither a class id nor a known class name")
    return found


def _is_vector(values: list[Any], num_classes: int) -> bool:
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


def _zeros_and_ones(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int, float, bool} and set(values) <= {0, 1}


def _cannot_be_ids(values: list[Any]) -> bool:
    return not set(map(type, values)) <= {int} or len(set(values)) < len(values)


def _longest_vector(texts: Iterable[str]) -> int:
    lists = (value for value in map(_from_json, texts) if isinstance(value, list))
    return max((len(value) for value in lists if _zeros_and_ones(value) and _cannot_be_ids(value)), default=0)
