"""Reading plain tar files: their members in file order, without unpacking anything."""

from multimix_pipe.shards.tar.members import DamagedTarError, Member, Members, split_name
from multimix_pipe.shards.tar.walk import READ_BUFFER, read_batches, read_members

__all__ = [
    "READ_BUFFER",
    "DamagedTarError",
    "Member",
    "Members",
    "read_batches",
    "read_members",
    "split_name",
]
