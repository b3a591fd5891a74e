"""Arguments of the loops by name.

A launcher fills these tuples by name and passes each as a plain tuple, because numba determines
the type of a plain tuple in less time than that of a named one. A loop restores the names when it
begins: ``neuron = Neuron(*neuron)``. An empty array is an absent input or an unrequested output.
T is the number of steps, M that of neurons times samples, P is 1 or divides M. Arrays (T, M) of a
half type are the bits of their numbers, as ``simd.py`` describes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Neuron(NamedTuple):
    """Parameters (P,) and initial states (M,).

    None is a parameter that the neuron does not have. Each combination of such types is compiled
    apart, so that the loops of one kind of neuron have no code of another.
    """

    beta: np.ndarray
    threshold: np.ndarray
    graded_spikes_factor: np.ndarray
    alpha: np.ndarray | None
    gain: np.ndarray | None
    feedback: np.ndarray | None
    mem_0: np.ndarray
    syn_0: np.ndarray
    inh_0: np.ndarray
    last_0: np.ndarray
    """(M,) int64, the step of the last spike before the first step."""
    clamp: bool
    reset: int
    """One of ``compiling.RESETS``."""
    refractory: int | None
    """Number of silent steps after each spike; None for one spike."""


class ForwardOutputs(NamedTuple):
    spikes: np.ndarray
    """(T, M), as ``mem``, ``syn`` and ``inh``."""
    mem: np.ndarray
    syn: np.ndarray
    inh: np.ndarray
    crossing: np.ndarray
    """(2, M): the membrane before and at the spike; 0 and the maximum of a silent neuron's."""
    final: np.ndarray
    """(1 to 3, M)."""
    times: np.ndarray
    """(M,), -1 for a silent neuron; the last spike with ``refractory``."""
    phase: np.ndarray
    """(T, M) uint8, only with ``refractory``."""
    when: np.ndarray
    """(M,), given if ``crossing`` is: the spike, or the step of a silent neuron's maximum."""


class Saved(NamedTuple):
    """What the backward pass reads, (T, M) each."""

    num_steps: int
    mem: np.ndarray
    current: np.ndarray
    """Given in place of ``mem``: the membrane is integrated again."""
    syn: np.ndarray
    inh: np.ndarray
    phase: np.ndarray
    """With ``refractory``: (T, M) uint8, or empty if the membrane determines it."""


class OutputGradients(NamedTuple):
    grad_spikes: np.ndarray
    """(T or 1, M), as ``grad_mem``, ``grad_syn`` and ``grad_inh``."""
    grad_mem: np.ndarray
    grad_syn: np.ndarray
    grad_inh: np.ndarray
    grad_at: np.ndarray
    """(M,): to the membrane at the step ``when``."""
    grad_before: np.ndarray
    """(M,): to the membrane one step before."""
    when: np.ndarray
    """(M,), -1 for no step."""


class InputGradients(NamedTuple):
    """Gradients to be written: (T, M) of the current, (M,) of all others."""

    current: np.ndarray
    beta: np.ndarray
    threshold: np.ndarray
    alpha: np.ndarray
    gain: np.ndarray
    feedback: np.ndarray
    mem_0: np.ndarray
    syn_0: np.ndarray
    inh_0: np.ndarray


class SpikeGradient(NamedTuple):
    """How a gradient to the spikes reaches the membrane."""

    rule: int
    """One of ``compiling.RULES``."""
    surrogate: int
    """One of ``surrogate.SURROGATES``."""
    a: float
    b: float


class ReadoutOutputs(NamedTuple):
    """(M,), or (B, O) of a linear readout, each."""

    value: np.ndarray
    sensitivity: np.ndarray
    step: np.ndarray


class Scratch(NamedTuple):
    """Work space of one tile of a linear layer."""

    rows: np.ndarray
    """(14, TILE)."""
    marks: np.ndarray
    """(4, TILE) int32."""
    tables: np.ndarray
    """(5, JUMP + 1, TILE)."""


class Part(NamedTuple):
    """Tiles and samples that one call processes."""

    tile_low: int
    tile_high: int
    low: int
    high: int


class Events(NamedTuple):
    """Spikes of the inputs, by sample and then by time."""

    offsets: np.ndarray
    times: np.ndarray
    units: np.ndarray
    values: np.ndarray
    late: np.ndarray
    """The height of each spike at the step after its own; empty if spikes are of one step."""


class Layer(NamedTuple):
    weight: np.ndarray
    """(tiles, N, TILE)."""
    bias: np.ndarray
    """(O,), as ``beta`` and ``threshold``."""
    beta: np.ndarray
    threshold: np.ndarray


