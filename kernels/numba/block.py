"""A block of neighboring neurons, whose state stays in the first-level cache."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .compiling import helper, inlined, inlined_helper, part_of_caller
from .simd import LANES, LINE, load, store, stream

BLOCK = 1024
STEPS = 4  # steps for which the loops read ahead and keep the state in registers
STREAM = 4 << 20  # results of at least so many bytes are written past the cache


class Kind(NamedTuple):
    """The terms of a neuron's equations, constants of the compiled loop but for the reset."""

    synaptic: bool
    inhibitory: bool
    feedback: bool
    once: bool
    """Whether a neuron spikes once."""
    reset: int
    silent: int
    """The steps without a spike after each spike."""


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
def _silent_steps(refractory):
    return 0 if refractory is None else refractory


@part_of_caller
def kind_of(neuron):
    return Kind(
        neuron.alpha is not None,
        neuron.gain is not None,
        neuron.feedback is not None,
        neuron.refractory is None,
        neuron.reset,
        _silent_steps(neuron.refractory),
    )


@helper
def block_values(parameter, start, n, out):
    """One value per neuron of a parameter repeated over the batch."""
    if parameter is None:
        return
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
def write_vector(array, index, vector, streams):
    if streams:
        stream(array, index, vector)
    else:
        store(array, index, vector)


@inlined_helper
def store_row(values, n, array, row, start):
    """A row of a block into an array of any floating type."""
    for j in range(0, n, LANES):
        store(array, (row, start + j), load(values, j))


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
