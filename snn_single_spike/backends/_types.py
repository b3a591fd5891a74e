"""The declarations: the fields of a neuron, its options, and the arguments of a backend.

:class:`Neuron` is declared here and nowhere else. The schema of the registered operators, the
arguments of the kernels, the gradients and the tables of the tests derive from its fields.

Tensors are time-major (T, M), M = batch * features, and contiguous. None means an absent input, or
an output that is not requested and that a backend neither computes nor writes. State precision is
float32, or float64 for float64 input.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .memory import empty

GRADIENT_RULES = ("masked", "straight_through", "pre_spike", "spike_time")
"""How a loss on the spikes reaches the membrane; see docs/method.md."""
RESETS = ("none", "subtract", "zero")
"""snnTorch's reset mechanisms."""
KERNEL_RESETS = ("none", "subtract", "zero_before", "zero_after")
"""The resets of the kernels, one step after the spike.

The reset "zero" of snnTorch acts before the integration in Leaky, and after the integration in
every other neuron.
"""
REFRACTORY_RULES = ("masked",)
"""The gradient rules for any number of spikes. All others are defined for one spike."""
FREE, SPIKED, RESET_NOW = 1, 2, 4
"""Bits of a phase: the neuron may spike, it spikes, and it spiked one step before."""
REDUCTIONS = ("sum", "max", "last")
"""How the readout reduces its membrane over time."""


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of membranes and sums for input and output of type ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Neuron(NamedTuple):
    """Parameters (P,), P = 1 or features, and initial states (M,), all in state precision.

    A neuron with ``alpha`` has a synaptic current (Synaptic). The membrane of a neuron with
    ``alpha`` and ``gain`` is ``gain`` times the difference of two synaptic currents (Alpha), and
    ``beta`` is the decay of the inhibitory current.
    """

    beta: Tensor
    threshold: Tensor
    graded_spikes_factor: Tensor
    alpha: Tensor | None = None
    gain: Tensor | None = None
    feedback: Tensor | None = None
    """Weight with which a spike enters the membrane of its neuron one step later (RLeaky)."""
    mem_0: Tensor | None = None
    syn_0: Tensor | None = None
    inh_0: Tensor | None = None
    last_0: Tensor | None = None
    """(M,) int64, only with ``refractory``: the step of the last spike before the first step, from
    -(refractory + 2) to -1. None, as the lowest of these steps, is no spike that matters."""
    clamp: bool = True
    """Clip beta between 0 and 1."""
    reset: str = "none"
    """One of :data:`KERNEL_RESETS`."""
    refractory: int | None = None
    """Number of silent steps after each spike; None for at most one spike."""

    def tensors(self) -> dict[str, Tensor | None]:
        """Parameters and initial states by name."""
        return {name: getattr(self, name) for name in TENSORS}

    @property
    def num_states(self) -> int:
        """Number of integrated states: the membrane, and up to two synaptic currents."""
        return 1 + (self.alpha is not None) + (self.gain is not None)


STATES = ("mem_0", "syn_0", "inh_0")
OPTIONS = ("clamp", "reset", "refractory")
TENSORS = tuple(name for name in Neuron._fields if name not in OPTIONS)
PARAMETERS = tuple(name for name in TENSORS if name not in (*STATES, "last_0"))
# The height of a spike enters no state except through feedback, so its gradient needs no scan.
_NOT_SCANNED = ("graded_spikes_factor", "last_0")
SCANNED = ("current", *(name for name in TENSORS if name not in _NOT_SCANNED))
"""The inputs whose gradients the reverse scan computes."""


def schema(of: type) -> str:
    """The fields of a NamedTuple as arguments of a registered operator."""
    kinds = {
        Tensor: "Tensor",
        Tensor | None: "Tensor?",
        bool: "bool",
        str: "str",
        int: "SymInt",
        int | None: "int?",
        float: "float",
    }
    hints = typing.get_type_hints(of)
    return ", ".join(f"{kinds[hints[name]]} {name}" for name in of._fields)  # type: ignore[attr-defined]


