"""Exceptions raised by multimix_pipe. All of them derive from `MultiMixError`.

Each message says what was required, what was found and what to do.
"""

import re

_USER = re.compile(r"([a-zA-Z][\w+.-]*://)[^/?#\s'\"]*@")
_QUERY = re.compile(r"([a-zA-Z][\w+.-]*://[^?#\s'\"]*)[?#][^\s'\"]*")


class MultiMixError(Exception):
    """Base class of the package's exceptions."""


class ConfigError(MultiMixError, ValueError):
    """An argument or a combination of arguments is invalid."""


class MissingBackendError(MultiMixError, ImportError):
    """A backend requested by name is not installed, or does not run on the device."""


class ShardError(MultiMixError):
    """A shard is missing, is not a tar file, or no longer matches its index."""


class BadSampleError(MultiMixError):
    """A sample cannot be decoded or has no label; the message names it as `shard.tar : key`."""


class StateMismatchError(MultiMixError):
    """A loader state belongs to another data set, seed or configuration; the message names the field."""


def printable(text: str) -> str:
    """Escape unprintable characters in `text`: keys come from untrusted shards and must not control a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def counted(count: int, noun: str) -> str:
    """Return e.g. "1 shard" or "1,200 shards"; `noun` is the singular."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def redacted(text: str) -> str:
    """Return `text` without the passwords and signatures of the URLs in it, for messages."""
    return _QUERY.sub(r"\1?...", _USER.sub(r"\1", text))
