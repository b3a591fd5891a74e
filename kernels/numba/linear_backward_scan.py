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
from .simd import LANES, any_lane, full_like, load, store, where
from .surrogate import ATAN, surrogate_slope
from .tile import TILE, clear_row, copy_row, gather, scatter, tile_values, width


class _Rows(NamedTuple):
    """Parameters, state and sums of one tile."""

    b: np.ndarray
    threshold: np.ndarray
    drive: np.ndarray
    x: np.ndarray
    v: np.ndarray
    g: np.ndarray
    tail: np.ndarray
    ramp: np.ndarray
    d_bias: np.ndarray
    d_beta: np.ndarray
    d_threshold: np.ndarray
    lam: np.ndarray


class _Path(NamedTuple):
    """What the reverse scan does at each step."""

    rule: int
    surrogate: int
    a: float
    b: float
    zeroes: bool
    """Whether a reset zeroes the membrane after a spike that passes a gradient."""
    subtracts: bool
    multiplies: bool
    """Whether the gradient to the spikes is a product of two factors."""


@part_of_caller
def _rows_of(scratch):
    # Rows of one array: the compiler can prove that they do not overlap, and vectorizes.
    r = scratch.rows
    return _Rows(r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r[10], r[11])


@inlined_helper
def _integrate(early, end, x, mem, first, limit, rows, path):
    """The membrane from step ``early`` up to ``end``, with the current ``x`` at each step."""
    for j in range(0, TILE, LANES):
        if not any_lane(load(limit, j) >= early):
            continue
        v, b, current = load(rows.v, j), load(rows.b, j), load(x, j)
        threshold, at = load(rows.threshold, j), load(first, j)
        for t in range(early, end):
            if path.zeroes:
                v = where(at == t - 1, 0.0, v)
            drive = current - where(at == t - 1, threshold, 0.0) if path.subtracts else current
            v = b * v + drive
            store(mem, (t, j), v)
        store(rows.v, j, v)


@part_of_caller
def _gradient_to_spikes(k, j, rows, factor, g, path):
    """The gradient to the spikes of one step: in ``g``, or one row of a matrix product."""
    total = load(g, j)
    if path.multiplies:
        row = row_of(rows, k)
        total = full_like(total, 0.0)
        for p in range(rows.shape[1]):
            total = total + rows[row, p] * load(factor, (p, j))
    return total


@inlined_helper
def _adjoint(early, late, last, dense, factor, mem, first, limit, rows, path):
    """lam from step ``late`` down to ``early``, and its terms of the parameters' gradients.

    The state of a vector of neurons stays in registers. A vector whose neurons have all spiked
    before has no gradient yet.
    """
    for j in range(0, TILE, LANES):
        if not any_lane(load(limit, j) >= early):
            continue
        b, threshold, lam = load(rows.b, j), load(rows.threshold, j), load(rows.lam, j)
        d_bias, d_beta = load(rows.d_bias, j), load(rows.d_beta, j)
        d_threshold, tail, ramp = load(rows.d_threshold, j), load(rows.tail, j), load(rows.ramp, j)
        at, until = load(first, j), load(limit, j)
        for k in range(late, early - 1, -1):
            open_ = until >= k
            g = _gradient_to_spikes(k, j, dense, factor, rows.g, path)
            if path.rule != MASKED:
                tail = tail + where(open_, g, 0.0)
                ramp = ramp + tail
                g = ramp
            v = load(mem, (k, j))
            if path.zeroes:
                lam = where(at == k, 0.0, lam)
            elif path.subtracts:
                d_threshold = d_threshold - where(at == k, lam, 0.0)
            if k < last:  # the last membrane carries nothing on, also where it is infinite or NaN
                d_beta = d_beta + lam * v
            slope = surrogate_slope(v - threshold, path.surrogate, path.a, path.b)
            through = where(open_, slope * g, 0.0)
            d_threshold = d_threshold - through
            lam = b * lam + through
            d_bias = d_bias + lam
        store(rows.lam, j, lam)
        store(rows.d_bias, j, d_bias)
        store(rows.d_beta, j, d_beta)
        store(rows.d_threshold, j, d_threshold)
        if path.rule != MASKED:
            store(rows.tail, j, tail)
            store(rows.ramp, j, ramp)


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
def _integrate_again(last, begin, end, events, weights, first, limit, mem, rows, path):
    """Integrate the membrane up to step ``last``. Returns the last spike up to this step."""
    e, t = begin, 0
    while t <= last:
        now = min(events.times[e], last + 1) if e < end else last + 1
        if t < now:  # steps without a spike
            _integrate(t, now, rows.drive, mem, first, limit, rows, path)
            t = now
        else:
            copy_row(rows.drive, rows.x)
            e = gather(e, end, t, events, weights, rows.x)
            _integrate(t, t + 1, rows.x, mem, first, limit, rows, path)
            t += 1
    return e - 1


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
    rule, surrogate, a, b = spike_gradient
    rows, first, limit = _rows_of(scratch), scratch.marks[0], scratch.marks[1]
    causal = rule in (MASKED, PRE_SPIKE)
    path = _Path(
        rule,
        surrogate,
        a,
        b,
        reset == ZERO_BEFORE and not causal,
        reset == SUBTRACT and not causal,
        given(dense.factor),
    )
    default = _Path(rule, ATAN, a, b, path.zeroes, path.subtracts, path.multiplies)
    want_current = given(gradients.current)
    by_steps = want_current or not path.multiplies
    for tile in range(part.tile_low, part.tile_high):
        weights, gradient = layer.weight[tile], gradients.weight[tile]
        neuron, n = tile * TILE, width(tile, layer.beta.shape[0])
        factor = dense.factor[tile] if path.multiplies else dense.rows[0]
        _load_tile(layer, tile, rows)
        clear_row(rows.g)
        for sample in range(part.low, part.high):
            begin, end = events.offsets[sample], events.offsets[sample + 1]
            fired = spiked[sample, neuron : neuron + n]
            last = _limits(fired, n, num_steps, rule, causal, first, limit)
            clear_row(rows.v)
            clear_row(rows.lam)
            clear_row(rows.tail)
            clear_row(rows.ramp)
            e = _integrate_again(last, begin, end, events, weights, first, limit, mem, rows, path)
            if want_current:
                for k in range(last + 1, num_steps):
                    fill(gradients.current[k, sample, neuron : neuron + n], n, zero)
            late = last
            while late >= 0:
                # Down to the step of a spike, whose weights receive the adjoint of this step.
                early = events.times[e] if e >= begin else 0
                if by_steps:
                    early = late
                if not path.multiplies:
                    row = dense.rows[row_of(dense.rows, late), sample - dense.offset]
                    copy(row[neuron : neuron + n], n, rows.g)
                gradient_rows = dense.rows[:, sample - dense.offset]
                block = last, gradient_rows, factor, mem, first, limit, rows
                if surrogate == ATAN:  # compiled apart, without calls of exp
                    _adjoint(early, late, *block, default)
                else:
                    _adjoint(early, late, *block, path)
                e = scatter(e, begin, np.int32(early), events, rows.lam, gradient)
                if want_current:
                    copy(rows.lam, n, gradients.current[late, sample, neuron : neuron + n])
                late = early - 1
        for j in range(n):
            gradients.bias[neuron + j] += rows.d_bias[j]
            gradients.beta[neuron + j] += rows.d_beta[j]
            gradients.threshold[neuron + j] += rows.d_threshold[j]
