"""The DALI backend, and multi-mix as a stage for any DALI pipeline. Only this folder imports nvidia.dali.

>>> from multimix_pipe.dali import class_id, multi_mix
"""

from multimix_pipe.dali.stage import class_id, multi_mix

__all__ = ["class_id", "multi_mix"]
