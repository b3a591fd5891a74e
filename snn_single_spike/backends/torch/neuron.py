"""A layer of neurons in plain torch.

The functions walk the time axis for blocks of neighboring neurons that stay in the cache. The
surrogate, the gradient rule and the spikes need no order in time, and are computed on a whole block
at once. Only the recurrence is computed step by step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._surrogate import Surrogate
from .._types import (
    RESET_NOW,
    SPIKED,
    ForwardOutputs,
    InputGradients,
    Neuron,
    OutputGradients,
    Saved,
    state_dtype,
)
from ._blocks import cut, per_neuron, split_blocks, spread, workspace
from ._scan import History, Rows, Scan, add_direct_gradients, gate, scan_leaky
from .surrogate import surrogate_slope


def _integrate(
    rows: Tensor,
    neuron: Neuron,
    out: Tensor,
    syn: Tensor | None = None,
    inh: Tensor | None = None,
    phase: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Integrate ``rows`` (T, n) into ``out``, ``syn``, ``inh`` and ``phase``, (T, n) each.

    Returns the spike times and the states of the last step. Spike times are those of the first
    spikes, T for a silent neuron; with ``refractory``, those of the last spikes. A refractory
    period needs ``phase``.
    """
    beta, theta, reset = neuron.beta, neuron.threshold, neuron.reset
    before, s, i = neuron.mem_0, neuron.syn_0, neuron.inh_0
    assert before is not None
    assert s is not None
    assert i is not None
    silent = torch.ones_like(before, dtype=torch.bool)
    below = torch.empty_like(silent)
    times = torch.zeros_like(before, dtype=torch.int32)
    feedback = None
    if neuron.feedback is not None:
        feedback = neuron.feedback * neuron.graded_spikes_factor
    fired = None  # neurons that spiked one step before
    last = neuron.last_0
    if last is not None:
        fired = last == -1
    for t, (x, v) in enumerate(zip(rows.unbind(0), out.unbind(0), strict=True)):
        held = i
        if neuron.alpha is not None:
            s = neuron.alpha * s + x
        if neuron.gain is not None:
            i = beta * i - x
            torch.mul(s + i, neuron.gain, out=v)
        else:
            if reset == "zero_before" and fired is not None:
                before = before.masked_fill(fired, 0.0)
            torch.mul(before, beta, out=v)
            v.add_(x if neuron.alpha is None else s)
        if fired is not None:
            if feedback is not None:
                v.add_(torch.mul(feedback, fired))
            if reset == "subtract" and neuron.gain is None:
                v.sub_(torch.where(fired, theta, 0.0))  # inf * 0 must not reach the membrane
            elif reset == "subtract":  # as in snnTorch's Alpha
                v.add_(torch.mul(held, fired))
                s = torch.where(fired, s - theta, s)
                i = i.masked_fill(fired, 0.0)
            elif reset == "zero_after":
                v.masked_fill_(fired, 0.0)
                if neuron.gain is not None:
                    s, i = s.masked_fill(fired, 0.0), i.masked_fill(fired, 0.0)
        before = v
        if syn is not None:
            syn[t] = s
        if inh is not None:
            inh[t] = i
        if last is not None and fired is not None:
            spiked = v > theta
            if phase is not None:
                assert neuron.refractory is not None
                free = t - last > neuron.refractory
                spiked &= free
                phase[t].copy_(free).add_(spiked, alpha=SPIKED).add_(fired, alpha=RESET_NOW)
            last, fired = last.masked_fill(spiked, t), spiked
            continue
        torch.gt(v, theta, out=below).logical_not_()  # not `<=`: NaN does not fire
        if reset != "none" or feedback is not None:
            fired = silent & ~below
        silent.logical_and_(below)
        times.add_(silent)
    return (times.long() if last is None else last), [before, s, i][: neuron.num_states]


