"""A convolution and its neurons from spike times: gradients of weights and spikes.

Both kernels read the adjoint of the neurons that a spike reaches, through every tap of the kernel,
at the step of the spike. The adjoint is one of two:

- lam (T, n, groups, positions, O), of n samples;
- at (n, groups, positions, O), a gradient to V at the step when (int32), and before, one to V at
  the step before it, with log_decay = log2(beta).

Where the neurons read the maximum of windows, winner (T, n, groups, positions, O) in uint8 is the
member of each window that the adjoint goes to, as ``conv_forward.py`` writes it.

    conv_backward_weight_kernel   sums over the spikes of a channel
    conv_backward_input_kernel    sums over the taps and channels that a spike reaches

No addition is atomic, so that training is deterministic.
"""

import triton
import triton.language as tl

from .conv_patch import load_spikes, reached_neurons
from .membrane import impulse


@triton.jit
def _rates(log_decay, patch, group, O, EACH: tl.constexpr):
    """log2(beta) of the channels, if it is the same for all their neurons: a row for each tap."""
    if log_decay is None or EACH:
        return None
    else:
        tap, lane, inside = patch
        # In full, so that a thread loads the numbers that it needs.
        mask = (tap >= 0)[:, None] & inside[None, :]
        rows = group * O + tl.zeros_like(tap)
        return tl.load(log_decay + rows[:, None] + lane[None, :], mask=mask, other=0.0)


@triton.jit
def _load_adjoint(adjoint, spike, patch, geometry, EACH: tl.constexpr):
    """What decides the adjoint of the neurons that a spike reaches, for :func:`_lam`.

    ``patch`` has taps (TAPS,) and channels (CH,), and whether the channels exist.
    """
    lam, at, before, when, log_decay, winner = adjoint
    k, sample, row, column = spike
    tap, lane, inside = patch
    kernel, windows, group, per_sample, size, O = geometry
    neuron, member, reached = reached_neurons(row, column, tap, kernel, windows)
    mask = reached[:, None] & inside[None, :]
    of_sample = (group * (windows[0] * windows[1]) + neuron)[:, None] * O + lane[None, :]
    cell = sample.to(tl.int64) * per_sample + of_sample
    now = k.to(tl.int64) * size + cell
    if lam is not None:
        out = (tl.load(lam + now, mask=mask, other=0.0),)
    else:
        out = (
            tl.load(at + cell, mask=mask, other=0.0),
            tl.load(before + cell, mask=mask, other=0.0),
            tl.load(when + cell, mask=mask, other=-1),
        )
        if EACH:
            out = out + (tl.load(log_decay + of_sample, mask=mask, other=0.0),)
    if winner is not None:
        out = out + (member, tl.load(winner + now, mask=mask, other=0))
    return out


@triton.jit
def _lam(loaded, start: tl.constexpr, k, rates, winner, EACH: tl.constexpr):
    """lam[k] of what :func:`_load_adjoint` has loaded, from ``loaded[start]`` on.

    ``rates`` is log2(beta) of the channels, or None.
    """
    CLOSED: tl.constexpr = EACH or rates is not None
    if CLOSED:
        when = loaded[start + 2]
        earlier = tl.where(when >= 1, when - 1, -1)
        if EACH:
            rates = loaded[start + 3]
        out = impulse(loaded[start], when, rates, k)
        out += impulse(loaded[start + 1], earlier, rates, k)
    else:
        out = loaded[start]
    if winner is not None:
        # Where another member of the window has the maximum, the adjoint passes the spike by.
        last: tl.constexpr = start + (3 + EACH if CLOSED else 1)
        out = tl.where(loaded[last + 1] == loaded[last][:, None], out, 0.0)
    return out


@triton.jit
def _load_adjoints(adjoint, spikes, patch, geometry, EACH: tl.constexpr):
    """:func:`_load_adjoint` for each of some spikes, one after the other."""
    k, sample, row, column, _ = spikes
    found = ()
    for u in tl.static_range(len(k)):
        spike = (k[u], sample[u], row[u], column[u])
        found = found + _load_adjoint(adjoint, spike, patch, geometry, EACH)
    return found


