"""The errors of multimix_pipe: one family, so that one `except MultiMixError` catches what this package refuses.

Each message says what was required, what was found and what to do.
"""


class MultiMixError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(MultiMixError, ValueError):
    """An argument, or a combination of arguments, that cannot work."""


class MissingBackendError(MultiMixError, ImportError):
    """A backend was asked for by name and its packages do not import."""


class ShardError(MultiMixError):
    """A shard is missing, is not a tar file, or is no longer what its index says."""


class BadSampleError(MultiMixError):
    """A sample that cannot be decoded or has no label; the message names it as `shard.tar : key`."""


class StateMismatchError(MultiMixError):
    """A loader state that belongs to another data set, seed or configuration; the message names the field."""


def printable(text: str) -> str:
    """`text` with all that is not printable escaped: shards are untrusted, and their keys must not control a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
