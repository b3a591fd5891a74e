"""Plain torch: any device, any dtype, nothing to install or compile.

The time axis is walked in blocks of neighbouring neurons that stay in the cache. What
needs no order in time (the surrogate, the gate of a rule, the spikes) is done on a whole
block at once; per step only the recurrence remains.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._surrogate import Surrogate
from .._types import (
    ForwardOutputs,
    InputGradients,
    Neuron,
    OutputGradients,
    Saved,
    state_dtype,
)
from ..memory import empty
from ._blocks import cut_parameter, initial_state, per_neuron, split_blocks


def _workspace(
    num_steps: int, blocks: list[slice], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """(T, n) work space for each block, all of it one tensor: fresh ones are page faults."""
    work = empty((num_steps, blocks[0].stop), dtype=dtype, device=device)
    return [work[:, : block.stop - block.start] for block in blocks]


_PARAMETERS = ("beta", "threshold", "graded_spikes_factor", "alpha", "gain", "feedback")


def _spread(neuron: Neuron, lanes: int) -> Neuron:
    """With one value per lane where there is more than one, and decays clipped."""
    spread: dict[str, Any] = {
        name: None if (parameter := getattr(neuron, name)) is None else per_neuron(parameter, lanes)
        for name in _PARAMETERS
    }
    if neuron.clamp:
        spread["beta"] = spread["beta"].clamp(0, 1)
    if neuron.alpha is not None:
        spread["alpha"] = spread["alpha"].clamp(0, 1)
    return neuron._replace(**spread)


def _cut(neuron: Neuron, block: slice, like: Tensor, dtype: torch.dtype) -> Neuron:
    """One block of a neuron that was spread; its states start from zeros if not given."""
    cut: dict[str, Any] = {
        name: None
        if (parameter := getattr(neuron, name)) is None
        else cut_parameter(parameter, block)
        for name in _PARAMETERS
    }
    for name in ("mem", "syn", "inh"):
        cut[name] = initial_state(getattr(neuron, name), block, like, dtype)
    return neuron._replace(**cut)


def _integrate(
    rows: Tensor,
    neuron: Neuron,
    out: Tensor,
    syn: Tensor | None = None,
    inh: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Integrate ``rows`` (T, n) into ``out`` (T, n), synaptic currents into ``syn``, ``inh``.

    Returns the first spike times, T if silent, and the last states.
    """
    beta, theta, reset = neuron.beta, neuron.threshold, neuron.reset
    before, s, i = neuron.mem, neuron.syn, neuron.inh
    assert before is not None
    assert s is not None
    assert i is not None
    silent = torch.ones_like(before, dtype=torch.bool)
    below = torch.empty_like(silent)
    times = torch.zeros_like(before, dtype=torch.int32)
    feedback = None
    if neuron.feedback is not None:
        feedback = neuron.feedback * neuron.graded_spikes_factor
    fired = None  # neurons whose spike was one step ago
    for t, (x, v) in enumerate(zip(rows.unbind(0), out.unbind(0), strict=True)):
        held = i
        if neuron.alpha is not None:
            s = neuron.alpha * s + x
        if neuron.gain is not None:
            i = beta * i - x
            torch.mul(s + i, neuron.gain, out=v)
        else:
            if reset == "zero" and fired is not None:
                before = before.masked_fill(fired, 0.0)
            torch.mul(before, beta, out=v)
            v.add_(x if neuron.alpha is None else s)
        if fired is not None:
            if feedback is not None:
                v.add_(torch.mul(feedback, fired))
            if reset == "subtract" and neuron.gain is None:
                v.sub_(torch.where(fired, theta, 0.0))  # inf * 0 must not reach the membrane
            elif reset == "subtract":  # as snnTorch's Alpha defines it
                v.add_(torch.mul(held, fired))
                s = torch.where(fired, s - theta, s)
                i = i.masked_fill(fired, 0.0)
            elif reset == "clear":
                v.masked_fill_(fired, 0.0)
                if neuron.gain is not None:
                    s, i = s.masked_fill(fired, 0.0), i.masked_fill(fired, 0.0)
        torch.gt(v, theta, out=below).logical_not_()  # not `<=`: NaN does not fire
        if reset != "none" or feedback is not None:
            fired = silent & ~below
        silent.logical_and_(below)
        times.add_(silent)
        if syn is not None:
            syn[t] = s
        if inh is not None:
            inh[t] = i
        before = v
    states = 1 + (neuron.alpha is not None) + (neuron.gain is not None)
    return times.long(), [before, s, i][:states]


