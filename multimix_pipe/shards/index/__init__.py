"""The index of a set of shards: where each sample lies, its size, its label, and what is wrong with it."""

from multimix_pipe.shards.index.index import LABEL_PROBLEMS, PROBLEMS, Index, open_index

__all__ = ["LABEL_PROBLEMS", "PROBLEMS", "Index", "open_index"]
