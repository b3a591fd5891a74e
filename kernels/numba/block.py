"""A block of neighbouring neurons, whose state stays in the first-level cache."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .compiling import (
    SUBTRACT,
    ZERO_AFTER,
    ZERO_BEFORE,
    helper,
    inlined,
    inlined_helper,
    part_of_caller,
)
from .simd import LINE, store, stream

BLOCK = 1024
STEPS = 4  # steps for which Leaky reads ahead and keeps its state in registers
NO_STEP = -(1 << 31)  # no spike has this step
STREAM = 4 << 20  # results of at least so many bytes are written past the cache


class Kind(NamedTuple):
    """The terms of a neuron's equations."""

    synaptic: bool
    inhibitory: bool
    feedback: bool
    reset: int


class Parameters(NamedTuple):
    """One value for each neuron of the block."""

    decay: np.ndarray
    threshold: np.ndarray
    height: np.ndarray
    alpha: np.ndarray
    gain: np.ndarray
    feedback: np.ndarray
    fed_back: np.ndarray
    """``feedback`` times ``height``."""
    decay_passes: np.ndarray
    """True for neurons whose decay is inside the clamp, and has a gradient."""
    alpha_passes: np.ndarray


class State(NamedTuple):
    """The membrane and the synaptic currents."""

    mem: np.ndarray
    syn: np.ndarray
    inh: np.ndarray


@inlined
def new_parameters(size, dtype):
    return Parameters(
        np.empty(size, dtype),
        np.empty(size, dtype),
        np.empty(size, dtype),
        np.empty(size, dtype),
        np.empty(size, dtype),
        np.empty(size, dtype),
        np.empty(size, dtype),
        np.empty(size, np.bool_),
        np.empty(size, np.bool_),
    )


@inlined
def new_state(size, dtype):
    return State(np.empty(size, dtype), np.empty(size, dtype), np.empty(size, dtype))


@part_of_caller
def given(array):
    """Whether an input is present, or an output requested."""
    return array.shape[0] > 0


@part_of_caller
def row_of(array, k):
    """The index of step ``k`` in an array of T rows, or of one row for all steps."""
    return k if array.shape[0] > 1 else 0


@part_of_caller
def kind_of(neuron):
    return Kind(given(neuron.alpha), given(neuron.gain), given(neuron.feedback), neuron.reset)


@helper
def block_values(parameter, start, n, out):
    """One value per neuron of a parameter repeated over the batch."""
    size = parameter.shape[0]
    if size == 1:
        for j in range(n):
            out[j] = parameter[0]
        return
    at = start % size
    for j in range(n):  # a division for each takes as long as some ten time steps
        out[j] = parameter[at]
        at = at + 1 if at + 1 < size else 0


@helper
def clamp_decay(decay, n, passes):
    """clamp(decay, 0, 1) in place. ``passes`` marks decays inside the clamp."""
    zero, one = decay.dtype.type(0), decay.dtype.type(1)
    for j in range(n):
        b = decay[j]
        passes[j] = (b >= zero) & (b <= one)
        b = zero if b < zero else b
        decay[j] = one if b > one else b


@helper
def initial_state(values, start, n, out):
    for j in range(n):
        out[j] = values[start + j] if values.shape[0] > 0 else out.dtype.type(0)


@helper
def load_block(neuron, start, n, parameters, state):
    """Parameters and initial states of ``n`` neurons from ``start`` on."""
    kind = kind_of(neuron)
    block_values(neuron.beta, start, n, parameters.decay)
    block_values(neuron.threshold, start, n, parameters.threshold)
    block_values(neuron.graded_spikes_factor, start, n, parameters.height)
    initial_state(neuron.mem_0, start, n, state.mem)
    if neuron.clamp:
        clamp_decay(parameters.decay, n, parameters.decay_passes)
    else:
        for j in range(n):
            parameters.decay_passes[j] = True
    if kind.synaptic:
        block_values(neuron.alpha, start, n, parameters.alpha)
        clamp_decay(parameters.alpha, n, parameters.alpha_passes)
        initial_state(neuron.syn_0, start, n, state.syn)
    if kind.inhibitory:
        block_values(neuron.gain, start, n, parameters.gain)
        initial_state(neuron.inh_0, start, n, state.inh)
    if kind.feedback:
        block_values(neuron.feedback, start, n, parameters.feedback)
        for j in range(n):
            parameters.fed_back[j] = parameters.feedback[j] * parameters.height[j]


