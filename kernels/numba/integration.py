"""One step of a neuron in vectors, for the forward and the backward loop."""

from __future__ import annotations

from typing import NamedTuple

from .compiling import SUBTRACT, ZERO_AFTER, ZERO_BEFORE, part_of_caller
from .simd import full_like, load, where


class Lanes(NamedTuple):
    """The parameters of one vector of neurons, in registers; see ``block.Parameters``."""

    decay: object
    threshold: object
    height: object
    alpha: object
    gain: object
    feedback: object
    fed_back: object


@part_of_caller
def lanes_at(parameters, j):
    """The parameters of the vector at ``j``. The compiler removes unused ones."""
    return Lanes(
        load(parameters.decay, j),
        load(parameters.threshold, j),
        load(parameters.height, j),
        load(parameters.alpha, j),
        load(parameters.gain, j),
        load(parameters.feedback, j),
        load(parameters.fed_back, j),
    )


@part_of_caller
def integrate(x, fired, mem, syn, inh, lanes, kind):
    """Membrane and synaptic currents at t from those at t-1 and the current ``x``.

    ``fired`` marks the neurons whose spike was at t-1: their reset and feedback follow now.
    """
    fall = lanes.threshold if kind.reset == SUBTRACT else full_like(lanes.threshold, 0.0)
    if kind.inhibitory:
        held = inh
        exc = lanes.alpha * syn + x
        inh = lanes.decay * held - x
        mem = lanes.gain * (exc + inh)
        syn = exc
        if kind.reset == SUBTRACT:  # as snnTorch's Alpha defines it
            mem = where(fired, mem + held, mem)
            syn = exc - where(fired, fall, 0.0)
            inh = where(fired, 0.0, inh)
    else:
        if kind.synaptic:
            syn = lanes.alpha * syn + x
            mem = lanes.decay * mem + syn
        else:
            held = where(fired, 0.0, mem) if kind.reset == ZERO_BEFORE else mem
            mem = lanes.decay * held + x
        if kind.feedback:
            mem = where(fired, mem + lanes.fed_back, mem)
        mem = mem - where(fired, fall, 0.0)
    if kind.reset == ZERO_AFTER:
        mem = where(fired, 0.0, mem)
        if kind.inhibitory:
            syn = where(fired, 0.0, syn)
            inh = where(fired, 0.0, inh)
    return mem, syn, inh
