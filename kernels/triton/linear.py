"""A linear layer and its neurons, or its readout, from spike times.

The kernels read spikes as events and never a tensor of size (T, B, O), except for the membrane and
the adjoint of a few samples under the surrogate rules. Two orders of the events serve: by sample
and time (``offsets`` of each sample) where a program walks through time, and by input (``offsets``
of each input) for the gradient of the weights.

    linear_first_spikes_kernel       first spikes, event form; or the membrane of known spikes
    linear_first_spikes_dot_kernel   first spikes, tensor-core form
    linear_readout_kernel            reduction of a membrane that never fires
    linear_backward_weight_kernel    gradient of the weights, from an adjoint
    linear_backward_input_kernel     gradient to the times of the input spikes

The forward pass has two forms. The event form walks through the spikes of one sample: each spike
adds its row of the transposed weights (N, O) to the current of its step, and every step is
integrated as in ``neuron.py``, with the same rounding. The tensor-core form builds the dense spikes
of a few steps in registers, multiplies them with the weights, and integrates the steps by an
associative scan. Its sums are rounded in another order.

A program owns one sample and ``BLOCK`` neighboring neurons. Launch the event form with
``enable_fp_fusion=False``.
"""

import triton
import triton.language as tl

from .block import end_once_all_fired
from .membrane import advance, impulse
from .readout import empty_reduction, reduce_step


@triton.jit
def _lanes(parameter, lane, inside, other):
    return tl.load(parameter + lane, mask=inside, other=other)


@triton.jit
def _events(times, units, values, e, end, T, U: tl.constexpr):
    """Times, units and heights of ``U`` spikes from ``e`` on; past the last one, time T and unit 0.

    No heights where ``values`` is None: all are 1.
    """
    when = ()
    unit = ()
    heights = ()
    for u in tl.static_range(U):
        there = e + u < end
        when = when + (tl.load(times + e + u, mask=there, other=T),)
        unit = unit + (tl.load(units + e + u, mask=there, other=0),)
        if values is not None:
            heights = heights + (tl.load(values + e + u, mask=there, other=0.0),)
    return when, unit, heights


@triton.jit
def _weights(weight, unit, lane, inside, O, U: tl.constexpr):
    """The rows of weights of ``U`` units."""
    rows = ()
    for u in tl.static_range(U):
        row = weight + unit[u].to(tl.int64) * O
        rows = rows + (tl.load(row + lane, mask=inside, other=0.0),)
    return rows


@triton.jit
def _store_pair(out, here, one, other, B, O, inside):
    """Write (2, B, O), unless ``out`` is None."""
    if out is not None:
        tl.store(out + here, one, mask=inside)
        tl.store(out + tl.cast(B, tl.int64) * O + here, other, mask=inside)


