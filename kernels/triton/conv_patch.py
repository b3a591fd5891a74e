"""What one spike does in a convolution, and what one window of neurons reads.

A spike is given by its step, its channel and its place: row and column of the unit, counted from
the first row and column that the kernel covers, padding included. The forward kernel asks which
tap of the weights reaches each neuron of its tile; the backward kernels ask which neuron each tap
reaches. The compiler removes a division by a dilation or a stride of 1.
"""

import triton
import triton.language as tl


@triton.jit
def load_spikes(times, owners, rows, columns, values, e, end, T, U: tl.constexpr):
    """Step, channel or sample (owner), row, column and height of the next ``U`` spikes.

    Past the last one a spike has the step T and a place that reaches no neuron.
    """
    when = ()
    owner = ()
    row = ()
    column = ()
    height = ()
    for u in tl.static_range(U):
        there = e + u < end
        when = when + (tl.load(times + e + u, mask=there, other=T),)
        owner = owner + (tl.load(owners + e + u, mask=there, other=0),)
        row = row + (tl.load(rows + e + u, mask=there, other=-1),)
        column = column + (tl.load(columns + e + u, mask=there, other=-1),)
        if values is not None:
            height = height + (tl.load(values + e + u, mask=there, other=0.0),)
    return when, owner, row, column, height


@triton.jit
def _tap(place, start, dilation, length):
    """The tap of the kernel through which a place reaches a neuron, and whether there is one."""
    away = place - start
    tap = away // dilation
    return tap, (away >= 0) & (tap < length) & (tap * dilation == away)


@triton.jit
def load_patches(spikes, weight, tile, kernel, POOL_Y: tl.constexpr, POOL_X: tl.constexpr):
    """The weights that each spike adds to each neuron, one tensor for each member of a window.

    ``tile`` has the first input row and column of each neuron (P,), its channels (CH,), whether
    they exist, and the number of channels. ``kernel`` has the size of the kernel, its strides and
    its dilations.
    """
    _, channel, row, column, height = spikes
    top, left, lane, inside, O = tile
    KH, KW, stride_y, stride_x, dilation_y, dilation_x = kernel
    patches = ()
    for u in tl.static_range(len(channel)):
        for m in tl.static_range(POOL_Y * POOL_X):
            y, in_y = _tap(row[u], top + m // POOL_X * stride_y, dilation_y, KH)
            x, in_x = _tap(column[u], left + m % POOL_X * stride_x, dilation_x, KW)
            tap = (channel[u] * KH + y) * KW + x
            reached = (in_y & in_x)[:, None] & inside[None, :]
            patch = tl.load(weight + tap[:, None] * O + lane[None, :], mask=reached, other=0.0)
            if len(height) > 0:
                patch = patch * height[u]
            patches = patches + (patch,)
    return patches


@triton.jit
def repeat(x, count: tl.constexpr):
    """``count`` times the same tensor."""
    out = ()
    for _ in tl.static_range(count):
        out = out + (x,)
    return out


@triton.jit
def add_patches(currents, patches, u: tl.constexpr):
    """Add the patches of spike ``u`` to the currents of the members of each window."""
    out = ()
    for m in tl.static_range(len(currents)):
        out = out + (currents[m] + patches[u * len(currents) + m],)
    return out


@triton.jit
def peak(currents):
    """The maximum over the members of each window; NaN stays NaN as in torch."""
    most = currents[0]
    for m in tl.static_range(1, len(currents)):
        most = tl.maximum(most, currents[m], propagate_nan=tl.PropagateNan.ALL)
    return most


@triton.jit
def first_peak(currents):
    """The first member of each window that has its maximum."""
    most = currents[0]
    winner = tl.zeros_like(most).to(tl.int32)
    for m in tl.static_range(1, len(currents)):
        larger = currents[m] > most
        winner = tl.where(larger, m, winner)
        most = tl.where(larger, currents[m], most)
    return winner


@triton.jit
def _output(place, tap, dilation, stride, length):
    """The output that a place reaches through a tap, and whether there is one."""
    away = place - tap * dilation
    output = away // stride
    return output, (away >= 0) & (output < length) & (output * stride == away)


@triton.jit
def reached_neurons(row, column, tap, kernel, windows):
    """The neuron of a channel that a spike reaches through each tap, and the member of its window.

    The third result says whether there is one. ``kernel`` is as in :func:`load_patches`;
    ``windows`` has the neurons in a column and in a row, and the size of a window.
    """
    KH, KW, stride_y, stride_x, dilation_y, dilation_x = kernel
    windows_y, windows_x, pool_y, pool_x = windows
    y, in_y = _output(row, tap // KW, dilation_y, stride_y, windows_y * pool_y)
    x, in_x = _output(column, tap % KW, dilation_x, stride_x, windows_x * pool_x)
    neuron = y // pool_y * windows_x + x // pool_x
    member = y % pool_y * pool_x + x % pool_x
    return neuron, member, in_y & in_x & (tap < KH * KW)
