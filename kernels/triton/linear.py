"""A linear layer and its neurons from spike times.

Nothing of size (T, B, O) is read or written but the membrane and adjoint of a few samples under
the surrogate rules. Spikes come as events: ordered by sample and time for what walks through
time (``offsets`` of each sample), ordered by unit for the gradient of the weights.

Two forms of the forward pass. The event form walks the spikes of one sample: each adds its row
of the transposed weights (N, O) to the current of its step, and every step is integrated as in
``leaky.py``, with the same rounding. The tensor-core form builds the dense spikes of a few steps
in registers, multiplies them with the weights, and integrates the steps by an associative scan;
its sums are rounded in another order.

A program owns one sample and ``BLOCK`` neighbouring neurons. Launch with
``enable_fp_fusion=False``.
"""

import triton
import triton.language as tl


@triton.jit
def _lanes(parameter, lane, inside, other):
    return tl.load(parameter + lane, mask=inside, other=other)


@triton.jit
def _events(times, units, weight, e, end, lane, inside, O, T, U: tl.constexpr):
    """Times and weights of the next ``U`` spikes; past the last one, time T and no weight."""
    when = ()
    rows = ()
    for u in tl.static_range(U):
        there = e + u < end
        when = when + (tl.load(times + e + u, mask=there, other=T),)
        unit = tl.load(units + e + u, mask=there, other=0).to(tl.int64)
        row = tl.load(weight + unit * O + lane, mask=inside, other=0.0)
        rows = rows + (tl.where(there, row, 0.0),)
    return when, rows


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
    int32, -1 for silent; crossing (2, B, O) = V[t*-1], V[t*]; sensitivity (2, B, O), their
    derivatives by beta; mem (T, n, O) of the n samples from ``start`` on, with the reset that
    follows the known spike, for which spiked (B, O) is given in the place of first_spikes.
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
    above = tl.zeros((BLOCK,), STATE)
    slope_below = tl.zeros((BLOCK,), STATE)
    slope_above = tl.zeros((BLOCK,), STATE)
    e = tl.load(offsets + sample)
    end = tl.load(offsets + sample + 1)
    t = 0
    x = drive  # the current of step t, as far as its spikes have been added
    stop = T
    while t < stop:
        when, rows = _events(times, units, weight, e, end, lane, inside, O, T, U)
        for u in tl.static_range(U):
            now = when[u]
            while t < now:
                before = v
                if RESET == "zero_before":
                    before = tl.where(first == t - 1, 0.0, before)
                if sensitivity is not None:
                    held = slope
                    slope = before + decay * held
                v = decay * before + x
                if RESET == "subtract":
                    v = tl.where(first == t - 1, v - theta, v)
                if spiked is None:
                    fire = (v > theta) & (first >= T)
                    first = tl.where(fire, t, first)
                    if crossing is not None:
                        below = tl.where(fire, before, below)
                        above = tl.where(fire, v, above)
                    if sensitivity is not None:
                        slope_below = tl.where(fire, held, slope_below)
                        slope_above = tl.where(fire, slope, slope_above)
                if mem is not None:
                    row = (tl.cast(t, tl.int64) * tl.num_programs(0) + tl.program_id(0)) * O
                    tl.store(mem + row + lane, v, mask=inside)
                x = drive
                t += 1
            added = rows[u]
            if values is not None:
                added *= tl.load(values + e + u, mask=e + u < end, other=0.0)
            x = x + added
        e += U
        if mem is None:
            silent = tl.max(tl.where(inside & (first >= T), 1, 0), axis=0)
            stop = tl.where(silent > 0, T, 0)

    if first_spikes is not None:
        tl.store(first_spikes + here, tl.where(first < T, first, -1), mask=inside)
    if crossing is not None:
        tl.store(crossing + here, below, mask=inside)
        tl.store(crossing + tl.cast(B, tl.int64) * O + here, above, mask=inside)
    if sensitivity is not None:
        tl.store(sensitivity + here, slope_below, mask=inside)
        tl.store(sensitivity + tl.cast(B, tl.int64) * O + here, slope_above, mask=inside)


