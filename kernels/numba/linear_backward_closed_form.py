"""Gradients of a linear layer whose adjoint has a closed form: steps without spikes are skipped."""

from .arguments import (
    ClosedFormAdjoint,
    ClosedFormGradients,
    Events,
    Layer,
    Part,
    Scratch,
    StepLists,
)
from .block import given
from .compiling import helper, inlined_helper, part_of_caller
from .simd import LANES, WORD, full, load, lowest_bit, store
from .tile import (
    JUMP,
    TILE,
    clear_row,
    copy_row,
    dot,
    jump,
    power_tables,
    scatter,
    scatter_split,
    tables_of,
    tile_values,
    width,
)

WORD_BITS = 6  # WORD is 2 to this power: numba divides in several instructions
FEW = 4  # steps whose lists are read without a look at their bits


@part_of_caller
def _list_by_step(row, neuron, n, lists, following):
    """Build a linked list of neurons for each impulse step: ``lists``, and ``following``."""
    for j in range(n):
        step = row[neuron + j]
        if step >= 0:
            following[j] = lists.heads[step]
            lists.heads[step] = j
            lists.busy[step >> WORD_BITS] |= 1 << (step & (WORD - 1))


@part_of_caller
def _clear_lists(row, neuron, n, lists):
    for j in range(n):
        step = row[neuron + j]
        if step >= 0:
            lists.heads[step] = -1
            lists.busy[step >> WORD_BITS] = 0


@part_of_caller
def _jump_back(gap, lam, total, b, h, has_every, tables):
    """The adjoint ``gap`` steps earlier, and its sum over these steps."""
    power, geometric, rising = tables.power, tables.geometric, tables.rising
    if has_every:
        for j in range(TILE):
            total[j] += b[j] * geometric[gap, j] * lam[j] + rising[gap, j] * h[j]
        jump(gap, lam, h, tables)
    else:
        for j in range(0, TILE, LANES):
            held, scale = load(lam, j), load(b, j) * load(geometric, (gap, j))
            store(total, j, load(total, j) + scale * held)
            store(lam, j, load(power, (gap, j)) * held)


@inlined_helper
def _jump_back_and_step(gap, found, lam, later, fresh, total, b, tables):
    """The adjoint ``gap`` steps earlier in ``later``, and one more step earlier in ``lam``.

    ``fresh`` are the impulses of the gap if some were ``found``, and is cleared.
    """
    power, geometric = tables.power, tables.geometric
    for j in range(0, TILE, LANES):
        held, decay, sum_ = load(lam, j), load(b, j), load(total, j)
        if gap > 0:
            sum_ = sum_ + decay * load(geometric, (gap, j)) * held
            held = load(power, (gap, j)) * held
        if found:
            held = held + load(fresh, j)
            store(fresh, j, full(fresh, 0))
        carried = decay * held
        store(later, j, held)
        store(lam, j, carried)
        store(total, j, sum_ + carried)


@inlined_helper
def _add_impulses(j, steps, impulses, neuron, lam, total, following, tables):
    """Add the impulses of the list of neurons from ``j`` on, carried ``steps`` back."""
    power, geometric = tables.power, tables.geometric
    while j >= 0:
        lam[j] += impulses[neuron + j] * power[steps, j]
        total[j] += impulses[neuron + j] * geometric[steps + 1, j]
        j = following[j]


@part_of_caller
def _impulses_between(
    low, high, stop, adjoint, sample, neuron, lists, lam, total, following, tables
):
    """Add the impulses of the steps ``low`` to ``high`` - 1 to the adjoint at ``stop``.

    Returns whether there may be any.
    """
    found, has_before = False, given(adjoint.before)
    at = adjoint.at[sample]
    if high - low < FEW:
        for m in range(low, high):
            head = lists.heads[m]
            found |= head >= 0
            _add_impulses(head, m - stop, at, neuron, lam, total, following, tables)
            if has_before:
                head = lists.heads[m + 1]
                found |= head >= 0
                before = adjoint.before[sample]
                _add_impulses(head, m - stop, before, neuron, lam, total, following, tables)
        return found
    first, last = low >> WORD_BITS, high >> WORD_BITS
    for word in range(first, last + 1):
        bits = lists.busy[word]
        if word == first:
            bits &= -1 << (low & (WORD - 1))
        if word == last:
            bits &= (2 << (high & (WORD - 1))) - 1
        while bits:
            when, found = (word << WORD_BITS) + lowest_bit(bits), True
            bits &= bits - 1
            head = lists.heads[when]
            if has_before and when > low:
                before = adjoint.before[sample]
                _add_impulses(head, when - 1 - stop, before, neuron, lam, total, following, tables)
            if when < high:
                _add_impulses(head, when - stop, at, neuron, lam, total, following, tables)
    return found


