"""Reading plain tar files: their members in file order, without unpacking anything."""

from multimix_pipe.shards.tar.headers import HeaderFile
from multimix_pipe.shards.tar.members import DamagedTarError, Member, Members, split_name
from multimix_pipe.shards.tar.walk import READ_BUFFER, TARFILE_ERRORS, read_batches, read_members

__all__ = [
    "READ_BUFFER",
    "TARFILE_ERRORS",
    "DamagedTarError",
    "HeaderFile",
    "Member",
    "Members",
    "read_batches",
    "read_members",
    "split_name",
]
