"""A membrane that is driven by spikes: one step of it, and one impulse of its adjoint."""

import triton
import triton.language as tl


@triton.jit
def advance(v, slope, x, decay, theta, first, t, sensitivity, RESET: tl.constexpr):
    """The membrane before and after step t of current ``x``, and its derivative by beta.

    The reset follows one step after the first spike. Where ``sensitivity`` is None, the
    derivative is not computed.
    """
    tl.static_assert(
        RESET == "none" or (RESET == "subtract" or RESET == "zero_before"), "unknown reset"
    )
    if RESET == "zero_before":
        v = tl.where(first == t - 1, 0.0, v)
    before = v
    if sensitivity is not None:
        slope = before + decay * slope
    v = decay * before + x
    if RESET == "subtract":
        v = tl.where(first == t - 1, v - theta, v)
    return before, v, slope


@triton.jit
def impulse(amount, when, log_decay, k):
    """amount * beta^(when - k) where k <= when, else 0; log_decay is log2(beta)."""
    ahead = (when - k).to(amount.dtype)
    power = tl.where(when == k, 1.0, tl.exp2(ahead * log_decay))
    return tl.where((when >= 0) & (k <= when), amount * power, 0.0)