@part_of_caller
def _inputs_before(e, end, step, size, events, weights, lam, grads):
    """Add the gradients at ``step`` - 1 of inputs that spike at ``step``: events after ``e``."""
    i = e + 1
    while i < end and events.times[i] == step:
        if not given(events.values) or events.values[i] != 0:
            unit = events.units[i]
            grads[unit] += dot(weights, unit, lam, size)
        i += 1


@part_of_caller
def _inputs_at(e, begin, step, size, events, weights, lam, grads):
    """Add the gradients at ``step`` of its inputs: the events up to ``e``. Returns the next one."""
    while e >= begin and events.times[e] == step:
        unit = events.units[e]
        grads[unit] += dot(weights, unit, lam, size)
        e -= 1
    return e


@part_of_caller
def _sample(
    sample, steps, neuron, n, events, weights, adjoint, b, h, lam, later, total, lists, following,
    tables, gradient, gradients,
):  # fmt: skip
    """Go back through the spikes of one sample.

    ``h`` is the impulse of every step; without one, the work space of impulses inside a gap.
    """
    begin, end = events.offsets[sample], events.offsets[sample + 1]
    has_every, has_at = given(adjoint.every), given(adjoint.at)
    inputs = gradients.inputs
    want_inputs, splits = given(inputs), given(events.late)
    size = (n + LANES - 1) // LANES * LANES  # of the tile without most of its padding
    if has_every:
        for j in range(n):
            h[j] = adjoint.every[sample, neuron + j]
    if has_at:
        _list_by_step(adjoint.when[sample], neuron, n, lists, following)
    clear_row(lam)
    e, t = end - 1, steps
    previous = steps  # the step of the last visited spikes
    while t > 0:
        now = events.times[e] if e >= begin else 0
        stop = now
        if want_inputs and previous < steps and previous > 0 and t == previous:
            stop = previous - 1
        if splits and has_every and e >= begin:
            if t > now + 1:
                stop = now + 1  # where the later part of the spikes arrives
            else:
                copy_row(lam, later)
        if splits and not has_every and e >= begin and t - now - 1 <= JUMP:
            found = False
            if has_at:
                found = _impulses_between(
                    now + 1, t, now + 1, adjoint, sample, neuron, lists, h, total, following,
                    tables,
                )  # fmt: skip
            _jump_back_and_step(t - now - 1, found, lam, later, h, total, b, tables)
            t = now + 1  # the impulses of the step are left
        else:
            stop = max(stop, t - JUMP)
            _jump_back(t - stop, lam, total, b, h, has_every, tables)
        if has_at:
            _impulses_between(
                stop, t, stop, adjoint, sample, neuron, lists, lam, total, following, tables
            )
        if want_inputs and previous == t and stop == t - 1:
            _inputs_before(e, end, previous, size, events, weights, lam, inputs[1, sample])
        t = stop
        if e >= begin and t == now:
            previous = now
            if want_inputs:
                e = _inputs_at(e, begin, now, size, events, weights, lam, inputs[0, sample])
            elif splits:
                e = scatter_split(
                    e, begin, now, events, weights, lam, later, gradient, gradients.late
                )
            else:
                e = scatter(e, begin, now, events, lam, gradient)
            if t == 0:
                break
    if has_at:
        _clear_lists(adjoint.when[sample], neuron, n, lists)


@helper
def linear_backward_closed_form_loop(
    scratch, lists, part, events, layer, num_steps, adjoint, gradients
):
    """Gradients of the weights and the bias from an adjoint in closed form, or to the inputs.

    ``lists`` is work space. For the gradients to inputs each input has at most one event. An event
    of value 0 is no spike, and needs no gradient at the step before.
    """
    scratch, part, events, layer = Scratch(*scratch), Part(*part), Events(*events), Layer(*layer)
    lists = StepLists(*lists)
    adjoint, gradients = ClosedFormAdjoint(*adjoint), ClosedFormGradients(*gradients)
    zero = layer.weight.dtype.type(0)
    rows = scratch.rows
    b, h, lam, total, later = rows[0], rows[1], rows[2], rows[3], rows[4]
    tables, following = tables_of(scratch), scratch.marks[0]
    clear_row(h)
    for tile in range(part.tile_low, part.tile_high):
        weights = layer.weight[tile]
        gradient = gradients.weight[tile] if given(gradients.weight) else weights
        neuron, n = tile * TILE, width(tile, layer.beta.shape[0])
        tile_values(layer.beta, tile, zero, b)
        power_tables(b, tables)
        clear_row(total)
        for sample in range(part.low, part.high):
            _sample(
                sample, num_steps, neuron, n, events, weights, adjoint, b, h, lam, later, total,
                lists, following, tables, gradient, gradients,
            )  # fmt: skip
        for j in range(n):
            gradients.bias[neuron + j] += total[j]
