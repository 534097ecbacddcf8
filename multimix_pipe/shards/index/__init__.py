"""The index of a set of shards: where each sample is, its size, its label and its problem, if any."""

from multimix_pipe.shards.index.index import LABEL_PROBLEMS, PROBLEMS, Index, open_index

__all__ = ["LABEL_PROBLEMS", "PROBLEMS", "Index", "open_index"]
