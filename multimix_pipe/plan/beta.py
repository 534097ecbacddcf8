"""The inverse distribution function of Beta(alpha, alpha), by a table: fast, and the same to the bit on any machine.

SciPy's `betaincinv` takes a microsecond a value, and its last bits depend on its version and on the machine's libm. So it is
asked for a table once; its values are rounded to float32, which hides those bits, and between them only operations that IEEE
754 defines to the bit are used.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

OCTAVES = 40  # the table begins at 2**-41: a smaller u is taken for that
CELLS = 512  # an octave
SMALLEST_ALPHA = 1e-6  # below it all but 1 in 10,000 weights are 0 or 1 in float32, and SciPy 1.11 goes wrong

Float64 = NDArray[np.float64]


def inverse_beta(alpha: float, u: Float64) -> Float64:
    """F^-1(u) for the distribution function F of Beta(alpha, alpha), u in [0, 1]; within 2e-6 for alpha >= 0.1.

    For a smaller alpha F^-1 jumps from 0 to 1 near u = 1/2, and the error grows there (1e-4 for alpha = 0.01); what is drawn
    always has the right probability in each cell of the table.
    """
    if alpha == 1.0:
        return u  # F is the identity
    x = _quantiles(max(alpha, SMALLEST_ALPHA))
    mantissa, exponent = np.frexp(np.clip(np.minimum(u, 1 - u), 2.0 ** -(OCTAVES + 1), None))
    place = (exponent + OCTAVES + 2 * mantissa - 1) * CELLS
    cell = np.minimum(place.astype(np.int64), len(x) - 2)
    lower = x[cell] + (place - cell) * (x[cell + 1] - x[cell])
    result: Float64 = np.where(u <= 0.5, lower, 1 - lower)
    return result


@lru_cache(maxsize=8)
def _quantiles(alpha: float) -> Float64:
    """F^-1 at CELLS values of u an octave from 2**-(OCTAVES + 1) up to 1/2; the upper half follows by symmetry."""
    octaves = np.arange(-OCTAVES - 1, -1)[:, None]
    u = np.append(np.ldexp(1 + np.arange(CELLS) / CELLS, octaves), 0.5)
    quantiles: NDArray[np.float32] = betaincinv(alpha, alpha, u).astype(np.float32)
    return quantiles.astype(np.float64)
