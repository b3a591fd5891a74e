"""A block of neighbouring neurons, whose state stays in the first-level cache."""

import numpy as np

from .compiling import SUBTRACT, ZERO_AFTER, ZERO_BEFORE, compiled, inlined
from .simd import LINE, store, stream

BLOCK = 1024
STEPS = 4  # steps that Leaky takes with its state in registers, and reads ahead
STREAM = 4 << 20  # bytes of a result that is written past the cache


@compiled
def lane_values(parameter, start, n, out):
    """One value per lane of a parameter repeated over the batch."""
    size = parameter.shape[0]
    if size == 1:
        out[:n] = parameter[0]
        return
    at = start % size
    for j in range(n):  # a division for each takes as long as some ten time steps
        out[j] = parameter[at]
        at = at + 1 if at + 1 < size else 0


@compiled
def clamp_decay(decay, n, active):
    """clamp(decay, 0, 1) in place, and where it passes a gradient on."""
    zero, one = decay.dtype.type(0), decay.dtype.type(1)
    for j in range(n):
        b = decay[j]
        active[j] = (b >= zero) & (b <= one)
        b = zero if b < zero else b
        decay[j] = one if b > one else b


@compiled
def initial_state(mem, start, n, v):
    for j in range(n):
        v[j] = mem[start + j] if mem.shape[0] > 0 else v.dtype.type(0)


@inlined
def reset_steps(reset, t):
    """The steps whose spikes subtract, or zero, the membrane at ``t``; -2 is no step."""
    return np.int32(t - 1 if reset == SUBTRACT else -2), np.int32(
        t - 1 if reset == ZERO_BEFORE else -2
    )


@compiled
def integrate(x, v, s, i, decay, th, al, gn, fed, first, t, n, reset, second, third, fed_back):
    """One step of any neuron, in place, from the current ``x``; see ``kernels/leaky.py``."""
    zero = v.dtype.type(0)
    subtract, zeroed = reset_steps(reset, t)
    last = np.int32(t - 1)
    cleared = last if reset == ZERO_AFTER else np.int32(-2)
    if third:
        for j in range(n):
            held = i[j]
            exc = al[j] * s[j] + x[j]
            inh = decay[j] * held - x[j]
            u = gn[j] * (exc + inh)
            v[j] = u + held if first[j] == subtract else u
            s[j] = exc - th[j] if first[j] == subtract else exc
            i[j] = zero if first[j] == subtract else inh
        for j in range(n):
            v[j] = zero if first[j] == cleared else v[j]
            s[j] = zero if first[j] == cleared else s[j]
            i[j] = zero if first[j] == cleared else i[j]
        return
    if second:
        for j in range(n):
            s[j] = al[j] * s[j] + x[j]
            v[j] = decay[j] * v[j] + s[j]
    else:
        for j in range(n):
            v[j] = decay[j] * (zero if first[j] == zeroed else v[j]) + x[j]
    if fed_back:
        for j in range(n):
            v[j] = v[j] + fed[j] if first[j] == last else v[j]
    for j in range(n):
        u = v[j] - th[j] if first[j] == subtract else v[j]
        v[j] = zero if first[j] == cleared else u


@inlined
def write_lanes(array, index, vector, streams):
    if streams:
        stream(array, index, vector)
    else:
        store(array, index, vector)


@compiled
def past_the_cache(array, low):
    """Whether to write rows past the cache from ``low`` on: they are more than fit, and aligned."""
    first = array.ctypes.data + low * array.itemsize
    aligned = first % LINE == 0 and array.strides[0] % LINE == 0
    return aligned and array.size * array.itemsize >= STREAM


@inlined
def first_step(tile, steps):
    """First step of a tile; what is left after tiles of ``STEPS`` steps are tiles of one step."""
    whole = steps // STEPS
    return min(tile, whole) * STEPS + max(tile - whole, 0)
