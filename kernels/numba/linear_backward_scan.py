"""Gradients of a linear layer by a surrogate rule, which read every step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arguments import (
    DenseGradient,
    Events,
    Layer,
    LinearGradients,
    Part,
    Scratch,
    SpikeGradient,
)
from .block import copy, fill, given, row_of
from .compiling import (
    MASKED,
    PRE_SPIKE,
    SUBTRACT,
    ZERO_BEFORE,
    helper,
    inlined_helper,
    part_of_caller,
)
from .simd import LANES, load, store
from .surrogate import surrogate_slope
from .tile import (
    TILE,
    clear_row,
    copy_row,
    gather,
    gather_split,
    scatter,
    scatter_split,
    tile_values,
    width,
)


class _Rows(NamedTuple):
    """Parameters, state and sums of one tile."""

    b: np.ndarray
    threshold: np.ndarray
    drive: np.ndarray
    x: np.ndarray
    v: np.ndarray
    g: np.ndarray
    slope: np.ndarray
    tail: np.ndarray
    ramp: np.ndarray
    d_bias: np.ndarray
    d_beta: np.ndarray
    d_threshold: np.ndarray
    lam: np.ndarray
    later: np.ndarray
    """The current of the next step, and then the adjoint of it, of spikes shared with it."""


@part_of_caller
def _rows_of(scratch):
    # Rows of one array: the compiler can prove that they do not overlap, and vectorizes.
    r = scratch.rows
    return _Rows(
        r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r[10], r[11], r[12], r[13]
    )  # fmt: skip


@inlined_helper
def _product(adjoint, weights, g):
    """One row of a matrix product, four factors at a time."""
    for j in range(TILE):
        g[j] = 0
    p = 0
    while p + 3 < adjoint.shape[0]:
        one, two, three, four = adjoint[p], adjoint[p + 1], adjoint[p + 2], adjoint[p + 3]
        for j in range(TILE):
            u = g[j] + one * weights[p, j]
            u = u + two * weights[p + 1, j]
            u = u + three * weights[p + 2, j]
            g[j] = u + four * weights[p + 3, j]
        p += 4
    while p < adjoint.shape[0]:
        one = adjoint[p]
        for j in range(TILE):
            g[j] += one * weights[p, j]
        p += 1


@inlined_helper
def _clear_fired(v, first, step):
    spike = np.int32(step)
    for j in range(TILE):
        u = v[j]
        v[j] = v.dtype.type(0) if first[j] == spike else u


@inlined_helper
def _subtract_fired(v, amount, first, step):
    spike = np.int32(step)
    for j in range(TILE):
        down = amount[j]
        v[j] -= down if first[j] == spike else v.dtype.type(0)


@inlined_helper
def _accumulate(g, limit, now, tail, ramp):
    """Replace ``g`` by its double sum over later steps."""
    for j in range(TILE):
        entering = g[j]
        t = tail[j] + (entering if now <= limit[j] else g.dtype.type(0))
        r = ramp[j] + t
        tail[j] = t
        ramp[j] = r
        g[j] = r


@inlined_helper
def _integrate(t, v, b, x, mem):
    for j in range(TILE):
        u = b[j] * v[j] + x[j]
        v[j] = u
        mem[t, j] = u


@inlined_helper
def _slopes_at(k, mem, threshold, spike_gradient, out):
    """s'(V[k] - threshold)."""
    _, surrogate, a, b = spike_gradient
    for j in range(0, TILE, LANES):
        distance = load(mem, (k, j)) - load(threshold, j)
        store(out, j, surrogate_slope(distance, surrogate, a, b))


@inlined_helper
def _adjoint(k, now, carries, mem, limit, rows):
    """Compute lam[k] from lam[k+1], and add to the gradients of the parameters."""
    b, g, slope, lam = rows.b, rows.g, rows.slope, rows.lam
    d_bias, d_beta, d_threshold = rows.d_bias, rows.d_beta, rows.d_threshold
    if carries:
        for j in range(TILE):
            d_beta[j] += lam[j] * mem[k, j]
    for j in range(TILE):
        through = slope[j] * g[j] if now <= limit[j] else g.dtype.type(0)
        d_threshold[j] -= through
        lam[j] = b[j] * lam[j] + through
    for j in range(TILE):
        d_bias[j] += lam[j]


@part_of_caller
def _limits(fired, n, steps, rule, causal, first, limit):
    """First spikes, and the last step of each neuron with a gradient. Returns the last of all."""
    last = np.int32(0)
    for j in range(TILE):
        first[j] = -2  # the padding never fires
    for j in range(n):
        step = fired[j]
        first[j] = step if step >= 0 else steps
        last = max(last, first[j])
    for j in range(TILE):
        limit[j] = first[j] - np.int32(rule == PRE_SPIKE) if causal else steps
    # After the last spike there is no gradient, and no membrane is read.
    return min(last, steps - 1) if causal else steps - 1