@triton.jit
def conv_backward_weight_kernel(
    offsets,
    times,
    samples,
    rows,
    columns,
    values,
    lam,
    at,
    before,
    when,
    log_decay,
    winner,
    grad_weight,
    T,
    C,
    O,
    group_size,
    windows_y,
    windows_x,
    stride_y,
    stride_x,
    dilation_y,
    dilation_x,
    KH,
    KW,
    per_sample,
    size,
    parts,
    POOL_Y: tl.constexpr,
    POOL_X: tl.constexpr,
    EACH: tl.constexpr,
    STATE: tl.constexpr,
    TAPS: tl.constexpr,
    CH: tl.constexpr,
    U: tl.constexpr,
):
    """The gradient of the weights by a part of the spikes of each channel.

    The spikes of channel c are offsets[c] to offsets[c + 1] - 1: times, samples, rows and columns
    (E,) int32, values (E,) or None. A channel has ``parts`` programs. Each program
    reads a part of the spikes. Output: grad_weight (parts, C, KH * KW, O), which the caller sums.
    """
    channel = tl.program_id(0) % C
    part = tl.program_id(0) // C
    group = channel // group_size
    tap = tl.program_id(1) * TAPS + tl.arange(0, TAPS)
    lane = tl.program_id(2) * CH + tl.arange(0, CH)
    inside = lane < O
    patch = (tap, lane, inside)
    kernel = (KH, KW, stride_y, stride_x, dilation_y, dilation_x)
    geometry = (kernel, (windows_y, windows_x, POOL_Y, POOL_X), group, per_sample, size, O)
    adjoint = (lam, at, before, when, log_decay, winner)
    rates = _rates(log_decay, patch, group, O, EACH)
    low = tl.load(offsets + channel)
    count = tl.load(offsets + channel + 1) - low
    e = low + count * part // parts
    end = low + count * (part + 1) // parts
    total = tl.zeros((TAPS, CH), STATE)
    spikes = load_spikes(times, samples, rows, columns, values, e, end, T, U)
    found = _load_adjoints(adjoint, spikes, patch, geometry, EACH)
    after = load_spikes(times, samples, rows, columns, values, e + U, end, T, U)
    while e < end:
        later = load_spikes(times, samples, rows, columns, values, e + 2 * U, end, T, U)
        ahead = _load_adjoints(adjoint, after, patch, geometry, EACH)
        k, _, _, _, height = spikes
        spikes = after
        after = later
        for u in tl.static_range(U):
            added = _lam(found, u * (len(found) // U), k[u], rates, winner, EACH)
            if values is not None:
                added *= height[u]
            total += added
        found = ahead
        e += U
    here = ((part.to(tl.int64) * C + channel) * (KH * KW) + tap)[:, None] * O + lane[None, :]
    tl.store(grad_weight + here, total, mask=(tap < KH * KW)[:, None] & inside[None, :])


@triton.jit
def _load_block(
    block, spike, channel, adjoint, weight, geometry,
    EACH: tl.constexpr, TAPS: tl.constexpr, CH: tl.constexpr,
):  # fmt: skip
    """The weights of one block of taps and channels, and what decides the adjoint there.

    The adjoint one step before the spike is loaded too where its winner may be another.
    """
    kernel, _, group, _, _, O = geometry
    blocks = tl.cdiv(O, CH)
    lane = block % blocks * CH + tl.arange(0, CH)
    tap = block // blocks * TAPS + tl.arange(0, TAPS)
    inside = lane < O
    taps = kernel[0] * kernel[1]
    here = (channel * taps + tap)[:, None] * O + lane[None, :]
    out = (tl.load(weight + here, mask=(tap < taps)[:, None] & inside[None, :], other=0.0),)
    patch = (tap, lane, inside)
    if not EACH:
        out = out + (_rates(adjoint[4], patch, group, O, EACH),)
    out = out + _load_adjoint(adjoint, spike, patch, geometry, EACH)
    if adjoint[5] is not None:
        k, sample, row, column = spike
        earlier = (tl.maximum(k - 1, 0), sample, row, column)
        out = out + _load_adjoint(adjoint, earlier, patch, geometry, EACH)
    return out


@triton.jit
def conv_backward_input_kernel(
    times,
    channels,
    samples,
    rows,
    columns,
    units,
    weight,
    at,
    before,
    when,
    log_decay,
    winner,
    grad_inputs,
    O,
    group_size,
    windows_y,
    windows_x,
    stride_y,
    stride_x,
    dilation_y,
    dilation_x,
    KH,
    KW,
    per_sample,
    size,
    num_units,
    inputs,
    POOL_Y: tl.constexpr,
    POOL_X: tl.constexpr,
    EACH: tl.constexpr,
    STATE: tl.constexpr,
    TAPS: tl.constexpr,
    CH: tl.constexpr,
):
    """Gradient to a spike at its step, and at the step before it, from a closed form.

    times, channels, samples, rows, columns and units (E,) int32 of units that spike once;
    weight (C, KH * KW, O). Output: grad_inputs (2, n, num_units) of ``inputs`` = n * num_units
    units. One program writes the two values of one spike.
    """
    e = tl.program_id(0)
    k = tl.load(times + e)
    channel = tl.load(channels + e)
    sample = tl.load(samples + e)
    row = tl.load(rows + e)
    column = tl.load(columns + e)
    group = channel // group_size
    kernel = (KH, KW, stride_y, stride_x, dilation_y, dilation_x)
    geometry = (kernel, (windows_y, windows_x, POOL_Y, POOL_X), group, per_sample, size, O)
    adjoint = (None, at, before, when, log_decay, winner)
    spike = (k, sample, row, column)
    now = tl.zeros((TAPS, CH), STATE)
    late = tl.zeros((TAPS, CH), STATE)
    found = _load_block(0, spike, channel, adjoint, weight, geometry, EACH, TAPS, CH)
    for block in range(1, tl.cdiv(KH * KW, TAPS) * tl.cdiv(O, CH) + 1):
        ahead = _load_block(block, spike, channel, adjoint, weight, geometry, EACH, TAPS, CH)
        rates = None if EACH else found[1]
        start: tl.constexpr = 1 if EACH else 2
        again: tl.constexpr = start if winner is None else start + (len(found) - start) // 2
        now += found[0] * _lam(found, start, k, rates, winner, EACH)
        late += found[0] * _lam(found, again, tl.maximum(k - 1, 0), rates, winner, EACH)
        found = ahead
    here = sample.to(tl.int64) * num_units + tl.load(units + e)
    tl.store(grad_inputs + here, tl.sum(tl.sum(now, axis=1), axis=0))
    earlier = tl.where(k > 0, tl.sum(tl.sum(late, axis=1), axis=0), 0.0)
    tl.store(grad_inputs + inputs + here, earlier)
