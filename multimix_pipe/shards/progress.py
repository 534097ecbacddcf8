"""Progress of long work on stderr: a bar on a terminal, a few lines in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

FIRST_LINE = 10.0
"""Seconds before the first line of a log, and the minimum between two lines."""


class Progress(tqdm):  # type: ignore[misc]  # untyped
    """A tqdm bar if stderr is a terminal; otherwise a line every 10 seconds, later less often, and one at the end.

    After the first minute, the time from the start grows by a quarter from line to line: a minute has 6 lines, an hour 25, a day
    39. Every update checks the clock, so that slow bars do not need tqdm's monitor thread, which would never end.
    """

    monitor_interval = 0
    _lines = False  # tqdm closes a bar even if an interrupt ended its __init__

    def __init__(
        self, desc: str, *, total: int | None, unit: str, disable: bool = False, unit_scale: bool = False
    ) -> None:
        terminal = getattr(sys.stderr, "isatty", bool)()  # an object that replaces stderr may lack it
        self._lines = not disable and not terminal
        self._style = {"prefix": desc, "unit": unit, "unit_scale": unit_scale, "ncols": 0}
        self._started = self._last_line = time.monotonic()
        super().__init__(
            desc=desc, total=total, unit=unit, unit_scale=unit_scale, disable=disable or self._lines, miniters=1
        )
        self.postfix = None  # a disabled tqdm bar has none

    def update(self, n: int = 1) -> Any:
        """Advance by `n`."""
        if not self._lines:
            return super().update(n)
        self.n += n
        now = time.monotonic()
        if now - self._last_line >= max(FIRST_LINE, (now - self._started) / 5):
            self._last_line = now
            self._write_line(now)
        return None

    def close(self) -> None:
        """Close the bar; in a log, write the last line."""
        if self._lines:
            self._lines = False
            self._write_line(time.monotonic())
        super().close()

    def _write_line(self, now: float) -> None:
        line = self.format_meter(self.n, self.total, now - self._started, postfix=self.postfix, **self._style)
        print(line, file=sys.stderr, flush=True)
