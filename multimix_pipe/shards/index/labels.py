"""Reads labels from members: an integer, or a text that is noted and may be the name of a class."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache, partial

from multimix_pipe.shards.index.problems import BAD_JSON, BAD_LABELS, FINE, LABEL_NOT_INT, LABEL_RANGE, NO_LABEL, Notes

NO_LABELS = "none"
"""The label specification of `label=None`."""

SEVERAL = "several:"
"""Prefix of the label specification where samples may have several labels; all of them are noted as texts, see `sets`."""

_INTEGER = re.compile(rb"\s*[+-]?[0-9]+\s*")
_MAX_JSON = 2**24  # bytes; longer texts are cut, so that they do not parse
_MAX_INTEGER = 64  # bytes, with white space
_MAX_TEXT = 256  # bytes; enough for a name
_MAX_SEVERAL = 2**16  # bytes of the text of several labels
_MAX_SHOWN = 60  # characters of a text that is too long
_MAX_FIELDS = 12

Parsed = tuple[int, int]
"""Label and problem."""


def member_of(label: str) -> str | None:
    """Return the extension of the members that hold labels; None if no members do."""
    label = label.removeprefix(SEVERAL)
    return {"folder": None, NO_LABELS: None}.get(label, label.partition(":")[0])


def limit_of(label: str) -> int:
    """Return how many bytes of a member to read."""
    if label.removeprefix(SEVERAL).startswith("json:"):
        return _MAX_JSON
    return (_MAX_SEVERAL if label.startswith(SEVERAL) else _MAX_TEXT) + 1


def parser_of(label: str) -> Callable[[bytes], Parsed]:
    """Return a function that parses the text of a member."""
    if label.startswith(SEVERAL):
        key = label.removeprefix(SEVERAL + "json:")
        return partial(_parse_several_json, key=key) if key != label else _parse_several
    return partial(_parse_json, key=label.removeprefix("json:")) if label.startswith("json:") else _parse_text


def note_of(label: str, text: bytes) -> str:
    """Return what to note of a text that has no valid label: the text, or what a .json member has in its place."""
    if label.startswith(SEVERAL):
        return _note_of_several(label.removeprefix(SEVERAL), text)
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
    value, problem = _field(text, key)
    if problem != FINE or type(value) is not int:
        return -1, problem or LABEL_NOT_INT
    return _in_range(value)


def _field(text: bytes, key: str) -> tuple[object, int]:
    """Return what a .json member has at `key`, and the problem if that is missing."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None, BAD_JSON
    if not isinstance(fields, dict):
        return None, BAD_JSON
    return (fields[key], FINE) if key in fields else (None, NO_LABEL)


def _parse_several(text: bytes) -> Parsed:
    return -1, LABEL_NOT_INT if len(text) <= _MAX_SEVERAL else BAD_LABELS


def _parse_several_json(text: bytes, key: str) -> Parsed:
    value, problem = _field(text, key)
    return -1, problem or (BAD_LABELS if _nested(value) else LABEL_NOT_INT)


def _nested(value: object) -> str:
    """Return what a field of JSON is that holds more than ids and names, such as boxes; "" if it does not."""
    if isinstance(value, dict):
        return "object"
    inner = next((item for item in value if isinstance(item, (dict, list))), None) if isinstance(value, list) else None
    return "" if inner is None else f"list of {'object' if isinstance(inner, dict) else 'list'}s"


def _note_of_several(label: str, text: bytes) -> str:
    """Return all labels of a sample: the text of a member, or the JSON of a field; of what is no such thing, what it is."""
    if not label.startswith("json:"):
        return _decoded(text.strip()) if len(text) <= _MAX_SEVERAL else f"more than {_MAX_SEVERAL:,} bytes"
    fields, key = json.loads(text), label.removeprefix("json:")
    if key not in fields:
        return note_of(label, text)
    found = _nested(fields[key])
    return f"a JSON {found}" if found else json.dumps(fields[key], separators=(",", ":"))


def _in_range(value: int) -> Parsed:
    return (value, FINE) if 0 <= value < 2**63 else (-1, LABEL_RANGE)


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
