"""The equations of mixing: a reference in NumPy for each method, and the torch kernels that must agree with it.

This package's `__init__` and its references import NumPy alone; import `multimix_pipe.runtime.kernels.blend` for torch.
"""