@triton.jit
def linear_first_spikes_kernel(
    offsets,
    times,
    units,
    values,
    weight,
    bias,
    beta,
    threshold,
    spiked,
    first_spikes,
    mem,
    crossing,
    sensitivity,
    peaks,
    T,
    B,
    O,
    start,
    RESET: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK: tl.constexpr,
    U: tl.constexpr,
):
    """First spikes in the event form, or the membrane of neurons whose spikes are known.

    offsets (B + 1,) int64, times and units (E,) int32, values (E,) or None; weight (N, O); bias,
    beta (between 0 and 1), threshold (O,). Outputs, None where not wanted: first_spikes (B, O)
    int32, -1 for silent; crossing (2, B, O) = V[t*-1], V[t*], with peaks (B, O) int32 = t*; of a
    silent neuron 0, the maximum of V, and its step; sensitivity (2, B, O), the derivatives of
    crossing by beta, only with crossing.

    Where the first spikes are known, spiked (B, O) replaces first_spikes. The output is then
    mem (T, n, O) of the n samples from ``start`` on, with the reset that follows the spike.
    """
    sample = start + tl.program_id(0)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < O
    decay = _lanes(beta, lane, inside, 0.0)
    theta = _lanes(threshold, lane, inside, 0.0)
    drive = _lanes(bias, lane, inside, 0.0)
    here = sample.to(tl.int64) * O + lane
    first = tl.zeros((BLOCK,), tl.int32) + T
    if spiked is not None:
        first = tl.load(spiked + here, mask=inside, other=0)
        first = tl.where(first < 0, T, first)
    v = tl.zeros((BLOCK,), STATE)
    slope = tl.zeros((BLOCK,), STATE)
    below = tl.zeros((BLOCK,), STATE)
    above = tl.full((BLOCK,), float("-inf"), STATE)
    peak = tl.zeros((BLOCK,), tl.int32)
    slope_below = tl.zeros((BLOCK,), STATE)
    slope_above = tl.zeros((BLOCK,), STATE)
    e = tl.load(offsets + sample)
    end = tl.load(offsets + sample + 1)
    t = 0
    x = drive  # the current of step t, as far as its spikes have been added
    stop = T
    when, unit, heights = _events(times, units, values, e, end, T, U)
    rows = _weights(weight, unit, lane, inside, O, U)
    next_when, unit, next_heights = _events(times, units, values, e + U, end, T, U)
    while t < stop:
        next_rows = _weights(weight, unit, lane, inside, O, U)
        later, unit, later_heights = _events(times, units, values, e + 2 * U, end, T, U)
        for u in tl.static_range(U):
            now = when[u]
            while t < now:
                slope_before = slope
                before, v, slope = advance(v, slope, x, decay, theta, first, t, sensitivity, RESET)
                if spiked is None:
                    fire = (v > theta) & (first >= T)
                    first = tl.where(fire, t, first)
                    if crossing is not None:
                        kept = (v > above) & (first >= t)  # a spike is the highest step so far
                        below = tl.where(fire, before, below)
                        above = tl.where(kept, v, above)
                        peak = tl.where(kept, t, peak)
                    if sensitivity is not None:
                        slope_below = tl.where(fire, slope_before, slope_below)
                        slope_above = tl.where(kept, slope, slope_above)
                if mem is not None:
                    row = (tl.cast(t, tl.int64) * tl.num_programs(0) + tl.program_id(0)) * O
                    tl.store(mem + row + lane, v, mask=inside)
                x = drive
                t += 1
            # Past the last spike, t is T by now, and x is not used.
            x = x + (rows[u] if values is None else rows[u] * heights[u])
        e += U
        when, heights, rows = next_when, next_heights, next_rows
        next_when, next_heights = later, later_heights
        if mem is None:
            stop = end_once_all_fired(first, inside, T)

    if first_spikes is not None:
        tl.store(first_spikes + here, tl.where(first < T, first, -1), mask=inside)
    if crossing is not None:
        tl.store(peaks + here, peak, mask=inside)
    _store_pair(crossing, here, below, above, B, O, inside)
    _store_pair(sensitivity, here, slope_below, slope_above, B, O, inside)


@triton.jit
def _combine(decay_left, sum_left, decay_right, sum_right):
    """Compose two intervals of time: V after an interval = decay * V before it + sum."""
    return decay_left * decay_right, decay_right * sum_left + sum_right


