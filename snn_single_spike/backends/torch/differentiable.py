"""The reverse scan in torch operators that autograd can differentiate, for second derivatives.

The gradients equal those of ``neuron_backward``. Spike times are constants: a second derivative
follows the derivative s'(V - theta) of the surrogate, and not the step of the spike.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor

from .._decay import clip_decay
from .._surrogate import Surrogate
from .._types import PARAMETERS, STATES, Neuron, OutputGradients, Saved
from ._scan import History, Rows, Scan, add_direct_gradients
from .surrogate import surrogate_slope


def gated(grad: Tensor, times: Tensor, rule: str) -> Tensor:
    """dL/dc (T, ...) from dL/dS (T, ...), by a gradient rule. ``times`` is -1 for no spike."""
    num_steps = grad.shape[0]
    first = torch.where(times < 0, num_steps, times)
    step = torch.arange(num_steps, device=grad.device).view(-1, *[1] * times.dim())
    if rule == "masked":
        return torch.where(step <= first, grad, 0.0)
    wide = grad.to(torch.float32 if grad.dtype != torch.float64 else grad.dtype)
    if rule == "pre_spike":
        wide = torch.where(step < first, wide, 0.0)
    return wide.flip(0).cumsum(0).cumsum(0).flip(0)


def _spread(neuron: Neuron, like: Tensor) -> Neuron:
    """Parameters and initial states as one value for each neuron and sample, decays clipped."""
    new: dict[str, Any] = {}
    for name in PARAMETERS:
        value = getattr(neuron, name)
        if value is not None:
            if name == "alpha" or (name == "beta" and neuron.clamp):
                value = clip_decay(value)
            copies = len(like) // len(value) if len(value) else 0
            new[name] = value.repeat(copies)
    for name in STATES:
        state = getattr(neuron, name)
        new[name] = torch.zeros_like(like) if state is None else state.to(like.dtype)
    return neuron._replace(**new)


def neuron_backward(
    num_steps: int,
    saved: Saved,
    neuron: Neuron,
    times: Tensor,
    grads: OutputGradients,
    rule: str,
    surrogate: Surrogate | None,
    needs: Container[str],
) -> tuple[dict[str, Tensor], Tensor]:
    """The gradients by names of ``SCANNED``, and the adjoint (T, M) of the membrane one step later.

    ``saved`` has the membrane and the synaptic currents, where the gradients depend on them. A
    gradient that is not in ``needs`` may be wrong.
    """
    state, neurons = neuron.beta.dtype, len(times)
    zeros = torch.zeros(neurons, dtype=state, device=times.device)
    part = _spread(neuron, zeros)
    first = torch.where(times < 0, num_steps, times)

    def rows(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(state).expand(num_steps, neurons)

    grad_spikes, slope, mem = rows(grads.grad_spikes), None, saved.saved
    mem = zeros.expand(num_steps, neurons) if mem is None else mem.to(state)
    through_spikes = rule != "none" and surrogate is not None
    if through_spikes and (grad_spikes is not None or neuron.feedback is not None):
        assert surrogate is not None
        slope = surrogate_slope(mem - part.threshold, surrogate) * part.graded_spikes_factor
    past = History.of(part, first, mem, saved.phase)
    direct, d_theta = torch.zeros_like(mem), zeros
    if slope is not None and grad_spikes is not None and neuron.feedback is None:
        if past.spikes is None:
            through = slope * gated(grad_spikes, times, rule)
        else:
            through = slope * past.gated(grad_spikes)
        direct, d_theta = direct + through, -through.sum(0)
    add_direct_gradients(direct, first, slice(None), grads)
    syn, inh, q, r = (rows(x) for x in (saved.syn, saved.inh, grads.grad_syn, grads.grad_inh))
    scan = Scan(Rows(mem, slope, syn, inh, grad_spikes, q, r), part, past, rule, needs)
    adjoints = [(to_mem, to_current) for _, to_mem, to_current in scan.run(direct)][::-1]
    found = scan.gradients()
    found["threshold"] = found["threshold"] + d_theta
    for name in ("beta", "alpha"):
        decay = getattr(neuron, name)
        if name in found and (name == "alpha" or neuron.clamp):
            outside = (decay != decay.detach().clamp(0.0, 1.0)).expand(len(decay))
            outside = outside.repeat(neurons // len(decay))
            found[name] = found[name].masked_fill(outside, 0.0)
    found["current"] = torch.stack([to_current for _, to_current in adjoints])
    after = torch.stack([*(to_mem for to_mem, _ in adjoints[1:]), zeros])
    return found, after
