"""A block of neighboring neurons: parameters, initial states, and rows of one time step."""

import triton
import triton.language as tl

# Bits of a phase, as in backends/_types.py
FREE = tl.constexpr(1)
SPIKED = tl.constexpr(2)
RESET_NOW = tl.constexpr(4)


@triton.jit
def load_lanes(parameter, start, lane, P):
    """One value per lane of a parameter of ``P`` elements, repeated over the batch."""
    return tl.load(parameter + ((start % P).to(tl.int32) + lane) % P)


@triton.jit
def clamp_decay(decay, CLAMP: tl.constexpr = True):
    """clamp(decay, 0, 1), and NaN stays NaN as in torch."""
    if CLAMP:
        decay = tl.maximum(decay, 0.0, propagate_nan=tl.PropagateNan.ALL)
        decay = tl.minimum(decay, 1.0, propagate_nan=tl.PropagateNan.ALL)
    return decay


@triton.jit
def pass_gradient(decay, gradient, CLAMP: tl.constexpr = True):
    """The gradient of a decay, 0 where its clamp is active."""
    if CLAMP:
        gradient = tl.where((decay >= 0.0) & (decay <= 1.0), gradient, 0.0)
    return gradient


@triton.jit
def initial_state(state, start, lane, inside, BLOCK: tl.constexpr, STATE: tl.constexpr):
    """A state before the first step, zeros where it is not given."""
    if state is not None:
        return tl.load(state + start + lane, mask=inside, other=0.0).to(STATE)
    else:
        return tl.zeros((BLOCK,), STATE)


@triton.jit
def last_spike(last_0, refractory, start, lane, inside, BLOCK: tl.constexpr):
    """The step of the last spike before the first step: negative, and -1 one step before."""
    lowest = tl.zeros((BLOCK,), tl.int32) - refractory - 2
    if last_0 is None:
        return lowest
    else:
        return tl.load(last_0 + start + lane, mask=inside, other=-2).to(tl.int32)


@triton.jit
def load_row(row, lane, inside):
    return tl.load(row + lane, mask=inside, other=0.0)


@triton.jit
def store_row(row, lane, value, inside):
    tl.store(row + lane, value.to(row.dtype.element_ty), mask=inside)


@triton.jit
def end_once_all_fired(first, inside, T):
    """The step at which a loop over time ends: T while a neuron is silent, else 0."""
    silent = tl.max(tl.where(inside & (first >= T), 1, 0), axis=0)
    return tl.where(silent > 0, T, 0)