class ForwardOutputs(NamedTuple):
    """Outputs of the forward scan, to be filled."""

    spikes: Tensor | None
    """(T, M), type of the input."""
    mem: Tensor | None
    """(T, M), type of the input."""
    syn: Tensor | None
    """(T, M), type of the input."""
    inh: Tensor | None
    """(T, M), type of the input."""
    crossing: Tensor | None
    """(2, M): V[t*-1] and V[t*], state precision; for a silent neuron 0 and V[m]."""
    final: Tensor | None
    """(1 to 3, M): V, syn, inh at T-1, type of the input."""
    times: Tensor
    """(M,) int64, -1 for a silent neuron. With ``refractory`` the step of the last spike, which is
    ``last_0`` for a neuron without a spike."""
    phase: Tensor | None = None
    """(T, M) uint8, only with ``refractory``: :data:`FREE`, :data:`SPIKED`, :data:`RESET_NOW`."""
    when: Tensor | None = None
    """(M,) int64, present if ``crossing`` is: t*; for a silent neuron m, the first step of the
    maximum of its membrane."""


class Saved(NamedTuple):
    """The tensors that the reverse scan reads, (T, M) each; None if the scan does not need one."""

    saved: Tensor | None = None
    """The membrane, or the current, from which the membrane is integrated again."""
    recompute: bool = False
    """Whether ``saved`` is the current."""
    syn: Tensor | None = None
    """Read by the gradients of alpha and gain."""
    inh: Tensor | None = None
    """Read by the gradients of gain, and of beta if beta is the decay of ``inh``."""
    phase: Tensor | None = None
    """With ``refractory``: as in :class:`ForwardOutputs`. None if the membrane determines it: see
    :func:`needs_phase`."""


def needs_phase(neuron: Neuron, dtype: torch.dtype) -> bool:
    """Whether the reverse scan of a neuron with ``refractory`` reads the phase of each step.

    Without a refractory period a neuron spikes where its membrane is above the threshold. The scan
    then reads this from the membrane, unless the saved membrane is rounded to a half type, or the
    reset acts on the membrane of the step itself.
    """
    if neuron.refractory is None:
        return False
    return neuron.refractory > 0 or dtype != state_dtype(dtype) or neuron.reset == "zero_after"


class OutputGradients(NamedTuple):
    """Gradients to the outputs; (1, M) where the gradient is the same at every step."""

    grad_spikes: Tensor | None = None
    grad_mem: Tensor | None = None
    grad_syn: Tensor | None = None
    grad_inh: Tensor | None = None
    grad_at: Tensor | None = None
    """(M,) gradient to the membrane at the step ``when``, state precision."""
    grad_before: Tensor | None = None
    """(M,) gradient to the membrane one step before, as ``when`` present if ``grad_at`` is."""
    when: Tensor | None = None
    """(M,) int64, -1 for no step."""


InputGradients = dict[str, Tensor]
"""Gradients to be filled, by names of :data:`SCANNED`; a gradient that is absent is not requested.

"current" is (T, M). With ``Saved.recompute`` it is always present, as work space. All other
gradients are (M,): one value per neuron and sample, which the caller sums.
"""


class ReadoutOutputs(NamedTuple):
    """Outputs of the readout, to be filled."""

    value: Tensor
    """(M,), type of the input."""
    sensitivity: Tensor | None
    """(M,) d value / d beta, state precision."""
    step: Tensor | None
    """(M,) int64, the step of the maximum or last value."""


class LinearNeurons(NamedTuple):
    """A linear layer (O, N) and its neurons (O,). All tensors have the same floating type."""

    weight: Tensor
    bias: Tensor
    beta: Tensor
    """Between 0 and 1."""
    threshold: Tensor
    reset: str
    """One of :data:`KERNEL_RESETS`."""

    def neuron(self) -> Neuron:
        """The neurons without the linear layer."""
        height = torch.ones_like(self.threshold[:1])
        return Neuron(self.beta, self.threshold, height, clamp=False, reset=self.reset)


