"""`open_loader` and the `Loader` that it returns."""

from multimix_pipe.loader.loader import Loader
from multimix_pipe.loader.open import Source, open_context, open_loader

__all__ = ["Loader", "Source", "open_context", "open_loader"]
