"""The state that a neuron carries from one call to the next."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends._types import state_dtype
from ..ops.validation import check_state

__all__ = ["NO_SECOND_SPIKE", "LastCall", "LeakyState", "checked", "last_spike"]

NO_SECOND_SPIKE = 1 << 30
"""A refractory period longer than any sequence."""
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


class LastCall:
    """A call of ``num_steps`` steps, from which its state is computed.

    :param before: the state that the call started from, if it continued an earlier one
    :param final: the states of the last step, detached; None if the call computed none
    :param times: the steps of the last spikes
    """

    __slots__ = ("before", "final", "num_steps", "times")

    def __init__(
        self, before: LeakyState | None, final: Tensor | None, times: Tensor | None, num_steps: int
    ) -> None:
        self.before, self.final, self.num_steps = before, final, num_steps
        exact = times is not None and times.requires_grad
        self.times = times.detach() if exact and times is not None else times

    def state(self) -> LeakyState:
        """The state after the call, detached."""
        if self.times is None or self.final is None:
            raise RuntimeError(
                "no state was kept: the last call had spike times as its input, and computed no "
                "membrane. Pass the whole sequence, or a dense current: to_dense()"
            )
        mem, *currents = self.final.to(state_dtype(self.final.dtype)).unbind(0)
        times = self.times.long()
        done = 0 if self.before is None else self.before.num_steps
        before = torch.full_like(times, -1) if self.before is None else self.before.times
        times = torch.where(times >= 0, times + done, before)
        return LeakyState(mem, times, done + self.num_steps, *currents)
