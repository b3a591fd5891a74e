"""Derivatives of snnTorch's surrogates."""

import numpy as np

from .compiling import inlined
from .simd import absolute, exp, full_like, where

SURROGATES = {
    "atan": 0,
    "fast_sigmoid": 1,
    "sigmoid": 2,
    "straight_through_estimator": 3,
    "triangular": 4,
    "heaviside": 5,
    "spike_rate_escape": 6,
    "SFS": 7,
    "LSO": 8,
}
ATAN = SURROGATES["atan"]


@inlined
def surrogate_slope(distance, surrogate, a, b):
    """s'(V - theta), in vectors."""
    if surrogate == ATAN:
        x = np.pi / 2 * a * distance
        return 0.5 * a / (1.0 + x * x)
    if surrogate == 1:
        x = a * absolute(distance) + 1.0
        return 1.0 / (x * x)
    if surrogate == 2:
        e = exp(0.0 - absolute(a * distance))  # cannot overflow
        return a * e / ((1.0 + e) * (1.0 + e))
    if surrogate == 3:
        return full_like(distance, 1.0)
    if surrogate == 4:
        return where(distance >= 0.0, full_like(distance, -a), a)
    if surrogate == 5:
        return where(distance > 0.0, full_like(distance, 1.0), 0.0)
    if surrogate == 6:
        return b * exp(0.0 - a * absolute(distance - 1.0))
    if surrogate == 7:
        x = a * absolute(distance) + 1.0
        return where(distance <= b, 0.0, 1.0 / (x * x))  # NaN stays NaN, as in snnTorch
    return where(distance > 0.0, full_like(distance, 1.0), a)
