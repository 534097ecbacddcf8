"""What both executors share: their context, reading ahead, bad samples, buffers, the mix stage and its kernels."""
