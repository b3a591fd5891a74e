"""What the operators hand to an implementation: tensors to read, tensors to fill.

Time-major (T, M), M = batch * features, contiguous. ``None`` stands for an input that is
absent or an output that nobody asked for, which is then neither computed nor written.
State precision is float32, or float64 for float64 input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision of membranes and sums for input and output of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Neuron(NamedTuple):
    """Parameters (P,), P = 1 or features, and initial states (M,), all in state precision.

    ``alpha`` makes a neuron that is driven by a synaptic current (snnTorch's Synaptic), and
    ``gain`` as well one that is driven by the difference of two (Alpha): ``beta`` is then the
    decay of the inhibitory one. ``feedback`` is the weight of its own spike (RLeaky).
    """

    beta: Tensor
    threshold: Tensor
    graded_spikes_factor: Tensor
    mem: Tensor | None
    alpha: Tensor | None
    gain: Tensor | None
    feedback: Tensor | None
    syn: Tensor | None
    inh: Tensor | None
    clamp: bool
    """Clip beta between 0 and 1."""
    reset: str
    """One step after the spike: "none", "subtract", "zero" before the integration (Leaky) or
    "clear" after it (the others)."""


class ForwardOutputs(NamedTuple):
    spikes: Tensor | None
    """(T, M), type of the input."""
    mem: Tensor | None
    """(T, M), type of the input."""
    syn: Tensor | None
    """(T, M), type of the input."""
    inh: Tensor | None
    """(T, M), type of the input."""
    times: Tensor
    """(M,) int64, -1 for a silent neuron."""
    crossing: Tensor | None
    """(2, M): V[t*-1] and V[t*], state precision; 0 for a silent neuron."""
    final: Tensor | None
    """(1 to 3, M): V, syn, inh at T-1, type of the input."""


class Saved(NamedTuple):
    """What the backward pass reads, (T, M) each; None if it is not needed."""

    tensor: Tensor | None
    """The membrane, or the current to integrate it from again."""
    recompute: bool
    syn: Tensor | None
    """For the gradients of alpha and of gain."""
    inh: Tensor | None
    """For the gradients of gain, and of beta where it is the decay of ``inh``."""


class OutputGradients(NamedTuple):
    """Gradients to the outputs; (1, M) where the gradient is the same at every step."""

    spikes: Tensor | None
    mem: Tensor | None
    syn: Tensor | None
    inh: Tensor | None
    at: Tensor | None
    """(M,) gradient to V[t*], state precision."""
    before: Tensor | None
    """(M,) gradient to V[t*-1], state precision; given together with ``at``."""


class InputGradients(NamedTuple):
    """Gradients to the inputs, to be filled.

    All but ``current`` are (M,): one value per lane, for the caller to sum.
    """

    current: Tensor | None
    """(T, M); present whenever ``Saved.recompute`` is, as its work space."""
    beta: Tensor | None
    threshold: Tensor | None
    mem: Tensor | None
    alpha: Tensor | None
    gain: Tensor | None
    feedback: Tensor | None
    """Gradient to the current that the spike feeds back, one step after it."""
    syn: Tensor | None
    inh: Tensor | None


class LinearNeurons(NamedTuple):
    """A linear layer (O, N) and what its neurons are, (O,) each, all of one floating type."""

    weight: Tensor
    bias: Tensor
    beta: Tensor
    """Between 0 and 1."""
    threshold: Tensor
    reset: str
    """One step after the spike: "none", "subtract" or "zero"."""


class ClosedFormAdjoint(NamedTuple):
    """An adjoint in closed form: lam[k] = h[k] + beta lam[k+1], (B, O) each."""

    every: Tensor | None
    """h[k] at every step: the gradient to a sum over time."""
    at: Tensor | None
    """h[k] at the step ``when``."""
    before: Tensor | None
    """h[k] at the step before it; given together with ``at``."""
    when: Tensor | None
    """int64, -1 for none."""


class GradientFactors(NamedTuple):
    """The gradient to dense spikes (T, B, O), made a few samples at a time."""

    rows: Callable[[slice], Tensor]
    """(T or 1, n, O) of some samples; one row where it is the same at every step. Or its first
    factor, (T, n, P)."""
    weight: Tensor | None
    """The second factor, (P, O)."""

    def to_dense(self, samples: slice) -> Tensor:
        rows = self.rows(samples)
        return rows if self.weight is None else rows @ self.weight

    def plus(self, other: GradientFactors) -> GradientFactors:
        """The sum of two products, as one of longer factors."""
        assert self.weight is not None
        assert other.weight is not None
        return GradientFactors(
            lambda samples: torch.cat([self.rows(samples), other.rows(samples)], 2),
            torch.cat([self.weight, other.weight]),
        )


class LinearGradients(NamedTuple):
    """Gradients of a layer, given as zeros, to be added up in or filled."""

    weight: Tensor
    bias: Tensor
    beta: Tensor
    threshold: Tensor
    current: Tensor | None
    """(T, B, O) if the adjoint itself is wanted; overwritten."""


class ReadoutOutputs(NamedTuple):
    value: Tensor
    """(M,), type of the input."""
    sensitivity: Tensor | None
    """(M,) d value / d beta, state precision."""
    step: Tensor | None
    """(M,) int64, the step that a maximum or last value was taken at."""
