"""The mixing methods by name. A new one is a file beside this one, and a line here."""

from __future__ import annotations

from multimix_pipe.mixing.method import Method
from multimix_pipe.mixing.mixup import Mixup

METHODS: dict[str, Method] = {
    "mixup": Mixup(),
}
