"""Packing an image folder or a zip of one into shards."""

from multimix_pipe.shards.pack.write import pack

__all__ = ["pack"]
