"""Progress of long work on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

FIRST_LINE = 10.0
"""Seconds until a log's first line, and the least until its next."""


class Progress(tqdm):  # type: ignore[misc]  # untyped
    """tqdm's bar where stderr is a terminal; elsewhere lines, the first after 10 seconds, and one at the end.

    From line to line the time grows by a quarter: a minute has 6 lines, a day 40. Each update looks at the clock, so that
    tqdm's thread, which does this for slow bars and never ends, is not needed.
    """

    monitor_interval = 0
    _lines = False  # where an interrupt ends __init__, tqdm still closes it

    def __init__(
        self, desc: str, *, total: int | None, unit: str, disable: bool = False, unit_scale: bool = False
    ) -> None:
        terminal = getattr(sys.stderr, "isatty", bool)()  # what a user put in its place may not have it
        self._lines = not disable and not terminal
        self._style = {"prefix": desc, "unit": unit, "unit_scale": unit_scale, "ncols": 0}
        self._started = self._told = time.monotonic()
        super().__init__(
            desc=desc, total=total, unit=unit, unit_scale=unit_scale, disable=disable or self._lines, miniters=1
        )
        self.postfix = None  # tqdm leaves it out where it is disabled

    def update(self, n: int = 1) -> Any:
        """Count `n` more."""
        if not self._lines:
            return super().update(n)
        self.n += n
        now = time.monotonic()
        if now - self._told >= max(FIRST_LINE, (now - self._started) / 5):
            self._told = now
            self._write_line(now)
        return None

    def close(self) -> None:
        """End the phase; in a log, with its last line."""
        if self._lines:
            self._lines = False
            self._write_line(time.monotonic())
        super().close()

    def _write_line(self, now: float) -> None:
        line = self.format_meter(self.n, self.total, now - self._started, postfix=self.postfix, **self._style)
        print(line, file=sys.stderr, flush=True)
