"""A convolution and its neurons from spike times: the forward pass.

A program owns a tile of neighboring neurons of one sample: ``PY`` x ``PX`` positions and ``CH``
channels of a group. Their membranes stay in registers. The program walks through the spikes that
reach its tile, in the order of their times, and reads each once. A spike adds one row of weights to
each position that it reaches; between the spikes every step is integrated as in ``neuron.py``, with
the same rounding. Currents are never written.

Why a walk, and not tensor-core products of one-hot times and weights: products multiply every tap
of every neuron at every step, the walk reads a tap once for each spike that it meets. By data
sheets, tensor cores do in the time of one addition of the walk about 30 products of three parts. So
products would pay below about 30 steps, where most inputs fire; for float32 alone, without the
crossing, and rounded in another order. The walk serves every type, length and rule.

The current of a neuron may be the maximum of a window of ``POOL_Y`` x ``POOL_X`` positions of the
convolution. A program then owns whole windows, and keeps one current for each of their members.

Spikes are loaded two turns of ``U`` spikes ahead, and their weights one turn ahead: a turn waits
for neither. Launch with ``enable_fp_fusion=False``.
"""

import triton
import triton.language as tl

from .conv_patch import add_patches, first_peak, load_patches, load_spikes, peak, repeat
from .membrane import advance


@triton.jit
def _parameter(parameter, group, position, positions, lane, mask, O, EACH: tl.constexpr, other):
    """A parameter of the neurons of a tile: (P, CH), or (1, CH) with one value for a channel."""
    if EACH:
        row = group * positions + position
        return tl.load(parameter + row[:, None] * O + lane[None, :], mask=mask, other=other)
    else:
        return tl.load(parameter + group * O + lane[None, :], mask=lane[None, :] < O, other=other)


@triton.jit
def _end_once_all_fired(first, mask, T):
    """The step at which a loop over time ends: T while a neuron is silent, else 0."""
    silent = tl.max(tl.max(tl.where(mask & (first >= T), 1, 0), axis=1), axis=0)
    return tl.where(silent > 0, T, 0)


@triton.jit
def _store_pair(out, here, one, other, size, mask):
    """Write (2, size), unless ``out`` is None."""
    if out is not None:
        tl.store(out + here, one, mask=mask)
        tl.store(out + size + here, other, mask=mask)