@triton.jit
def linear_first_spikes_dot_kernel(
    times,
    weight,
    bias,
    beta,
    threshold,
    first_spikes,
    T,
    N,
    O,
    PRECISION: tl.constexpr,
    STEPS: tl.constexpr,
    UNITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """First spikes in the tensor-core form, of inputs that spike once at most.

    times (B, N) int32, -1 for silent; weight (N, O); bias, beta, threshold (O,), float32.
    Output: first_spikes (B, O) int32. PRECISION is the precision of the weights in the product:
    a spike is 0 or 1, and exact in any type.
    """
    sample = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < O
    decay = _lanes(beta, lane, inside, 0.0)
    theta = _lanes(threshold, lane, inside, float("inf"))
    drive = _lanes(bias, lane, inside, 0.0)
    step = tl.arange(0, STEPS)
    unit = tl.arange(0, UNITS)
    v = tl.zeros((BLOCK,), tl.float32)
    first = tl.zeros((BLOCK,), tl.int32) + T
    for t0 in range(0, T, STEPS):
        current = tl.zeros((STEPS, BLOCK), tl.float32) + drive[None, :]
        for i0 in range(0, N, UNITS):
            i = (i0 + unit).to(tl.int64)  # N * O may exceed 2**31
            when = tl.load(times + sample * N + i, mask=i < N, other=-1)
            spikes = tl.where(when[None, :] == t0 + step[:, None], 1.0, 0.0)
            weights = tl.load(
                weight + i[:, None] * O + lane[None, :],
                mask=(i < N)[:, None] & inside[None, :],
                other=0.0,
            )
            current = tl.dot(spikes, weights, current, input_precision=PRECISION)
        powers = tl.zeros((STEPS, BLOCK), tl.float32) + decay[None, :]
        powers, mem = tl.associative_scan((powers, current), 0, _combine)
        mem += powers * v[None, :]
        t = t0 + step
        over = (mem > theta[None, :]) & (t < T)[:, None]
        first = tl.minimum(first, tl.min(tl.where(over, t[:, None], T), axis=0))
        v = tl.sum(tl.where((step == STEPS - 1)[:, None], mem, 0.0), axis=0)
    tl.store(first_spikes + sample * O + lane, tl.where(first < T, first, -1), mask=inside)


@triton.jit
def linear_readout_kernel(
    offsets,
    times,
    units,
    values,
    weight,
    bias,
    beta,
    value,
    sensitivity,
    taken,
    T,
    O,
    REDUCTION: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK: tl.constexpr,
    U: tl.constexpr,
):
    """Sum, maximum or last value over time of a membrane that never fires, (B, O) each.

    Inputs as in linear_first_spikes_kernel. Outputs, None where not wanted: sensitivity, the
    derivative by beta; taken (int64), the step of the maximum or last value.
    """
    sample = tl.program_id(0)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < O
    decay = _lanes(beta, lane, inside, 0.0)
    drive = _lanes(bias, lane, inside, 0.0)
    v = tl.zeros((BLOCK,), STATE)
    slope = tl.zeros((BLOCK,), STATE)
    result_slope = tl.zeros((BLOCK,), STATE)
    result, step = empty_reduction(T, REDUCTION, STATE, BLOCK)
    e = tl.load(offsets + sample)
    end = tl.load(offsets + sample + 1)
    t = 0
    x = drive
    when, unit, heights = _events(times, units, values, e, end, T, U)
    rows = _weights(weight, unit, lane, inside, O, U)
    next_when, unit, next_heights = _events(times, units, values, e + U, end, T, U)
    while t < T:
        next_rows = _weights(weight, unit, lane, inside, O, U)
        later, unit, later_heights = _events(times, units, values, e + 2 * U, end, T, U)
        for u in tl.static_range(U):
            now = when[u]
            while t < now:
                _, v, slope = advance(v, slope, x, decay, None, None, t, sensitivity, "none")
                result, result_slope, step = reduce_step(
                    result, result_slope, step, v, slope, t, REDUCTION
                )
                x = drive
                t += 1
            x = x + (rows[u] if values is None else rows[u] * heights[u])
        e += U
        when, heights, rows = next_when, next_heights, next_rows
        next_when, next_heights = later, later_heights
    here = sample.to(tl.int64) * O + lane
    tl.store(value + here, result, mask=inside)
    if sensitivity is not None:
        tl.store(sensitivity + here, result_slope, mask=inside)
    if taken is not None:
        tl.store(taken + here, step.to(tl.int64), mask=inside)


@triton.jit
def _load_adjoint(lam, every, at, before, when, geometric, k, row, T, n, O, lane, inside):
    """The rows from which :func:`_adjoint` computes lam[k] of the sample ``row``."""
    here = row.to(tl.int64) * O + lane
    if lam is not None:
        here = (row.to(tl.int64) + k.to(tl.int64) * n) * O + lane
        return (tl.load(lam + here, mask=inside, other=0.0),)
    elif every is not None:
        ahead = (T - k).to(tl.int64) * O + lane
        return (
            tl.load(every + here, mask=inside, other=0.0),
            tl.load(geometric + ahead, mask=inside, other=0.0),
        )
    elif before is None:
        return (
            tl.load(at + here, mask=inside, other=0.0),
            tl.load(when + here, mask=inside, other=-1),
        )
    else:
        return (
            tl.load(at + here, mask=inside, other=0.0),
            tl.load(when + here, mask=inside, other=-1),
            tl.load(before + here, mask=inside, other=0.0),
        )


@triton.jit
def _adjoint(rows, lam, every, before, rate, k):
    """lam[k] of one sample; see linear_backward_weight_kernel. ``rate`` is log2(beta)."""
    if lam is not None:
        return rows[0]
    elif every is not None:
        return rows[0] * rows[1]
    else:
        spike = rows[1]
        out = impulse(rows[0], spike, rate, k)
        if before is not None:
            out += impulse(rows[2], tl.where(spike >= 1, spike - 1, -1), rate, k)
        return out


@triton.jit
def _adjoints(
    lam, every, at, before, when, geometric, steps, samples, T, n, O, lane, inside, U: tl.constexpr
):
    """The rows of :func:`_load_adjoint` for ``U`` spikes."""
    rows = ()
    for u in tl.static_range(U):
        row = _load_adjoint(
            lam, every, at, before, when, geometric, steps[u], samples[u], T, n, O, lane, inside
        )
        rows = rows + (row,)
    return rows


@triton.jit
def linear_backward_weight_kernel(
    offsets,
    times,
    samples,
    values,
    lam,
    every,
    at,
    before,
    when,
    log_decay,
    geometric,
    grad_weight,
    T,
    n,
    O,
    STATE: tl.constexpr,
    BLOCK: tl.constexpr,
    U: tl.constexpr,
):
    """Add the adjoint at the times of all spikes of an input to the gradient of its weights.

    The spikes of input i are offsets[i] to offsets[i + 1] - 1: times and samples (E,) int32,
    values (E,) or None. The adjoint is one of three:

    - lam (T, n, O), whose samples count from the first of n;
    - every (B, O), the same gradient to V at every step, with
      geometric (T + 1, O) = 1 + beta + ... + beta^(k-1);
    - at (B, O), a gradient to V at the step when (B, O) int32, and before (B, O) or None, one to V
      at the step before it, with log_decay = log2(beta).

    The kernel adds to grad_weight (N, O).
    """
    unit = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < O
    e = tl.load(offsets + unit)
    end = tl.load(offsets + unit + 1)
    total = tl.zeros((BLOCK,), STATE)
    rate = None
    if at is not None:
        rate = tl.load(log_decay + lane, mask=inside, other=0.0)
    steps, sample, heights = _events(times, samples, values, e, end, 0, U)
    rows = _adjoints(
        lam, every, at, before, when, geometric, steps, sample, T, n, O, lane, inside, U
    )
    next_steps, sample, next_heights = _events(times, samples, values, e + U, end, 0, U)
    while e < end:
        next_rows = _adjoints(
            lam, every, at, before, when, geometric, next_steps, sample, T, n, O, lane, inside, U
        )
        later, sample, later_heights = _events(times, samples, values, e + 2 * U, end, 0, U)
        for u in tl.static_range(U):
            added = _adjoint(rows[u], lam, every, before, rate, steps[u])
            if values is not None:
                added *= heights[u]
            total += tl.where(e + u < end, added, 0.0)
        e += U
        steps, heights, rows = next_steps, next_heights, next_rows
        next_steps, next_heights = later, later_heights
    here = grad_weight + unit * O + lane
    tl.store(here, tl.load(here, mask=inside, other=0.0) + total, mask=inside)


@triton.jit
def linear_backward_input_kernel(
    times,
    units,
    samples,
    weight,
    every,
    at,
    before,
    when,
    log_decay,
    geometric,
    grad_inputs,
    T,
    B,
    N,
    O,
    STATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient to an input at one step, and at the step before it, from a closed form.

    times, units and samples (E,) int32 of events, one of each input at most; weight (N, O); the
    adjoint as in linear_backward_weight_kernel. Output: grad_inputs (2, B, N). One program writes
    the two values of one event.
    """
    e = tl.program_id(0)
    k = tl.load(times + e)
    unit = tl.load(units + e).to(tl.int64)
    row = tl.load(samples + e).to(tl.int64)
    now = tl.zeros((BLOCK,), STATE)
    late = tl.zeros((BLOCK,), STATE)
    previous = tl.maximum(k - 1, 0)
    for start in range(0, O, BLOCK):
        lane = start + tl.arange(0, BLOCK)
        inside = lane < O
        rate = tl.load(log_decay + lane, mask=inside, other=0.0)
        weights = tl.load(weight + unit * O + lane, mask=inside, other=0.0)
        rows = _load_adjoint(
            None, every, at, before, when, geometric, k, row, T, B, O, lane, inside
        )
        now += weights * _adjoint(rows, None, every, before, rate, k)
        rows = _load_adjoint(
            None, every, at, before, when, geometric, previous, row, T, B, O, lane, inside
        )
        late += weights * _adjoint(rows, None, every, before, rate, previous)
    here = row * N + unit
    tl.store(grad_inputs + here, tl.sum(now, axis=0))
    earlier = tl.where(k > 0, tl.sum(late, axis=0), 0.0)
    tl.store(grad_inputs + tl.cast(B, tl.int64) * N + here, earlier)
