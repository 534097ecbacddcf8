"""What can be wrong with a sample, as codes in an index."""

from __future__ import annotations

from multimix_pipe.shards.header import MAX_BYTES, MAX_PIXELS, UNREAD_FORMATS

FINE, BAD_HEADER, TOO_MANY_PIXELS, NO_LABEL, LABEL_NOT_INT, LABEL_RANGE, BAD_JSON, TOO_MANY_BYTES = range(8)
NO_IMAGE, DUPLICATE, UNKNOWN_CLASS, BAD_LABELS = range(8, 12)
UNREAD_FORMAT = 16
"""Code of the first of UNREAD_FORMATS; the others follow."""

_NOT_AN_IMAGE = ("an HTML page",)
_CONVERT = "; convert it to JPEG, PNG or WebP"

PROBLEMS: dict[int, str] = {
    BAD_HEADER: "the image header cannot be read",
    TOO_MANY_PIXELS: f"the image has more than {MAX_PIXELS:,} pixels",
    NO_LABEL: "there is no label",
    LABEL_NOT_INT: "the label is not an integer",
    LABEL_RANGE: "the label is negative or does not fit in 64 bits",
    BAD_JSON: "the .json member is not a JSON object",
    TOO_MANY_BYTES: f"the image has more than {MAX_BYTES:,} bytes",
    NO_IMAGE: "there is no image",
    DUPLICATE: "two members have the same key and extension",
    UNKNOWN_CLASS: "the label is neither an integer nor one of the class names",
    BAD_LABELS: "the labels are not different class ids or class names",
    **{
        UNREAD_FORMAT + i: f"{name} is not read{'' if name in _NOT_AN_IMAGE else _CONVERT}"
        for i, name in enumerate(UNREAD_FORMATS)
    },
}
"""What is wrong with a sample, by the code in `Index.problem`; code 0 is a sample without a known problem."""

LABEL_PROBLEMS = (NO_LABEL, LABEL_NOT_INT, LABEL_RANGE, BAD_JSON, UNKNOWN_CLASS, BAD_LABELS)

NOTED = (NO_LABEL, LABEL_NOT_INT, NO_IMAGE, DUPLICATE, BAD_LABELS)
"""Problems of which an index file notes what was found: the row's label is the position of that text, or -1."""

MAX_NOTES = 2**16
"""Different texts noted in an index file, unless they are labels."""


class Notes:
    """Collects distinct texts."""

    def __init__(self, most: float = MAX_NOTES) -> None:
        self.texts: dict[str, int] = {}
        self._most = most

    def __call__(self, text: str) -> int:
        """Return the position of `text`, or -1 if there are too many."""
        if len(self.texts) >= self._most and text not in self.texts:
            return -1
        return self.texts.setdefault(text, len(self.texts))
