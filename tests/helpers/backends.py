"""The backends that tests run on."""

from __future__ import annotations

import pytest

from multimix_pipe.loader.backend import dali_import_error

BACKENDS = ("torch", "dali")


def dali_missing() -> str | None:
    """Return why DALI cannot be used here, or None."""
    error = dali_import_error()
    return None if error is None else f"DALI does not import: {error}"


needs_dali = pytest.mark.skipif(dali_missing() is not None, reason=str(dali_missing()))