@part_of_caller
def load_times(times, start, n, steps, first):
    """First spikes, ``steps`` for a silent neuron."""
    for j in range(n):
        first[j] = times[start + j] if times[start + j] >= 0 else steps


@part_of_caller
def store_times(first, start, n, steps, times):
    """First spikes, -1 for a silent neuron; last spikes of neurons with a refractory period."""
    for j in range(n):
        times[start + j] = first[j] if first[j] < steps else -1


@inlined_helper
def copy(source, n, target):
    for j in range(n):
        target[j] = source[j]


@inlined_helper
def fill(target, n, value):
    for j in range(n):
        target[j] = value


@helper
def load_history(last_0, refractory, start, n, never, first):
    """The spikes before the first step: none, or the last ones of neurons with ``refractory``."""
    if refractory is None:
        fill(first, n, never)
    else:
        lowest = np.int32(-2 - refractory)
        for j in range(n):
            first[j] = last_0[start + j] if last_0.shape[0] > 0 else lowest


@inlined_helper
def all_fired(first, n, never):
    latest = np.int32(0)
    for j in range(n):
        latest = max(latest, first[j])
    return latest < never


@inlined_helper
def reset_steps(reset, t):
    """The steps whose spikes subtract, or zero, the membrane at ``t``, or ``NO_STEP``."""
    subtract = np.int32(t - 1 if reset == SUBTRACT else NO_STEP)
    zeroed = np.int32(t - 1 if reset == ZERO_BEFORE else NO_STEP)
    return subtract, zeroed


@part_of_caller
def _integrate_alpha(x, n, state, parameters, first, subtract):
    v, s, i = state
    decay, th, al, gn = parameters.decay, parameters.threshold, parameters.alpha, parameters.gain
    zero = v.dtype.type(0)
    for j in range(n):
        held = i[j]
        exc = al[j] * s[j] + x[j]
        inh = decay[j] * held - x[j]
        u = gn[j] * (exc + inh)
        v[j] = u + held if first[j] == subtract else u
        s[j] = exc - th[j] if first[j] == subtract else exc
        i[j] = zero if first[j] == subtract else inh


@helper
def integrate(x, t, n, kind, state, parameters, first):
    """One step of any neuron, in place, from the current ``x``; see ``kernels/triton``."""
    v, s, i = state
    decay, th, al, fed = (
        parameters.decay,
        parameters.threshold,
        parameters.alpha,
        parameters.fed_back,
    )
    zero = v.dtype.type(0)
    subtract, zeroed = reset_steps(kind.reset, t)
    last = np.int32(t - 1)
    cleared = last if kind.reset == ZERO_AFTER else np.int32(NO_STEP)
    if kind.inhibitory:
        _integrate_alpha(x, n, state, parameters, first, subtract)
        for j in range(n):
            v[j] = zero if first[j] == cleared else v[j]
            s[j] = zero if first[j] == cleared else s[j]
            i[j] = zero if first[j] == cleared else i[j]
        return
    if kind.synaptic:
        for j in range(n):
            s[j] = al[j] * s[j] + x[j]
            v[j] = decay[j] * v[j] + s[j]
    else:
        for j in range(n):
            v[j] = decay[j] * (zero if first[j] == zeroed else v[j]) + x[j]
    if kind.feedback:
        for j in range(n):
            v[j] = v[j] + fed[j] if first[j] == last else v[j]
    for j in range(n):
        u = v[j] - th[j] if first[j] == subtract else v[j]
        v[j] = zero if first[j] == cleared else u


@inlined_helper
def write_vector(array, index, vector, streams):
    if streams:
        stream(array, index, vector)
    else:
        store(array, index, vector)


@helper
def past_the_cache(array, low):
    """Whether to write rows from ``low`` on past the cache: the array is large and aligned."""
    first = array.ctypes.data + low * array.itemsize
    aligned = first % LINE == 0 and array.strides[0] % LINE == 0
    return aligned and array.size * array.itemsize >= STREAM


@inlined_helper
def first_step(tile, steps):
    """First step of a tile. Tiles have ``STEPS`` steps, and the remaining tiles one step."""
    whole = steps // STEPS
    return min(tile, whole) * STEPS + max(tile - whole, 0)