class Convolution(NamedTuple):
    """The sizes of a two-dimensional convolution from (C, H, W) to (O, out_height, out_width).

    The current of a neuron may be the maximum of a window of the convolution at each step.
    """

    channels: int
    height: int
    width: int
    out_height: int
    out_width: int
    stride_y: int
    stride_x: int
    top: int
    """Zeros above the first row. The output size decides how many follow the last row."""
    left: int
    dilation_y: int
    dilation_x: int
    groups: int
    pool_y: int = 1
    """Rows of a window. Windows lie side by side; rows past the last whole window are not read."""
    pool_x: int = 1

    @property
    def units(self) -> int:
        """Inputs of one sample."""
        return self.channels * self.height * self.width

    @property
    def pools(self) -> bool:
        return self.pool_y * self.pool_x > 1

    @property
    def positions(self) -> int:
        """Neurons of a channel."""
        return (self.out_height // self.pool_y) * (self.out_width // self.pool_x)


class ConvNeurons(NamedTuple):
    """A convolution (O, C / groups, KH, KW) and its neurons, of the same floating type.

    ``beta`` and ``threshold`` have one value for each channel, or for each channel and position.
    """

    weight: Tensor
    bias: Tensor
    """(O,)."""
    beta: Tensor
    """(O, 1 or positions), between 0 and 1."""
    threshold: Tensor
    """(O, 1 or positions)."""
    reset: str
    """One of :data:`KERNEL_RESETS`."""

    def neuron(self, positions: int) -> Neuron:
        """The neurons (O * positions,) without the convolution."""
        height = torch.ones_like(self.bias[:1])
        beta, threshold = (
            x.expand(len(x), positions).flatten() for x in (self.beta, self.threshold)
        )
        return Neuron(beta, threshold, height, clamp=False, reset=self.reset)


class ClosedFormAdjoint(NamedTuple):
    """An adjoint in closed form: lam[k] = h[k] + beta lam[k+1], (B, O) each."""

    every: Tensor | None = None
    """h[k] at every step: the gradient to a sum over time."""
    at: Tensor | None = None
    """h[k] at the step ``when``."""
    before: Tensor | None = None
    """h[k] at the step before ``when``; present only with ``at``."""
    when: Tensor | None = None
    """int64, -1 for no step."""


class GradientFactors(NamedTuple):
    """The gradient to dense spikes (T, B, O), computed a few samples at a time."""

    rows: Callable[[slice], Tensor]
    """Computes (T or 1, n, O) for some samples; one row if the gradient is the same at every step.
    With a second factor, (T or 1, n, P). Without one, maps (T, n, C, O / C) of any strides are
    allowed too, whose flattened form is (T, n, O)."""
    weight: Tensor | None
    """The second factor, (P, O)."""

    def to_dense(self, samples: slice) -> Tensor:
        rows = self.rows(samples)
        if self.weight is None:
            return rows.flatten(2)
        shape = (*rows.shape[:2], self.weight.shape[1])
        out = empty(shape, dtype=rows.dtype, device=rows.device)
        return torch.matmul(rows, self.weight, out=out)

    def part(self, low: int) -> GradientFactors:
        """The same gradient, with samples counted from ``low``."""
        return GradientFactors(
            lambda samples: self.rows(slice(samples.start + low, samples.stop + low)), self.weight
        )

    def plus(self, other: GradientFactors) -> GradientFactors:
        """The sum of two gradients; of two products, as one product of longer factors."""
        if self.weight is None or other.weight is None:
            return GradientFactors(
                lambda samples: self.to_dense(samples) + other.to_dense(samples), None
            )
        return GradientFactors(
            lambda samples: torch.cat([self.rows(samples), other.rows(samples)], 2),
            torch.cat([self.weight, other.weight]),
        )


class LinearGradients(NamedTuple):
    """Gradients of a layer. They start as zeros, and the backend adds to them."""

    weight: Tensor
    bias: Tensor
    beta: Tensor
    threshold: Tensor
    current: Tensor | None
    """(T, B, O) if the adjoint itself is requested; the backend overwrites it."""
    late: Tensor | None = None
    """(N,) of the share of the later step, for spikes that are shared between two steps."""


class ConvGradients(NamedTuple):
    """Gradients of a convolution and its neurons, in the shapes of :class:`ConvNeurons`.

    None is a gradient that is not requested. ``weight`` to ``threshold`` are requested together.
    """

    weight: Tensor | None
    bias: Tensor | None
    beta: Tensor | None
    threshold: Tensor | None
    current: Tensor | None
    """(T, B, O * positions): the adjoint itself."""
