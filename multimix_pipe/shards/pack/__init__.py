"""Writing shards from a folder or a zip of images."""

from multimix_pipe.shards.pack.write import pack

__all__ = ["pack"]