def neuron_forward(current: Tensor, neuron: Neuron, out: ForwardOutputs) -> None:
    num_steps, lanes = current.shape
    dtype, device = state_dtype(current.dtype), current.device
    neuron = _spread(neuron, lanes)
    blocks = split_blocks(lanes, device)
    if out.mem is not None and out.mem.dtype == dtype:
        mems = [out.mem[:, block] for block in blocks]
    else:
        mems = _workspace(num_steps, blocks, dtype, device)
    for block, mem in zip(blocks, mems, strict=True):
        part = _cut(neuron, block, current, dtype)
        times, states = _integrate(
            current[:, block].to(dtype),
            part,
            mem,
            None if out.syn is None else out.syn[:, block],
            None if out.inh is None else out.inh[:, block],
        )
        silent = times == num_steps
        out.times[block] = times.masked_fill(silent, -1)
        at = times.clamp(max=num_steps - 1)[None]
        if out.spikes is not None:
            peak = part.graded_spikes_factor.expand_as(times).masked_fill(silent, 0.0)
            spikes = out.spikes[:, block]
            spikes.zero_().scatter_(0, at, peak[None].to(spikes.dtype))
        if out.crossing is not None:
            assert part.mem is not None
            below = torch.where(at > 0, mem.gather(0, (at - 1).clamp(min=0)), part.mem[None])
            pair = torch.cat((below, mem.gather(0, at)))
            out.crossing[:, block] = pair.masked_fill(silent, 0.0)
        if out.final is not None:
            out.final[:, block] = torch.stack(states)
        if out.mem is not None and out.mem.dtype != dtype:
            out.mem[:, block] = mem


