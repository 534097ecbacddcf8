"""WebDataset shards on disk: listing, indexing, reading and writing them."""

from multimix_pipe.shards.index import PROBLEMS, Index, open_index
from multimix_pipe.shards.listing import list_shards

__all__ = ["PROBLEMS", "Index", "list_shards", "open_index"]
