"""Data at rest: WebDataset shards, their index, writing and checking them."""

from multimix_pipe.shards.index import PROBLEMS, Index, open_index
from multimix_pipe.shards.listing import list_shards

__all__ = ["PROBLEMS", "Index", "list_shards", "open_index"]
