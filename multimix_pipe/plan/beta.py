"""The quantile function of a Beta distribution from a table: fast, and bit-identical on every machine.

SciPy's `betaincinv` takes a microsecond per value, and its last bits depend on SciPy's version and on the machine's libm. It is
therefore called once, for a table, whose values are rounded to float32 to hide those bits. The table is interpolated with
operations that IEEE 754 defines exactly.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

OCTAVES = 40  # the table starts at u = 2**-41; a smaller u is clipped to that
CELLS = 512  # per octave
MIN_ALPHA = 1e-6  # below it all but 1 in 10,000 weights are 0 or 1 in float32, and SciPy 1.11 returns wrong values

Float64 = NDArray[np.float64]


def inverse_beta(alpha: float | tuple[float, float], u: Float64) -> Float64:
    """Return F^-1(u) for u in [0, 1], where F is the distribution function of Beta(alpha, alpha), or Beta(a, b).

    The error is below 2e-6 for parameters of at least 0.1. For smaller ones, F^-1 has jumps and the error grows there (1e-4 for
    alpha = 0.01), but every cell of the table keeps its exact probability.
    """
    if alpha == 1.0:
        return u  # F is the identity
    a, b = (max(value, MIN_ALPHA) for value in (alpha if isinstance(alpha, tuple) else (alpha, alpha)))
    mantissa, exponent = np.frexp(np.clip(np.minimum(u, 1 - u), 2.0 ** -(OCTAVES + 1), None))
    place = (exponent + OCTAVES + 2 * mantissa - 1) * CELLS
    lower = _interpolate(_quantiles(a, b), place)
    upper = lower if a == b else _interpolate(_quantiles(b, a), place)
    result: Float64 = np.where(u <= 0.5, lower, 1 - upper)
    return result


def _interpolate(x: Float64, place: Float64) -> Float64:
    cell = np.minimum(place.astype(np.int64), len(x) - 2)
    result: Float64 = x[cell] + (place - cell) * (x[cell + 1] - x[cell])
    return result


@lru_cache(maxsize=16)
def _quantiles(a: float, b: float) -> Float64:
    """Tabulate F^-1 at CELLS values of u per octave, from 2**-(OCTAVES + 1) to 1/2; the upper half is that of Beta(b, a)."""
    octaves = np.arange(-OCTAVES - 1, -1)[:, None]
    u = np.append(np.ldexp(1 + np.arange(CELLS) / CELLS, octaves), 0.5)
    quantiles: NDArray[np.float32] = betaincinv(a, b, u).astype(np.float32)
    return quantiles.astype(np.float64)
