"""Plain torch: any device, any dtype, nothing to install or compile.

The time axis is walked in blocks of neighbouring neurons that stay in the cache. What
needs no order in time (the surrogate, the gate of a rule, the spikes) is done on a whole
block at once; per step only the recurrence remains.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..surrogate import Surrogate
from .buffers import (
    ForwardOutputs,
    InputGradients,
    Neuron,
    OutputGradients,
    ReadoutOutputs,
    Saved,
    state_dtype,
)
from .memory import empty

# Neurons per block on a CPU: one row of float32 is 64 KB, so that the rows of a step stay
# in L2. With several threads torch splits an operation from 32768 elements up.
_BLOCK_SINGLE, _BLOCK_PER_THREAD = 16384, 32768


def _blocks(lanes: int, device: torch.device) -> list[slice]:
    size = lanes
    if device.type == "cpu":
        threads = torch.get_num_threads()
        size = _BLOCK_SINGLE if threads == 1 else _BLOCK_PER_THREAD * threads
    return [slice(start, min(start + size, lanes)) for start in range(0, lanes, size)]


def _workspace(
    steps: int, blocks: list[slice], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """(T, n) work space for each block, all of it one tensor: fresh ones are page faults."""
    work = empty((steps, blocks[0].stop), dtype=dtype, device=device)
    return [work[:, : block.stop - block.start] for block in blocks]


def _lanes(parameter: Tensor, lanes: int) -> Tensor:
    """A parameter (P,) as one value per lane (M,), or (1,) as it is."""
    return parameter if parameter.numel() == 1 else parameter.repeat(lanes // parameter.numel())


def _part(parameter: Tensor, block: slice) -> Tensor:
    return parameter if parameter.numel() == 1 else parameter[block]


def _start(mem: Tensor | None, block: slice, like: Tensor, dtype: torch.dtype) -> Tensor:
    """The membrane before the first step."""
    if mem is None:
        return torch.zeros(block.stop - block.start, dtype=dtype, device=like.device)
    return mem[block].to(dtype)


def _integrate(
    rows: Tensor, beta: Tensor, theta: Tensor, v_0: Tensor, reset: str, out: Tensor
) -> Tensor:
    """Integrate ``rows`` (T, n) into ``out`` (T, n); returns the first spike times, T if silent."""
    silent = torch.ones_like(v_0, dtype=torch.bool)
    below = torch.empty_like(silent)
    times = torch.zeros_like(v_0, dtype=torch.int32)
    # An infinite threshold is never crossed, and inf * 0 must not reach the membrane.
    drop = theta.masked_fill(theta == torch.inf, 0.0)
    fired = None  # neurons whose spike was one step ago
    before = v_0
    for x, v in zip(rows.unbind(0), out.unbind(0), strict=True):
        if reset == "zero" and fired is not None:
            before = before.masked_fill(fired, 0.0)
        torch.mul(before, beta, out=v)
        v.add_(x)
        if reset == "subtract" and fired is not None:
            v.sub_(torch.mul(drop, fired))
        torch.gt(v, theta, out=below).logical_not_()  # not `<=`: NaN does not fire
        if reset != "none":
            fired = silent & ~below
        silent.logical_and_(below)
        times.add_(silent)
        before = v
    return times.long()


def leaky_forward(current: Tensor, neuron: Neuron, out: ForwardOutputs) -> None:
    steps, lanes = current.shape
    dtype, device = state_dtype(current.dtype), current.device
    beta = _lanes(neuron.beta.clamp(0, 1), lanes)
    theta = _lanes(neuron.threshold, lanes)
    height = _lanes(neuron.graded_spikes_factor, lanes)
    blocks = _blocks(lanes, device)
    if out.mem is not None and out.mem.dtype == dtype:
        mems = [out.mem[:, block] for block in blocks]
    else:
        mems = _workspace(steps, blocks, dtype, device)
    for block, mem in zip(blocks, mems, strict=True):
        rows = current[:, block].to(dtype)
        v_0 = _start(neuron.mem, block, current, dtype)
        times = _integrate(rows, _part(beta, block), _part(theta, block), v_0, neuron.reset, mem)
        silent = times == steps
        out.times[block] = times.masked_fill(silent, -1)
        at = times.clamp(max=steps - 1)[None]
        if out.spikes is not None:
            peak = _part(height, block).expand_as(times).masked_fill(silent, 0.0)
            spikes = out.spikes[:, block]
            spikes.zero_().scatter_(0, at, peak[None].to(spikes.dtype))
        if out.crossing is not None:
            below = torch.where(at > 0, mem.gather(0, (at - 1).clamp(min=0)), v_0[None])
            pair = torch.cat((below, mem.gather(0, at)))
            out.crossing[:, block] = pair.masked_fill(silent, 0.0)
        if out.final is not None:
            out.final[block] = mem[-1]
        if out.mem is not None and out.mem.dtype != dtype:
            out.mem[:, block] = mem


def leaky_backward(
    steps: int,
    dtype: torch.dtype,
    saved: Saved,
    neuron: Neuron,
    times: Tensor,
    grads: OutputGradients,
    rule: str,
    surrogate: Surrogate,
    out: InputGradients,
) -> None:
    lanes, device = times.numel(), times.device
    state = state_dtype(dtype)
    clamped = neuron.beta.clamp(0, 1)
    active = _lanes(clamped == neuron.beta, lanes)
    beta, theta = _lanes(clamped, lanes), _lanes(neuron.threshold, lanes)
    height = _lanes(neuron.graded_spikes_factor, lanes)
    step = torch.arange(steps, dtype=torch.int32, device=device)[:, None]
    blocks = _blocks(lanes, device)
    if out.current is not None and dtype == state:
        lams = [out.current[:, block] for block in blocks]
    else:
        lams = _workspace(steps, blocks, state, device)
    mems = slopes = lams
    if saved.recompute:
        mems = _workspace(steps, blocks, state, device)
    elif saved.tensor is not None:
        mems = [saved.tensor[:, block].to(state) for block in blocks]
    if grads.spikes is not None:
        slopes = _workspace(steps, blocks, state, device)
    for block, lam, mem, slope in zip(blocks, lams, mems, slopes, strict=True):
        decay, theta_ = _part(beta, block), _part(theta, block)
        v_0 = _start(neuron.mem, block, times, state)
        first = torch.where(times[block] < 0, steps, times[block])
        first_ = first.to(torch.int32)
        if saved.recompute and saved.tensor is not None:
            rows = saved.tensor[:, block].to(state)
            _integrate(rows, decay, theta_, v_0, neuron.reset, mem)

        # What enters the reverse scan at each step, then the scan in its place
        d_theta = torch.zeros_like(v_0)
        if grads.spikes is not None:
            _gate(grads.spikes[:, block], first_, step, rule, lam)
            torch.sub(mem, theta_, out=slope)
            lam.mul_(_slope(slope, surrogate)).mul_(_part(height, block))
            if out.threshold is not None:
                d_theta -= lam.sum(0)
        else:
            lam.zero_()
        if grads.mem is not None:
            lam += grads.mem[:, block]
        if grads.at is not None:
            assert grads.before is not None
            for gradient, index in ((grads.at, first), (grads.before, first - 1)):
                real = (index >= 0) & (index < steps)
                source = gradient[block].masked_fill(~real, 0.0)[None]
                lam.scatter_add_(0, index.clamp(0, steps - 1)[None], source)

        carry = torch.zeros_like(d_theta)
        after = carry
        for k in range(steps - 1, -1, -1):
            torch.mul(after, decay, out=carry)
            if neuron.reset == "zero":
                carry.masked_fill_(first_ == k, 0.0)
            after = lam[k].add_(carry)

        if out.current is not None and dtype != state:
            out.current[:, block] = lam
        if out.mem is not None:
            out.mem[block] = decay * lam[0]
        if out.beta is not None:
            product = lam[1:] * mem[:-1]
            if neuron.reset == "zero":
                product.masked_fill_(step[:-1] == first_, 0.0)
            total = product.sum(0) + lam[0] * v_0
            out.beta[block] = total.masked_fill_(~_part(active, block), 0.0)
        if out.threshold is not None:
            if neuron.reset == "subtract":
                following = (first + 1).clamp(max=steps - 1)[None]
                d_theta -= lam.gather(0, following)[0].masked_fill(first + 1 >= steps, 0.0)
            out.threshold[block] = d_theta


def _gate(g: Tensor, first: Tensor, step: Tensor, rule: str, out: Tensor) -> None:
    """dL/dc (T, n) from g = dL/dS (T, n), or (1, n) if it is the same at every step."""
    # A comparison into floats and a product take a third of the time of torch.where. (A
    # gradient that is not finite passes the gate as NaN, which other backends shut out.)
    if rule == "masked":
        torch.le(step, first, out=out).mul_(g)
        return
    if rule == "pre_spike":
        torch.lt(step, first, out=out).mul_(g)
    else:
        out.copy_(g)
    tail, ramp = torch.zeros_like(out[0]), torch.zeros_like(out[0])
    for row in reversed(out.unbind(0)):
        tail.add_(row)
        row.copy_(ramp.add_(tail))


def _slope(u: Tensor, surrogate: Surrogate) -> Tensor:
    """Derivative of a surrogate; overwrites ``u``."""
    name, a, b = surrogate
    if name == "atan":
        return u.mul_(math.pi / 2 * a).square_().add_(1.0).reciprocal_().mul_(a / 2)
    if name == "fast_sigmoid":
        return u.abs_().mul_(a).add_(1.0).square_().reciprocal_()
    if name == "sigmoid":
        e = u.mul_(a).abs_().neg_().exp_()  # cannot overflow; snnTorch's form gives inf/inf
        return a * e / (1.0 + e).square_()
    if name == "straight_through_estimator":
        return torch.ones_like(u)
    if name == "triangular":
        return torch.where(u < 0, a, -a)
    if name == "heaviside":
        return (u > 0).to(u.dtype)
    if name == "spike_rate_escape":
        return b * torch.exp(-a * (u - 1.0).abs_())
    if name == "SFS":
        return (u > b) / (a * u.abs() + 1.0).square_()
    if name == "LSO":
        return torch.where(u > 0, 1.0, a)
    raise AssertionError(f"no derivative for surrogate {name!r}")


def leaky_readout(
    current: Tensor, beta: Tensor, mem: Tensor | None, reduction: str, out: ReadoutOutputs
) -> None:
    steps, lanes = current.shape
    dtype = state_dtype(current.dtype)
    clamped = beta.clamp(0, 1)
    active = _lanes(clamped == beta, lanes)
    decays = _lanes(clamped, lanes)
    for block in _blocks(lanes, current.device):
        decay = _part(decays, block)
        v = _start(mem, block, current, dtype)
        slope = torch.zeros_like(v)
        value = torch.full_like(v, -torch.inf) if reduction == "max" else torch.zeros_like(v)
        value_slope = torch.zeros_like(v)
        index = torch.full_like(v, 0 if reduction == "max" else steps - 1, dtype=torch.int64)
        for t, x in enumerate(current[:, block].unbind(0)):
            if out.sensitivity is not None:
                slope = v + decay * slope
            v = decay * v + x
            if reduction == "sum":
                value += v
                value_slope += slope
            elif reduction == "max":
                better = (v > value) | (v.isnan() & ~value.isnan())
                value = torch.where(better, v, value)
                value_slope = torch.where(better, slope, value_slope)
                index.masked_fill_(better, t)
            else:
                value, value_slope = v, slope
        out.value[block] = value
        if out.step is not None:
            out.step[block] = index
        if out.sensitivity is not None:
            out.sensitivity[block] = value_slope.masked_fill(~_part(active, block), 0.0)