@triton.jit
def _combine(decay_left, sum_left, decay_right, sum_right):
    """Two stretches of time in a row: V behind them = decay * V before them + sum."""
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
    Output: first_spikes (B, O) int32. A spike is exact in any type, so that PRECISION says how
    the weights are split.
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
            i = i0 + unit
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

    Inputs as in linear_first_spikes_kernel. sensitivity is the derivative by beta, taken (int64)
    the step that the value was taken at; None where not wanted.
    """
    sample = tl.program_id(0)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < O
    decay = _lanes(beta, lane, inside, 0.0)
    drive = _lanes(bias, lane, inside, 0.0)
    v = tl.zeros((BLOCK,), STATE)
    slope = tl.zeros((BLOCK,), STATE)
    result_slope = tl.zeros((BLOCK,), STATE)
    if REDUCTION == "max":
        result = tl.full((BLOCK,), float("-inf"), STATE)
        step = tl.zeros((BLOCK,), tl.int32)
    else:
        result = tl.zeros((BLOCK,), STATE)
        step = tl.zeros((BLOCK,), tl.int32) + (T - 1)
    e = tl.load(offsets + sample)
    end = tl.load(offsets + sample + 1)
    t = 0
    x = drive
    while t < T:
        when, rows = _events(times, units, weight, e, end, lane, inside, O, T, U)
        for u in tl.static_range(U):
            now = when[u]
            while t < now:
                if sensitivity is not None:
                    slope = v + decay * slope
                v = decay * v + x
                if REDUCTION == "sum":
                    result += v
                    result_slope += slope
                elif REDUCTION == "max":
                    better = (v > result) | ((v != v) & (result == result))
                    result = tl.where(better, v, result)
                    result_slope = tl.where(better, slope, result_slope)
                    step = tl.where(better, t, step)
                else:
                    tl.static_assert(REDUCTION == "last", "unknown reduction")
                    result = v
                    result_slope = slope
                x = drive
                t += 1
            added = rows[u]
            if values is not None:
                added *= tl.load(values + e + u, mask=e + u < end, other=0.0)
            x = x + added
        e += U
    here = sample.to(tl.int64) * O + lane
    tl.store(value + here, result, mask=inside)
    if sensitivity is not None:
        tl.store(sensitivity + here, result_slope, mask=inside)
    if taken is not None:
        tl.store(taken + here, step.to(tl.int64), mask=inside)


@triton.jit
def _impulse(amount, when, log_decay, k):
    """amount * beta^(when - k) where k <= when, else 0; log_decay is log2(beta)."""
    ahead = (when - k).to(amount.dtype)
    power = tl.where(when == k, 1.0, tl.exp2(ahead * log_decay))
    return tl.where((when >= 0) & (k <= when), amount * power, 0.0)


@triton.jit
def _adjoint(lam, every, at, before, when, log_decay, geometric, row, k, T, O, lane, inside):
    """lam[k] of one sample: a row of lam (T, n, O), or its closed form."""
    if lam is not None:
        return tl.load(lam + row * O + lane, mask=inside, other=0.0)
    else:
        here = row * O + lane
        if every is not None:
            whole = tl.load(every + here, mask=inside, other=0.0)
            past = (T - k).to(tl.int64) * O
            return whole * tl.load(geometric + past + lane, mask=inside, other=0.0)
        else:
            amount = tl.load(at + here, mask=inside, other=0.0)
            spike = tl.load(when + here, mask=inside, other=-1).to(tl.int32)
            rate = tl.load(log_decay + lane, mask=inside, other=0.0)
            out = _impulse(amount, spike, rate, k)
            if before is not None:
                amount = tl.load(before + here, mask=inside, other=0.0)
                out += _impulse(amount, tl.where(spike >= 1, spike - 1, -1), rate, k)
            return out


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
    """Add the adjoint at the times of all spikes of a unit to the gradient of its weights.

    The spikes of unit i are those from offsets[i] to offsets[i + 1]: times and samples (E,)
    int32, values (E,) or None. The adjoint is lam (T, n, O), whose samples count from the first
    of n; or in closed form every, or at, before and when (B, O), with log_decay = log2(beta)
    and geometric (T + 1, O) = 1 + beta + ... + beta^(k-1). grad_weight (N, O) is added to.
    """
    unit = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < O
    e = tl.load(offsets + unit)
    end = tl.load(offsets + unit + 1)
    total = tl.zeros((BLOCK,), STATE)
    while e < end:
        for u in tl.static_range(U):
            there = e + u < end
            k = tl.load(times + e + u, mask=there, other=0)
            row = tl.load(samples + e + u, mask=there, other=0).to(tl.int64)
            if lam is not None:
                row += k.to(tl.int64) * n
            added = _adjoint(
                lam,
                every,
                at,
                before,
                when,
                log_decay,
                geometric,
                row,
                k,
                T,
                O,
                lane,
                inside,
            )
            if values is not None:
                added *= tl.load(values + e + u, mask=there, other=0.0)
            total += tl.where(there, added, 0.0)
        e += U
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
    """Gradient to a spike at its step, and at the step before it, from a closed form.

    times, units and samples (E,) int32 of inputs that spike once; weight (N, O). grad_inputs
    (2, B, N), of which one program writes one spike.
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
        weights = tl.load(weight + unit * O + lane, mask=inside, other=0.0)
        now += weights * _adjoint(
            None, every, at, before, when, log_decay, geometric, row, k, T, O, lane, inside
        )
        late += weights * _adjoint(
            None, every, at, before, when, log_decay, geometric, row, previous, T, O, lane, inside
        )
    here = row * N + unit
    tl.store(grad_inputs + here, tl.sum(now, axis=0))
    earlier = tl.where(k > 0, tl.sum(late, axis=0), 0.0)
    tl.store(grad_inputs + tl.cast(B, tl.int64) * N + here, earlier)
