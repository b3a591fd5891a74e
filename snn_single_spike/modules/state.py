"""The state that a neuron carries from one call to the next."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends._types import state_dtype
from ..functional.neuron import Result
from ..ops.validation import check_state

__all__ = ["LeakyState", "checked", "following", "last_spike"]

_LONG_AGO = -(1 << 31)


class LeakyState(NamedTuple):
    """The state of ``step()``, and of a ``forward`` that continues an earlier one."""

    mem: Tensor
    """Membrane, `(B, *features)`; float32, or float64 for float64 input. After a call on half
    precision it is rounded to the type of the input."""
    times: Tensor
    """Step of the last spike, `(B, *features)` int64; -1 for a neuron that has not fired yet."""
    num_steps: int
    """Number of time steps since the start of the sample."""
    syn: Tensor | None = None
    """Synaptic current as ``mem``, only of :class:`SingleSpikeSynaptic`."""


def checked(state: Any, sequence: Tensor) -> LeakyState:
    """The state, if it fits a sequence `(T, B, *features)`."""
    if not isinstance(state, LeakyState):
        raise TypeError(
            f"state must be a LeakyState, not {type(state).__name__}: pass the state that the "
            "last call returned, or None to start a sample"
        )
    check_state("mem", state.mem, sequence)
    check_state("syn", state.syn, sequence)
    if state.times.shape != sequence.shape[1:]:
        raise ValueError(
            f"the times of state have shape {tuple(state.times.shape)}, but "
            f"{tuple(sequence.shape[1:])} is expected: pass the state of a call with this batch"
        )
    return state


def last_spike(state: LeakyState) -> Tensor:
    """The step of the last spike, counted from the next step: negative."""
    return torch.where(state.times >= 0, state.times - state.num_steps, _LONG_AGO)


def following(state: LeakyState | None, result: Result, num_steps: int) -> LeakyState:
    """The state after a call of ``num_steps`` that started from ``state``, detached."""
    assert result.final is not None
    final = result.final.detach()
    mem, *currents = final.to(state_dtype(final.dtype)).unbind(0)
    done = 0 if state is None else state.num_steps
    before = torch.full_like(result.times, -1) if state is None else state.times
    times = torch.where(result.times >= 0, result.times + done, before)
    return LeakyState(mem, times, done + num_steps, *currents)
