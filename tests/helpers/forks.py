"""Runs programs in separate processes without start-up time: they are forked from a server that has done their imports."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers.processes import environment, program


class Forks:
    """Runs `programs` as forks of one server, one at a time."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self._server = server
        self._out = folder / "result"
        self.errors = folder / "stderr"
        """Everything that the server and its children have written to stderr."""

    def run(self, name: str, **arguments: object) -> Any:
        """Return what `programs.name.main(**arguments)` returns. Fails if the process ends in another way."""
        before = len(self.errors.read_bytes())
        code = self.exit_code(name, **arguments)
        assert code == 0, f"{name} ended with {code}: {self.errors.read_bytes()[before:][-3000:].decode()}"
        return json.loads(self._out.read_text())

    def exit_code(
        self, name: str, *, meanwhile: Callable[[int], object] = lambda pid: None, **arguments: object
    ) -> int:
        """Return the exit code of a program. `meanwhile` is called with its process id."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps([name, arguments, str(self._out)]) + "\n")
        self._server.stdin.flush()
        meanwhile(self._answer(name))
        return self._answer(name)

    def _answer(self, name: str) -> int:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, f"{name}: the server has ended; {self.errors.read_text()}"
        return int(line)


@contextmanager
def fork_server(folder: Path) -> Iterator[Forks]:
    """Start a server whose stderr is a file in `folder`."""
    # no library may start threads when it is imported
    variables = environment(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": variables}
    with open(folder / "stderr", "w") as stderr, subprocess.Popen(program("server"), stderr=stderr, **pipes) as server:
        try:
            yield Forks(server, folder)
        finally:
            server.kill()
