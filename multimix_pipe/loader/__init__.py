"""`open_loader` and what it gives: shards in, mixed batches out."""

from multimix_pipe.loader.loader import Loader
from multimix_pipe.loader.open import Source, open_context, open_loader

__all__ = ["Loader", "Source", "open_context", "open_loader"]