def neuron_forward(current: Tensor, neuron: Neuron, out: ForwardOutputs) -> None:
    num_steps, neurons = current.shape
    dtype, device = state_dtype(current.dtype), current.device
    neuron = spread(neuron, neurons)
    blocks = split_blocks(neurons, device)
    if out.mem is not None and out.mem.dtype == dtype:
        mems = [out.mem[:, block] for block in blocks]
    else:
        mems = workspace(num_steps, blocks, dtype, device)
    phases: list[Tensor | None] = [None] * len(blocks)
    if out.phase is not None:
        phases = [out.phase[:, block] for block in blocks]
    elif neuron.refractory:
        phases = [*workspace(num_steps, blocks, torch.uint8, device)]
    for block, mem, phase in zip(blocks, mems, phases, strict=True):
        part = cut(neuron, block, device, dtype)
        times, states = _integrate(
            current[:, block].to(dtype),
            part,
            mem,
            None if out.syn is None else out.syn[:, block],
            None if out.inh is None else out.inh[:, block],
            phase,
        )
        silent = times == num_steps
        out.times[block] = times.masked_fill(silent, -1)
        at = times.clamp(max=num_steps - 1)[None]
        if out.spikes is not None and neuron.refractory is not None:
            spiked = mem > part.threshold if phase is None else phase & SPIKED != 0
            out.spikes[:, block] = torch.where(spiked, part.graded_spikes_factor, 0.0)
        elif out.spikes is not None:
            peak = part.graded_spikes_factor.expand_as(times).masked_fill(silent, 0.0)
            spikes = out.spikes[:, block]
            spikes.zero_().scatter_(0, at, peak[None].to(spikes.dtype))
        if out.crossing is not None:
            assert part.mem_0 is not None
            below = torch.where(at > 0, mem.gather(0, (at - 1).clamp(min=0)), part.mem_0[None])
            pair = torch.cat((below, mem.gather(0, at)))
            seen = mem.masked_fill(mem.isnan(), -torch.inf)  # as every other comparison with NaN
            pair[1] = torch.where(silent, seen.amax(0), pair[1])
            pair[0].masked_fill_(silent, 0.0)
            out.crossing[:, block] = pair
            assert out.when is not None
            out.when[block] = torch.where(silent, seen.argmax(0), times)
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
    neurons, device = times.numel(), times.device
    state = state_dtype(dtype)
    raw, neuron = neuron, spread(neuron, neurons)
    step = torch.arange(num_steps, dtype=torch.int32, device=device)[:, None]
    through = rule != "none" and (grads.grad_spikes is not None or neuron.feedback is not None)
    of_leaky = neuron.alpha is None and neuron.feedback is None and neuron.reset != "zero_after"
    blocks = split_blocks(neurons, device)
    if "current" in out and dtype == state:
        lams = [out["current"][:, block] for block in blocks]
    else:
        lams = workspace(num_steps, blocks, state, device)
    mems = slopes = lams
    if saved.recompute:
        mems = workspace(num_steps, blocks, state, device)
    elif saved.saved is not None:
        mems = [saved.saved[:, block].to(state) for block in blocks]
    if through:
        slopes = workspace(num_steps, blocks, state, device)
    for block, lam, mem, slope in zip(blocks, lams, mems, slopes, strict=True):
        part = cut(neuron, block, device, state)
        first = torch.where(times[block] < 0, num_steps, times[block])
        when = None if grads.when is None else grads.when[block]
        phase = None if saved.phase is None else saved.phase[:, block]
        if saved.recompute and saved.saved is not None:
            # The phases again, because their memory is saved; the membrane is not rounded here.
            phase = None
            if neuron.refractory:
                phase = torch.empty(mem.shape, dtype=torch.uint8, device=device)
            _integrate(saved.saved[:, block].to(state), part, mem, phase=phase)
        history = History.of(part, first, mem, phase)
        d_theta = torch.zeros_like(first, dtype=state)
        if through:
            torch.sub(mem, part.threshold, out=slope)
            slope = surrogate_slope(slope, surrogate).mul_(part.graded_spikes_factor)
        if through and part.feedback is None:
            assert grads.grad_spikes is not None
            if history.spikes is None:
                gate(grads.grad_spikes[:, block], first.to(torch.int32), step, rule, lam)
            else:
                lam.copy_(history.gated(grads.grad_spikes[:, block]))
            lam.mul_(slope)
            d_theta -= lam.sum(0)
        else:
            lam.zero_()
        add_direct_gradients(lam, when, block, grads)
        into = {name: x[:, block] if name == "current" else x[block] for name, x in out.items()}
        if of_leaky:
            scan_leaky(lam, mem, part, history, d_theta, into)
        else:
            syn, inh, g, q, r = (
                None if rows is None else rows[:, block]
                for rows in (
                    *(saved.syn, saved.inh),
                    *(grads.grad_spikes, grads.grad_syn, grads.grad_inh),
                )
            )
            rows = Rows(mem, slope if through else None, syn, inh, g, q, r)
            scan = Scan(rows, part, history, rule, into)
            for k, _, to_current in scan.run(lam):
                lam[k] = to_current
            found = scan.gradients()
            d_theta += found["threshold"]
            for name in (into.keys() & found.keys()) - {"threshold"}:
                into[name].copy_(found[name])
        if "threshold" in into:
            into["threshold"].copy_(d_theta)
        if "current" in into and dtype != state:
            into["current"].copy_(lam)
    for name, clamp in (("beta", raw.clamp), ("alpha", True)):
        decay, clipped = getattr(raw, name), getattr(neuron, name)
        if name in out and clamp:  # no gradient if the clamp is active
            out[name].masked_fill_(clipped != per_neuron(decay, neurons), 0.0)