class FirstSpikes(NamedTuple):
    times: np.ndarray
    """(B, O), -1 for a silent neuron."""
    crossing: np.ndarray
    """(2, B, O): the membrane before and at the spike; 0 and the maximum of a silent neuron's."""
    sensitivity: np.ndarray
    """(2, B, O): the derivative of ``crossing`` by beta."""
    when: np.ndarray
    """(B, O), given if ``crossing`` is: the spike, or the step of a silent neuron's maximum."""


class CurrentGradients(NamedTuple):
    """Of a linear layer, from the gradient of its current."""

    weight: np.ndarray
    """(tiles, N, TILE)."""
    bias: np.ndarray
    """(O,)."""


class StepLists(NamedTuple):
    """Work space for a linked list of neurons for each step; no loop visits the steps without."""

    heads: np.ndarray
    """(T + 1,), the first neuron of each list, or -1. The loop leaves it as it was."""
    busy: np.ndarray
    """(T // WORD + 1,), a bit for each step, 1 where there is a list. The loop leaves it clear."""


class ClosedFormAdjoint(NamedTuple):
    """lam[k] = h[k] + beta lam[k+1], (B, O) each."""

    every: np.ndarray
    """h[k] at every step."""
    at: np.ndarray
    """h[k] at the step ``when``."""
    before: np.ndarray
    """h[k] at the step before ``when``."""
    when: np.ndarray
    """-1 for no step."""


class ClosedFormGradients(NamedTuple):
    """Empty if not requested."""

    weight: np.ndarray
    """(tiles, N, TILE), added to."""
    bias: np.ndarray
    """(O,), added to."""
    inputs: np.ndarray
    """(2, B, N), added to: at the step of the event of each input, and at the step before it."""
    late: np.ndarray
    """(N,), added to: of the share of the later step, over the spikes of each input."""


class DenseGradient(NamedTuple):
    """The gradient to dense spikes of a linear layer."""

    rows: np.ndarray
    """(T or 1, samples from ``offset`` on, O); or its first factor, with P in the place of O."""
    factor: np.ndarray
    """The second factor, (tiles, P, TILE)."""
    offset: int


class LinearGradients(NamedTuple):
    weight: np.ndarray
    """(tiles, N, TILE), added to."""
    bias: np.ndarray
    """(O,), added to, as ``beta`` and ``threshold``."""
    beta: np.ndarray
    threshold: np.ndarray
    current: np.ndarray
    """(T, B, O), overwritten."""
    late: np.ndarray
    """(N,), added to; as in :class:`ClosedFormGradients`."""


class Patches(NamedTuple):
    """The outputs of a convolution that its inputs reach."""

    rows: np.ndarray
    """(H, KH, 2) int32: the row of outputs that a row of inputs reaches by each row of the kernel,
    and the row of windows that contains it; -1 for none."""
    columns: np.ndarray
    """(W, runs, 5) int32: columns of outputs side by side that a column of inputs reaches. The
    first of them, its tap, how many they are, and the first window and the one behind the last."""
    width: int
    """Columns of the output."""
    taps: int
    """Columns of the kernel. Their order is that of the outputs."""
    positions: int
    """Positions of the output."""
    group: int
    """Input channels of a group."""
    neurons: int
    """Neurons of a channel: positions, or windows of a maximum over positions."""
    across: int
    """Neurons of a row."""
    members: np.ndarray
    """(neurons, size) int32: the positions of a window. Empty without a maximum."""


class ConvLayer(NamedTuple):
    """A convolution and its neurons.

    A *cell* is one position of one group: its O / groups channels, padded to L lanes. A convolution
    has groups * positions cells, and its neurons have groups * neurons. Q cells of neurons have
    their own parameters: all, or one of each group.
    """

    weight: np.ndarray
    """(C, KH * KW, L): by input channel and tap, in the order of :class:`Patches`."""
    bias: np.ndarray
    """(groups, L)."""
    beta: np.ndarray
    """(Q, L), as ``threshold``, which is inf in the padding."""
    threshold: np.ndarray
    tables: np.ndarray
    """(2 or 4, n + 1, Q, L): sums of powers of beta for 0 ... n steps, as ``tile.Tables``."""
    out_channels: int
    """Neurons of a cell."""


class ConvState(NamedTuple):
    """Work space of one sample of a convolution."""

    mem: np.ndarray
    """(cells of neurons, L)."""
    slope: np.ndarray
    """(cells of neurons, L): the derivative of ``mem`` by beta."""
    rows: np.ndarray
    """(4, L)."""
    first: np.ndarray
    """(cells of neurons, L) int32."""
    peaks: np.ndarray
    """(2, cells of neurons, L): the highest membrane up to the spike, and its ``slope``."""
    when: np.ndarray
    """(cells of neurons, L) int32: the step of this membrane. Empty if it is not requested."""
    counters: np.ndarray
    """(3, cells of neurons) int32."""
    step: tuple[np.ndarray, ...]
    """:class:`ConvStep`."""