@part_of_caller
def _integrate_again(last, begin, end, zeroes, subtracts, events, weights, first, mem, rows):
    """Integrate the membrane up to step ``last``. Returns the last spike up to this step."""
    e = begin
    for t in range(last + 1):
        copy_row(rows.drive, rows.x)
        if zeroes:
            _clear_fired(rows.v, first, t - 1)
        elif subtracts:
            _subtract_fired(rows.x, rows.threshold, first, t - 1)
        if given(events.late):
            e = gather_split(e, end, t, True, events, weights, rows.x, rows.later)
        else:
            e = gather(e, end, t, events, weights, rows.x)
        _integrate(t, rows.v, rows.b, rows.x, mem)
    return e - 1


@part_of_caller
def _gradient_to_spikes(k, tile, sample, n, dense, g):
    """The gradient to the spikes of one step."""
    row = row_of(dense.rows, k)
    if given(dense.factor):
        _product(dense.rows[row, sample - dense.offset], dense.factor[tile], g)
    else:
        neuron = tile * TILE
        copy(dense.rows[row, sample - dense.offset, neuron : neuron + n], n, g)


@part_of_caller
def _load_tile(layer, tile, rows):
    zero = layer.weight.dtype.type(0)
    tile_values(layer.beta, tile, zero, rows.b)
    tile_values(layer.bias, tile, zero, rows.drive)
    tile_values(layer.threshold, tile, zero, rows.threshold)
    for j in range(TILE):
        rows.d_bias[j], rows.d_beta[j], rows.d_threshold[j] = zero, zero, zero


@helper
def linear_backward_scan_loop(
    scratch, mem, part, events, layer, reset, num_steps, spiked, dense, spike_gradient, gradients
):
    """Gradients of the weights and parameters by a surrogate rule.

    The loop integrates the membrane again, into ``mem`` (T, TILE), and goes back from there.
    """
    scratch, part, events, layer = Scratch(*scratch), Part(*part), Events(*events), Layer(*layer)
    dense, spike_gradient = DenseGradient(*dense), SpikeGradient(*spike_gradient)
    gradients = LinearGradients(*gradients)
    zero = layer.weight.dtype.type(0)
    rule = spike_gradient.rule
    rows, first, limit = _rows_of(scratch), scratch.marks[0], scratch.marks[1]
    causal = rule in (MASKED, PRE_SPIKE)
    zeroes, subtracts = reset == ZERO_BEFORE and not causal, reset == SUBTRACT and not causal
    for tile in range(part.tile_low, part.tile_high):
        weights, gradient = layer.weight[tile], gradients.weight[tile]
        neuron, n = tile * TILE, width(tile, layer.beta.shape[0])
        _load_tile(layer, tile, rows)
        for sample in range(part.low, part.high):
            begin, end = events.offsets[sample], events.offsets[sample + 1]
            fired = spiked[sample, neuron : neuron + n]
            last = _limits(fired, n, num_steps, rule, causal, first, limit)
            clear_row(rows.v)
            clear_row(rows.lam)
            clear_row(rows.tail)
            clear_row(rows.ramp)
            clear_row(rows.later)
            e = _integrate_again(
                last, begin, end, zeroes, subtracts, events, weights, first, mem, rows
            )
            if given(gradients.current):
                for k in range(last + 1, num_steps):
                    fill(gradients.current[k, sample, neuron : neuron + n], n, zero)
            for k in range(last, -1, -1):
                now = np.int32(k)
                _gradient_to_spikes(k, tile, sample, n, dense, rows.g)
                if rule != MASKED:
                    _accumulate(rows.g, limit, now, rows.tail, rows.ramp)
                _slopes_at(k, mem, rows.threshold, spike_gradient, rows.slope)
                if given(events.late):
                    copy_row(rows.lam, rows.later)
                if zeroes:
                    _clear_fired(rows.lam, first, now)
                elif subtracts:
                    _subtract_fired(rows.d_threshold, rows.lam, first, now)
                # The last membrane carries nothing on, also where it is infinite or NaN.
                _adjoint(k, now, k < last, mem, limit, rows)
                if given(events.late):
                    e = scatter_split(
                        e, begin, now, events, weights, rows.lam, rows.later, gradient,
                        gradients.late,
                    )  # fmt: skip
                else:
                    e = scatter(e, begin, now, events, rows.lam, gradient)
                if given(gradients.current):
                    copy(rows.lam, n, gradients.current[k, sample, neuron : neuron + n])
        for j in range(n):
            gradients.bias[neuron + j] += rows.d_bias[j]
            gradients.beta[neuron + j] += rows.d_beta[j]
            gradients.threshold[neuron + j] += rows.d_threshold[j]
