"""Code that both executors share: the context, prefetching, bad samples, buffers, the mix stage and its kernels."""
