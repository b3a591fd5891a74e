"""The interpolated spike time: the membrane crosses the threshold between two steps."""

from __future__ import annotations

import torch
from torch import Tensor


def per_neuron(parameter: Tensor, neurons: int) -> Tensor:
    """A parameter (P,) as one value for each neuron and sample (M,)."""
    return parameter.repeat(neurons // parameter.shape[0])


def interpolate(times: Tensor, crossing: Tensor, threshold: Tensor) -> Tensor:
    """Time at which the straight line between V[t*-1] and V[t*] meets the threshold."""
    below, rise = _between(times, crossing)
    theta = per_neuron(threshold, times.shape[0])
    between = times - 1 + (theta - below) / rise
    return torch.where(times > 0, between, times.to(between.dtype))


def _between(times: Tensor, crossing: Tensor) -> tuple[Tensor, Tensor]:
    """V[t*-1], and V[t*] - V[t*-1]; 1 where no crossing lies between two steps.

    A division by 0 there would make second derivatives NaN.
    """
    below, above = crossing.unbind(0)
    return below, torch.where(times > 0, above - below, 1.0)


def at_steps(rows: Tensor, times: Tensor, back: int = 0) -> Tensor:
    """rows[t* - back] for every neuron that fired at t* >= back, else 0."""
    index = (times - back).clamp(min=0)
    return torch.where(times >= back, rows.gather(0, index[None])[0], 0.0)


def through_crossing(
    rise: Tensor | None,
    grad_times: Tensor | None,
    times: Tensor,
    crossing: Tensor,
    threshold: Tensor,
) -> tuple[Tensor, Tensor, Tensor] | tuple[None, None, None]:
    """Gradients to V[t*], V[t*-1] and the threshold from the interpolated spike time.

    A loss on the spikes is a loss on the spike time: the spike is shared linearly between the two
    steps around the crossing, so dL/dtau = ``rise`` = factor * (g[t*] - g[t*-1]). Göltz et al.,
    Fast & Deep, Nature Machine Intelligence 2021.
    """
    if rise is None and grad_times is None:
        return None, None, None
    below, over = _between(times, crossing)
    neurons = times.shape[0]
    grad = torch.zeros_like(below)
    if grad_times is not None:
        grad = grad + grad_times
    if rise is not None:
        grad = grad + rise
    # A spike at step 0 has no crossing between steps, and a silent neuron has no spike.
    per_volt = torch.where(times > 0, grad / over, 0.0)
    position = (per_neuron(threshold, neurons) - below) / over
    position = torch.where(times > 0, position, 0.0)
    return -position * per_volt, (position - 1.0) * per_volt, per_volt
