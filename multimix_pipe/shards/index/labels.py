"""Reads labels from members: an integer, or a text that is noted and may be the name of a class."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache, partial

from multimix_pipe.shards.index.problems import BAD_JSON, FINE, LABEL_NOT_INT, LABEL_RANGE, NO_LABEL, Notes

NO_LABELS = "none"
"""The label specification of `label=None`."""

_INTEGER = re.compile(rb"\s*[+-]?[0-9]+\s*")
_MAX_JSON = 2**24  # bytes; longer texts are cut, so that they do not parse
_MAX_INTEGER = 64  # bytes, with white space
_MAX_TEXT = 256  # bytes; enough for a name
_MAX_SHOWN = 60  # characters of a text that is too long
_MAX_FIELDS = 12

Parsed = tuple[int, int]
"""Label and problem."""


def member_of(label: str) -> str | None:
    """Return the extension of the members that hold labels; None if no members do."""
    return {"folder": None, NO_LABELS: None}.get(label, label.partition(":")[0])


def limit_of(label: str) -> int:
    """Return how many bytes of a member to read."""
    return _MAX_JSON if label.startswith("json:") else _MAX_TEXT + 1


def parser_of(label: str) -> Callable[[bytes], Parsed]:
    """Return a function that parses the text of a member."""
    return partial(_parse_json, key=label.removeprefix("json:")) if label.startswith("json:") else _parse_text


def note_of(label: str, text: bytes) -> str:
    """Return what to note of a text that has no valid label: the text, or what a .json member has in its place."""
    if not label.startswith("json:"):
        return _decoded(text.strip() if len(text) <= _MAX_TEXT else text[:_MAX_SHOWN] + b"...")
    fields, key = json.loads(text), label.removeprefix("json:")
    if key in fields:
        value = fields[key]
        return value[:_MAX_TEXT] if isinstance(value, str) else repr(value)[:_MAX_SHOWN]
    names = [repr(name[:_MAX_SHOWN]) for name in fields]
    return "the fields " + (", ".join(names[:_MAX_FIELDS]) or "of {}") + (", ..." if len(names) > _MAX_FIELDS else "")


def parse_folder(key: bytes, notes: Notes) -> Parsed:
    """Return the label of a sample that is named by its folder, as a position in `notes`."""
    folder = key.rpartition(b"/")[0].rpartition(b"/")[2]
    return (notes(_decoded(folder)), LABEL_NOT_INT) if folder not in (b"", b".") else (-1, NO_LABEL)


@lru_cache(maxsize=2**16)
def _parse_text(text: bytes) -> Parsed:
    if len(text) > _MAX_INTEGER or not _INTEGER.fullmatch(text):
        return -1, LABEL_NOT_INT
    return _in_range(int(text))


def _parse_json(text: bytes, key: str) -> Parsed:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return -1, BAD_JSON
    if not isinstance(fields, dict):
        return -1, BAD_JSON
    if key not in fields:
        return -1, NO_LABEL
    value = fields[key]
    if isinstance(value, bool) or not isinstance(value, int):
        return -1, LABEL_NOT_INT
    return _in_range(value)


def _in_range(value: int) -> Parsed:
    return (value, FINE) if 0 <= value < 2**63 else (-1, LABEL_RANGE)


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
