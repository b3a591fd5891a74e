"""Derivatives of snnTorch's surrogate gradients, as device functions."""

import triton
import triton.language as tl

HALF_PI = tl.constexpr(1.5707963267948966)


@triton.jit
def surrogate_slope(u, a, b, SURROGATE: tl.constexpr):
    """s'(u) of the surrogate named ``SURROGATE`` with parameters ``a`` and ``b``."""
    if SURROGATE == "atan":
        x = HALF_PI * a * u
        slope = 0.5 * a / (1.0 + x * x)
    elif SURROGATE == "fast_sigmoid":
        x = a * tl.abs(u) + 1.0
        slope = 1.0 / (x * x)
    elif SURROGATE == "sigmoid":
        # exp of a non-positive number cannot overflow; snnTorch's own form gives inf/inf.
        e = tl.exp(-tl.abs(a * u))
        slope = a * e / ((1.0 + e) * (1.0 + e))
    elif SURROGATE == "straight_through_estimator":
        slope = tl.full(u.shape, 1.0, u.dtype)
    elif SURROGATE == "triangular":
        slope = tl.where(u >= 0.0, -a, a)
    elif SURROGATE == "heaviside":
        slope = tl.where(u > 0.0, 1.0, 0.0)
    elif SURROGATE == "spike_rate_escape":
        slope = b * tl.exp(-a * tl.abs(u - 1.0))
    elif SURROGATE == "SFS":
        x = a * tl.abs(u) + 1.0
        slope = tl.where(u <= b, 0.0, 1.0 / (x * x))  # NaN stays NaN, as in snnTorch
    else:
        tl.static_assert(SURROGATE == "LSO", "unknown surrogate")
        slope = tl.where(u > 0.0, 1.0, a)
    return slope.to(u.dtype)
