"""The blends, once each: on the host compiled by Numba, on a device in torch."""