def neuron_backward(
    num_steps: int,
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
    given, neuron = neuron, _spread(neuron, lanes)
    active = neuron.beta == per_neuron(given.beta, lanes)
    active_alpha = active
    if given.alpha is not None and neuron.alpha is not None:
        active_alpha = neuron.alpha == per_neuron(given.alpha, lanes)
    step = torch.arange(num_steps, dtype=torch.int32, device=device)[:, None]
    through = rule != "none" and (grads.spikes is not None or neuron.feedback is not None)
    plain = neuron.alpha is None and neuron.feedback is None and neuron.reset != "clear"
    blocks = split_blocks(lanes, device)
    if out.current is not None and dtype == state:
        lams = [out.current[:, block] for block in blocks]
    else:
        lams = _workspace(num_steps, blocks, state, device)
    mems = slopes = lams
    if saved.recompute:
        mems = _workspace(num_steps, blocks, state, device)
    elif saved.tensor is not None:
        mems = [saved.tensor[:, block].to(state) for block in blocks]
    if through:
        slopes = _workspace(num_steps, blocks, state, device)
    for block, lam, mem, slope in zip(blocks, lams, mems, slopes, strict=True):
        part = _cut(neuron, block, times, state)
        first = torch.where(times[block] < 0, num_steps, times[block])
        first_ = first.to(torch.int32)
        if saved.recompute and saved.tensor is not None:
            _integrate(saved.tensor[:, block].to(state), part, mem)

        # What enters the reverse scan at each step, then the scan in its place
        d_theta = torch.zeros_like(first, dtype=state)
        if through:
            torch.sub(mem, part.threshold, out=slope)
            slope = _slope(slope, surrogate).mul_(part.graded_spikes_factor)
        if through and part.feedback is None:
            assert grads.spikes is not None
            _gate(grads.spikes[:, block], first_, step, rule, lam)
            lam.mul_(slope)
            if out.threshold is not None:
                d_theta -= lam.sum(0)
        else:
            lam.zero_()
        if grads.mem is not None:
            lam += grads.mem[:, block]
        if grads.at is not None:
            assert grads.before is not None
            for gradient, index in ((grads.at, first), (grads.before, first - 1)):
                real = (index >= 0) & (index < num_steps)
                source = gradient[block].masked_fill(~real, 0.0)[None]
                lam.scatter_add_(0, index.clamp(0, num_steps - 1)[None], source)

        into = InputGradients(
            None if out.current is None else out.current[:, block],
            *(None if tensor is None else tensor[block] for tensor in out[1:]),
        )
        if plain:
            _scan_leaky(lam, mem, part, first, d_theta, into)
        else:
            syn, inh, g, q, r = (
                None if rows is None else rows[:, block]
                for rows in (saved.syn, saved.inh, grads.spikes, grads.syn, grads.inh)
            )
            gate = slope if through else None
            _scan(lam, mem, gate, syn, inh, g, q, r, part, first, d_theta, rule, into)
        if into.current is not None and dtype != state:
            into.current.copy_(lam)
        if into.beta is not None:
            into.beta.masked_fill_(~cut_parameter(active, block), 0.0)
        if into.alpha is not None:
            into.alpha.masked_fill_(~cut_parameter(active_alpha, block), 0.0)
        if into.threshold is not None:
            into.threshold.copy_(d_theta)


def _scan_leaky(
    lam: Tensor, mem: Tensor, part: Neuron, first: Tensor, d_theta: Tensor, into: InputGradients
) -> None:
    """The reverse scan of a neuron without synaptic currents and feedback, in place.

    ``lam`` (T, n) comes in as what enters the scan at each step; ``d_theta`` is added to.
    """
    num_steps = lam.shape[0]
    assert part.mem is not None
    carry = torch.zeros_like(d_theta)
    after = carry
    for k in range(num_steps - 1, -1, -1):
        torch.mul(after, part.beta, out=carry)
        if part.reset == "zero":
            carry.masked_fill_(first == k, 0.0)
        after = lam[k].add_(carry)
    if into.mem is not None:
        into.mem.copy_(part.beta * lam[0])
    if into.beta is not None:
        product = lam[1:] * mem[:-1]
        if part.reset == "zero":
            step = torch.arange(num_steps - 1, device=first.device)[:, None]
            product.masked_fill_(step == first, 0.0)
        into.beta.copy_(product.sum(0) + lam[0] * part.mem)
    if into.threshold is not None and part.reset == "subtract":
        following = (first + 1).clamp(max=num_steps - 1)[None]
        d_theta -= lam.gather(0, following)[0].masked_fill(first + 1 >= num_steps, 0.0)


def _scan(
    lam: Tensor,
    mem: Tensor,
    slope: Tensor | None,
    syn: Tensor | None,
    inh: Tensor | None,
    grad_spikes: Tensor | None,
    grad_syn: Tensor | None,
    grad_inh: Tensor | None,
    part: Neuron,
    first: Tensor,
    d_theta: Tensor,
    rule: str,
    into: InputGradients,
) -> None:
    """The reverse scan of any neuron; ``lam`` leaves it as the gradient to the current.

    With feedback, what passes the spikes depends on the scan, so that ``slope`` (T, n), the
    surrogate's derivative times the height of a spike, is gated here. See ``kernels/leaky.py``.
    """
    zeros = torch.zeros_like(d_theta)
    after, lam_s, lam_i = zeros, zeros, zeros
    tail, ramp = zeros, zeros
    d_beta, d_alpha, d_gain, d_feedback = zeros, zeros, zeros, zeros
    for k in range(lam.shape[0] - 1, -1, -1):
        reset_next, reset_now = first == k, first == k - 1
        entering = lam[k].clone()
        if part.feedback is not None:
            if slope is not None:
                g = after * part.feedback
                if grad_spikes is not None:
                    g = g + grad_spikes[k % grad_spikes.shape[0]]
                if rule == "masked":
                    g = g.masked_fill(first < k, 0.0)
                else:
                    if rule == "pre_spike":
                        g = g.masked_fill(first <= k, 0.0)
                    tail = tail + g
                    g = ramp = ramp + tail
                through = slope[k] * g
                d_theta -= through
                entering += through
            d_feedback = torch.where(reset_next, after, d_feedback)
        if part.gain is None:
            if part.reset == "subtract":
                d_theta -= after.masked_fill(~reset_next, 0.0)
            if into.beta is not None:
                d_beta = d_beta + after * mem[k]
            entering += part.beta * after
        if part.reset == "clear":
            entering.masked_fill_(reset_now, 0.0)
        if part.alpha is None:
            lam[k] = entering
        else:
            if into.alpha is not None:
                assert syn is not None
                d_alpha = d_alpha + lam_s * syn[k]
            if into.gain is not None:
                # What the gain multiplies at k+1; there the current cancels.
                assert syn is not None
                assert inh is not None
                d_gain = d_gain + after * (part.alpha * syn[k] + part.beta * inh[k])
            lam_s = part.alpha * lam_s
            if grad_syn is not None:
                lam_s = lam_s + grad_syn[k % grad_syn.shape[0]]
            if part.gain is None:
                lam_s = lam_s + entering
                lam[k] = lam_s
            else:
                if into.beta is not None:
                    assert inh is not None
                    d_beta = d_beta + lam_i * inh[k]
                lam_i = part.beta * lam_i
                if grad_inh is not None:
                    lam_i = lam_i + grad_inh[k % grad_inh.shape[0]]
                if part.reset == "subtract":
                    lam_i = torch.where(reset_next, lam_i + after, lam_i)
                    d_theta -= lam_s.masked_fill(~reset_now, 0.0)
                    lam_i = lam_i.masked_fill(reset_now, 0.0)
                lam_s = lam_s + part.gain * entering
                lam_i = lam_i + part.gain * entering
                if part.reset == "clear":
                    lam_s, lam_i = (x.masked_fill(reset_now, 0.0) for x in (lam_s, lam_i))
                lam[k] = lam_s - lam_i
        after = entering
    assert part.mem is not None
    results = {"feedback": d_feedback}
    if part.gain is None:
        results |= {"beta": d_beta + after * part.mem, "mem": part.beta * after}
    else:
        assert part.inh is not None
        results |= {"beta": d_beta + lam_i * part.inh, "inh": part.beta * lam_i}
    if part.alpha is not None:
        assert part.syn is not None
        results |= {"alpha": d_alpha + lam_s * part.syn, "syn": part.alpha * lam_s}
        if part.gain is not None:
            assert part.inh is not None
            both = part.alpha * part.syn + part.beta * part.inh
            results |= {"gain": d_gain + after * both}
    for name, value in results.items():
        target = getattr(into, name)
        if target is not None:
            target.copy_(value)


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
        return torch.where(u < 0, u.new_tensor(a), u.new_tensor(-a))
    if name == "heaviside":
        return (u > 0).to(u.dtype)
    if name == "spike_rate_escape":
        return b * torch.exp(-a * (u - 1.0).abs_())
    if name == "SFS":
        return (u > b) / (a * u.abs() + 1.0).square_()
    if name == "LSO":
        return torch.where(u > 0, u.new_tensor(1.0), u.new_tensor(a))
    raise AssertionError(f"no derivative for surrogate {name!r}")
