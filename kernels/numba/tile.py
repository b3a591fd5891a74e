"""A tile of neighbouring neurons of a linear layer, and what its spikes do in one step.

The width is a constant, so that the compiler unrolls the loops over a tile; a narrower layer is
padded. Between two steps with spikes the membrane is jumped over with tables of powers of beta.
"""

from .compiling import helper, inlined_helper

TILE = 128
JUMP = 64  # steps that the tables of powers reach


@helper
def tile_values(parameter, tile, other, out):
    """The lanes of one tile, ``other`` past the last."""
    for j in range(TILE):
        lane = tile * TILE + j
        out[j] = parameter[lane] if lane < parameter.shape[0] else other


@helper
def power_tables(b, power, geometric, rising):
    """beta^n, 1 + beta + ... + beta^(n-1), and the sum of those from 1 to n; n = 0 ... JUMP."""
    for j in range(TILE):
        power[0, j] = 1
        geometric[0, j] = 0
        rising[0, j] = 0
    for n in range(1, JUMP + 1):
        for j in range(TILE):
            power[n, j] = power[n - 1, j] * b[j]
            geometric[n, j] = geometric[n - 1, j] + power[n - 1, j]
            rising[n, j] = rising[n - 1, j] + geometric[n, j]


@helper
def power_slopes(power, d_power, d_geometric):
    """Derivatives of the first two tables by beta."""
    for j in range(TILE):
        d_power[0, j] = 0
        d_geometric[0, j] = 0
    for n in range(1, JUMP + 1):
        for j in range(TILE):
            d_power[n, j] = power.dtype.type(n) * power[n - 1, j]
            d_geometric[n, j] = d_geometric[n - 1, j] + d_power[n - 1, j]


@inlined_helper
def gather(e, end, now, times, units, values, weights, x):
    """Add the weights of all spikes of one step to the current; returns the next spike."""
    if values.shape[0] > 0:
        while e < end and times[e] == now:
            unit, value = units[e], values[e]
            for j in range(TILE):
                x[j] += value * weights[unit, j]
            e += 1
        return e
    while e + 3 < end and times[e + 3] == now:  # four at a time: x is read and written once
        one, two, three, four = units[e], units[e + 1], units[e + 2], units[e + 3]
        for j in range(TILE):
            u = x[j] + weights[one, j]
            u = u + weights[two, j]
            u = u + weights[three, j]
            x[j] = u + weights[four, j]
        e += 4
    while e < end and times[e] == now:
        unit = units[e]
        for j in range(TILE):
            x[j] += weights[unit, j]
        e += 1
    return e


@inlined_helper
def scatter(e, begin, now, times, units, values, lam, gradient):
    """Add the adjoint to the gradient of the weights of all spikes of one step, going back."""
    while e >= begin and times[e] == now:
        unit = units[e]
        if values.shape[0] > 0:
            value = values[e]
            for j in range(TILE):
                gradient[unit, j] += value * lam[j]
        else:
            for j in range(TILE):
                gradient[unit, j] += lam[j]
        e -= 1
    return e


@inlined_helper
def jump(gap, v, drive, power, geometric):
    """The membrane ``gap`` steps of constant current later."""
    for j in range(TILE):
        v[j] = power[gap, j] * v[j] + geometric[gap, j] * drive[j]


@inlined_helper
def jump_slope(gap, p, v, drive, power, d_power, d_geometric):
    """Its derivative by beta; before :func:`jump`, whose ``v`` it reads."""
    for j in range(TILE):
        p[j] = power[gap, j] * p[j] + d_power[gap, j] * v[j] + d_geometric[gap, j] * drive[j]


@inlined_helper
def copy_row(source, target):
    for j in range(TILE):
        target[j] = source[j]