class ConvStep(NamedTuple):
    """Work space of one step of a convolution."""

    current: np.ndarray
    """(cells, L): the bias between two steps. Cells outside of windows are never read."""
    routed: np.ndarray
    """(cells, L): the gradient of ``current``, if the neurons read the maximum of windows."""


class ConvImpulses(NamedTuple):
    """Work space of one sample of a convolution whose adjoint has a closed form."""

    lam: np.ndarray
    """(cells of neurons, L), as ``at``, ``before`` and ``when``."""
    at: np.ndarray
    before: np.ndarray
    when: np.ndarray
    counters: np.ndarray
    """(6, cells of neurons) int32."""
    total: np.ndarray
    """(LANES,)."""
    rows: np.ndarray
    """(1, L)."""
    winner: np.ndarray
    """(L,) int32: which cells have the maximum of a window."""
    step: tuple[np.ndarray, ...]
    """:class:`ConvStep`."""


class ConvGradients(NamedTuple):
    """Empty if not requested."""

    weight: np.ndarray
    """(C, KH * KW, L), added to."""
    bias: np.ndarray
    """(groups, L), added to."""
    inputs: np.ndarray
    """(2, B, N), overwritten at units with an event: at its step, and at the step before."""


class ConvScan(NamedTuple):
    """Work space of one sample for the reverse scan of a convolution's neurons."""

    mem: np.ndarray
    """(T, cells of neurons, L): the membranes, and then their adjoint."""
    first: np.ndarray
    """(cells of neurons, L) int32: the first spike, T for none."""
    limit: np.ndarray
    """(cells of neurons, L) int32: the last step with a gradient."""
    counters: np.ndarray
    """(3, cells of neurons) int32."""
    rows: np.ndarray
    """(1, L)."""
    winner: np.ndarray
    """(T, cells of neurons, L) int32: which cells have the maximum of a window. Empty without
    one."""
    step: tuple[np.ndarray, ...]
    """:class:`ConvStep`."""


class ConvScanGradients(NamedTuple):
    weight: np.ndarray
    """(C, KH * KW, L), added to."""
    bias: np.ndarray
    """(cells of neurons, L), added to, as ``beta`` and ``threshold``."""
    beta: np.ndarray
    threshold: np.ndarray
    current: np.ndarray
    """(T, B, O * neurons of a channel), overwritten."""
    winner: np.ndarray
    """(T, B, cells of neurons, O / groups), overwritten: the positions with the maxima."""


class ConvWinners(NamedTuple):
    """Work space for the maxima of windows at one step."""

    current: np.ndarray
    """(cells, L), as in :class:`ConvStep`."""
    rows: np.ndarray
    """(1, L)."""
    winner: np.ndarray
    """(cells of neurons, L) int32: which cells have the maximum of a window."""
    counters: np.ndarray
    """(2, cells of neurons) int32."""


class ConvGradientRows(NamedTuple):
    """The gradient to the dense spikes of a convolution's neurons."""

    rows: np.ndarray
    """(T or 1, samples from ``offset`` on, O * neurons of a channel)."""
    offset: int
    last: bool
    """Whether the channels of a row lie side by side."""
    cells: np.ndarray
    """(T or 1, cells of neurons, L): work space for a sample. Empty if its rows are such cells."""


class TransposedConv(NamedTuple):
    """The transposed convolution, patch by patch."""

    weight: np.ndarray
    """(n, O, VECTORS * LANES): the weights of an output channel, in ``n`` times ``VECTORS`` vectors
    of its patch."""
    vectors: np.ndarray
    """(n, VECTORS) int64: where these vectors begin in ``maps``, from the patch on; behind ``end``
    for those beyond the patch."""
    whole: int
    """How many of the ``n`` consist of whole vectors."""
    part: int
    """How many numbers of their vectors the others have."""
    totals: np.ndarray
    """(VECTORS, LANES)."""
    patches: np.ndarray
    """(positions,) int64: where the patch of a position begins."""
    inside: np.ndarray
    """(height,) int64: where a row of the input begins in ``maps``, -1 if no patch reaches it."""
    covered: int
    """Columns of the input that patches reach, from the left."""
    size: tuple[int, int, int]
    """Channels of a group, height and width of the input."""
    maps: np.ndarray
    """The input of a group with its border, channels last; and space that is never read."""
    end: int
    """Where this space begins."""
    counts: np.ndarray
    """(positions,) int32: the number of channels with a gradient at a position."""
    lanes: np.ndarray
    """(positions, O / groups) int32: these channels."""
    values: np.ndarray
    """(positions, O / groups): their gradients."""