@triton.jit
def conv_first_spikes_kernel(
    offsets,
    times,
    channels,
    rows,
    columns,
    values,
    weight,
    bias,
    beta,
    threshold,
    spiked,
    first_spikes,
    mem,
    winner,
    crossing,
    sensitivity,
    peaks,
    T,
    O,
    groups,
    windows_y,
    windows_x,
    tiles_y,
    tiles_x,
    stride_y,
    stride_x,
    dilation_y,
    dilation_x,
    KH,
    KW,
    size,
    POOL_Y: tl.constexpr,
    POOL_X: tl.constexpr,
    EACH: tl.constexpr,
    RESET: tl.constexpr,
    STATE: tl.constexpr,
    PY: tl.constexpr,
    PX: tl.constexpr,
    CH: tl.constexpr,
    U: tl.constexpr,
):
    """First spikes, or the membrane of neurons whose spikes are known.

    The spikes of tile i, of a sample and group, are offsets[i] to offsets[i + 1] - 1: times,
    channels, rows and columns (E,) int32, values (E,) or None. weight (C, KH * KW, O), O channels
    of a group; bias (groups, O); beta (between 0 and 1) and threshold (groups, 1 or positions, O),
    with one value for each position where ``EACH``. Outputs, None where not wanted: first_spikes
    (B, groups, positions, O) int32, -1 for silent; crossing (2, ...) = V[t*-1], V[t*];
    sensitivity (2, ...), their derivatives by beta; peaks (...) int32 = t*. Of a silent neuron
    crossing is 0 and, with peaks, the maximum of V at the step in peaks.

    Where the first spikes are known, spiked replaces first_spikes. The output is then
    mem (T, B, groups, positions, O), with the reset that follows the spike. winner, of the same
    shape in uint8, is the first member of a window that has the maximum, at every step.

    ``size`` is the number of neurons of all samples.
    """
    index = tl.program_id(0)
    tile_x = index % tiles_x
    tile_y = index // tiles_x % tiles_y
    map_ = index // tiles_x // tiles_y  # of a sample and group
    group = map_ % groups
    p = tl.arange(0, PY * PX)
    y = tile_y * PY + p // PX
    x = tile_x * PX + p % PX
    exists = (y < windows_y) & (x < windows_x)
    position = y * windows_x + x
    positions = windows_y * windows_x
    lane = tl.program_id(1) * CH + tl.arange(0, CH)
    inside = lane < O
    mask = exists[:, None] & inside[None, :]
    # No spike reaches a neuron that does not exist.
    top = tl.where(exists, y * POOL_Y * stride_y, 1 << 30)
    tile = (top, x * POOL_X * stride_x, lane, inside, O)
    kernel = (KH, KW, stride_y, stride_x, dilation_y, dilation_x)

    decay = _parameter(beta, group, position, positions, lane, mask, O, EACH, 0.0)
    theta = _parameter(threshold, group, position, positions, lane, mask, O, EACH, 0.0)
    drive = tl.load(bias + group * O + lane, mask=inside, other=0.0)
    drive = tl.zeros((PY * PX, CH), STATE) + drive[None, :]
    here = map_.to(tl.int64) * positions * O + (position[:, None] * O + lane[None, :])

    first = tl.zeros((PY * PX, CH), tl.int32) + T
    if spiked is not None:
        first = tl.load(spiked + here, mask=mask, other=0)
        first = tl.where(first < 0, T, first)
    v = tl.zeros((PY * PX, CH), STATE)
    slope = v
    below = v
    above = v
    if peaks is not None:
        above += float("-inf")
    peak_step = tl.zeros((PY * PX, CH), tl.int32)
    slope_below = v
    slope_above = v
    currents = repeat(drive, POOL_Y * POOL_X)  # of step t, as far as its spikes have been added

    e = tl.load(offsets + index)
    end = tl.load(offsets + index + 1)
    spikes = load_spikes(times, channels, rows, columns, values, e, end, T, U)
    patches = load_patches(spikes, weight, tile, kernel, POOL_Y, POOL_X)
    when = spikes[0]
    spikes = load_spikes(times, channels, rows, columns, values, e + U, end, T, U)
    t = 0
    stop = T
    while t < stop:
        ahead = load_patches(spikes, weight, tile, kernel, POOL_Y, POOL_X)
        when_ahead = spikes[0]
        spikes = load_spikes(times, channels, rows, columns, values, e + 2 * U, end, T, U)
        for u in tl.static_range(U):
            now = when[u]
            while t < now:
                slope_before = slope
                current = peak(currents)
                before, v, slope = advance(
                    v, slope, current, decay, theta, first, t, sensitivity, RESET
                )
                if first_spikes is not None:
                    fire = (v > theta) & (first >= T)
                    first = tl.where(fire, t, first)
                    kept = fire
                    if peaks is not None:
                        kept = (v > above) & (first >= t)  # a spike is the highest step so far
                        peak_step = tl.where(kept, t, peak_step)
                    if crossing is not None:
                        below = tl.where(fire, before, below)
                        above = tl.where(kept, v, above)
                    if sensitivity is not None:
                        slope_below = tl.where(fire, slope_before, slope_below)
                        slope_above = tl.where(kept, slope, slope_above)
                row = tl.cast(t, tl.int64) * size
                if mem is not None:
                    tl.store(mem + row + here, v, mask=mask)
                if winner is not None:
                    tl.store(winner + row + here, first_peak(currents).to(tl.uint8), mask=mask)
                currents = repeat(drive, POOL_Y * POOL_X)
                t += 1
            currents = add_patches(currents, patches, u)
        patches = ahead
        when = when_ahead
        e += U
        if first_spikes is not None:
            stop = _end_once_all_fired(first, mask, T)

    if first_spikes is not None:
        tl.store(first_spikes + here, tl.where(first < T, first, -1), mask=mask)
    if peaks is not None:
        tl.store(peaks + here, peak_step, mask=mask)
    _store_pair(crossing, here, below, above, size, mask)
    _store_pair(sensitivity, here, slope_below, slope_above, size, mask)
