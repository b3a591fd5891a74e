"""The gradients of the rule "spike_time": of the interpolated spike, and of a spike that is absent.

The membrane of a neuron that fires crosses the threshold between two steps. The membrane of a
silent neuron has a peak below the threshold.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..backends._compiling import is_batched, is_traced
from ..backends._surrogate import Surrogate
from ..backends.torch.surrogate import surrogate_slope

Slope = Surrogate | Callable[[Tensor], Tensor]
"""A surrogate, or a custom differentiable function of mem - threshold."""


_FEW = 1 << 13  # entries for which the calls take longer than the branches
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def select(mask: Tensor, chosen: Tensor, other: Tensor | float = 0.0) -> Tensor:
    """``torch.where`` with a mask of the shape of the result.

    On a CPU torch.where branches on each entry. Whether a neuron fires cannot be predicted, so the
    branch takes longer than all arithmetic around it. Operations on bits have none. Autograd cannot
    record them.
    """
    recorded = torch.is_grad_enabled() or is_traced() or is_batched(chosen)
    if recorded or chosen.device.type != "cpu" or chosen.numel() < _FEW:
        return torch.where(mask, chosen, other)
    bits = _BITS[chosen.dtype.itemsize]
    every = mask.to(bits).neg_()  # all bits 1 where the mask is True
    if isinstance(other, Tensor) or other:
        rest = torch.as_tensor(other, dtype=chosen.dtype, device="cpu").view(bits)
        return ((chosen.view(bits) ^ rest) & every).bitwise_xor_(rest).view(chosen.dtype)
    return every.bitwise_and_(chosen.view(bits)).view(chosen.dtype)


def per_neuron(parameter: Tensor, neurons: int) -> Tensor:
    """A parameter (P,) as one value for each neuron and sample (M,)."""
    return parameter.repeat(neurons // parameter.shape[0])


def interpolate(times: Tensor, crossing: Tensor, threshold: Tensor) -> Tensor:
    """Time at which the straight line between V[t*-1] and V[t*] meets the threshold."""
    below, rise = _between(times, crossing)
    theta = per_neuron(threshold, times.shape[0])
    between = times - 1 + (theta - below) / rise
    return select(times > 0, between, times.to(between.dtype))


def _between(times: Tensor, crossing: Tensor) -> tuple[Tensor, Tensor]:
    """V[t*-1], and V[t*] - V[t*-1]; 1 where no crossing lies between two steps.

    A division by 0 there would make second derivatives NaN.
    """
    below, above = crossing.unbind(0)
    return below, select(times > 0, above - below, 1.0)


def at_steps(rows: Tensor, steps: Tensor, back: int = 0) -> Tensor:
    """rows[step - back] for every neuron whose step is at least ``back``, else 0."""
    index = (steps - back).clamp(min=0)
    return select(steps >= back, rows.gather(0, index[None])[0])


def around(rows: Tensor, steps: Tensor) -> Tensor:
    """rows[step] and rows[step - 1], (2, M); see :func:`at_steps`."""
    return torch.stack((at_steps(rows, steps), at_steps(rows, steps, back=1)))


def slope_at(u: Tensor, surrogate: Slope) -> Tensor:
    """s'(u), which autograd can differentiate where it records ``u``."""
    if isinstance(surrogate, Surrogate):
        return surrogate_slope(u.clone(), surrogate)
    recorded = u.requires_grad and torch.is_grad_enabled()
    with torch.enable_grad():
        given = u if recorded else u.detach().requires_grad_()
        (slope,) = torch.autograd.grad(surrogate(given).sum(), given, create_graph=recorded)
    return slope


def through_crossing(
    on_spikes: Tensor | None,
    grad_times: Tensor | None,
    times: Tensor,
    crossing: Tensor,
    threshold: Tensor,
    surrogate: Slope | None,
) -> tuple[Tensor, Tensor, Tensor] | tuple[None, None, None]:
    """Gradients to the membrane at a step, to that one step before, and to the threshold.

    The step is t* of a neuron that fires, and the peak of a silent neuron. ``on_spikes`` (2, M) is
    the gradient to a spike at this step and at the step before, times the height of the spike.

    A loss on a spike is a loss on its time: the spike is shared linearly between the two steps
    around the crossing, so dL/dtau = g[t*] - g[t*-1]. Göltz et al., Fast & Deep, Nature Machine
    Intelligence 2021. A silent neuron has the gradient of a surrogate at its peak only. None is no
    surrogate.
    """
    if on_spikes is None and grad_times is None:
        return None, None, None
    below, over = _between(times, crossing)
    theta = per_neuron(threshold, times.shape[0])
    grad = torch.zeros_like(below)
    if grad_times is not None:
        grad = grad + grad_times
    if on_spikes is not None:
        grad = grad + (on_spikes[0] - on_spikes[1])
    # A spike at step 0 has no crossing between steps.
    per_volt = select(times > 0, grad / over)
    position = select(times > 0, (theta - below) / over)
    at, before, direct = -position * per_volt, (position - 1.0) * per_volt, per_volt
    if on_spikes is not None and surrogate is not None:
        slope = slope_at(crossing[1] - theta, surrogate)
        silent = select(times < 0, slope * on_spikes[0])
        at, direct = at + silent, direct - silent
    return at, before, direct
