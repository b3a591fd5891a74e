"""Delays of spikes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..backends._compiling import is_traced
from ..ops.delay import clip_delay, delayed_sequence, split_delay
from ..ops.validation import check_current, check_device, check_not_nan, check_real
from ..spikes import SpikeEvents, Spikes, SpikeTimes
from ..spikes.delayed import DelayedSpikes, delay_by_steps
from ..spikes.lazy import LazyTensor, materialize

__all__ = ["check_delay", "check_max_delay", "delay_spikes"]


def delay_spikes(
    spikes: Any, delay: Tensor | float, *, max_delay: float | None = None
) -> SpikeTimes | SpikeEvents | DelayedSpikes | Tensor:
    """
    Spikes that arrive `delay` time steps later: an axonal delay of the inputs of a layer, or a
    dendritic delay of the outputs of its neurons.

    With d = n + f, n whole and 0 <= f < 1, the dense spikes become

    .. math::

            S_d[t] = (1 - f) S[t - n] + f S[t - n - 1]

    A spike is shared linearly between the two steps around its arrival. This is the linear kernel
    of snnTorch's `SynapticDelay`. What comes after the last step does not arrive. The gradient to
    the delay is exact, by every gradient rule: it is the derivative of this formula, times the
    gradient to the delayed spikes by the rule of the layer that reads them. At a whole delay it is
    the derivative to the right.

    Example::

        delay = torch.zeros(784, requires_grad=True)
        hidden = single_spike_linear(delay_spikes(spikes, delay), weight, bias, beta=0.9)

    :param spikes: spikes, or any dense sequence `(T, B, *features)`
    :type spikes: SpikeTimes, SpikeEvents or torch.Tensor

    :param delay: delay in steps: a number, or a tensor that broadcasts to the features. A negative
        value counts as 0, and has a gradient only if a larger delay lowers the loss
    :type delay: float or torch.Tensor

    :param max_delay: larger delays count as this one. Defaults to None, without a limit
    :type max_delay: float, optional

    :return: the delayed spikes. SpikeTimes remain SpikeTimes, and SpikeEvents SpikeEvents, if no
        gradient is asked of the delay and all delays are whole; else they become
        :class:`snn_single_spike.DelayedSpikes`
    :rtype: SpikeTimes, SpikeEvents, DelayedSpikes or torch.Tensor

    :raises ValueError: the delay is NaN or infinite, does not broadcast to the features, or is on
        another device; `max_delay` is not positive
    :raises TypeError: `spikes` are :class:`DelayedSpikes` or averaged spikes
    """
    if isinstance(spikes, LazyTensor) and not isinstance(spikes, Spikes):
        spikes = materialize(spikes, "delay_spikes")
    if not isinstance(spikes, SpikeTimes | SpikeEvents):
        if isinstance(spikes, Spikes):
            raise TypeError(
                f"delay_spikes does not support {type(spikes).__name__}: add the delays, or delay "
                "the spikes before they are averaged"
            )
        check_current(spikes, "spikes")
    clipped = clip_delay(_delay_of(delay, spikes), check_max_delay(max_delay))
    if isinstance(spikes, Tensor):
        return delayed_sequence(spikes, clipped)
    if not _is_whole(clipped):
        return DelayedSpikes(spikes, clipped.expand(spikes.features))
    whole, _ = split_delay(clipped.expand(spikes.features))
    return _delayed_by_steps(spikes, whole)


def _delayed_by_steps(spikes: SpikeTimes | SpikeEvents, steps: Tensor) -> SpikeTimes | SpikeEvents:
    late = delay_by_steps(spikes.unfold().flatten(2), steps.flatten())
    late = late._with_features(spikes.features)._is_like(height=spikes.height, folded=spikes.folded)
    if isinstance(spikes, SpikeTimes) and spikes.interpolated_times is not None:
        times = spikes.interpolated_times + steps
        late.interpolated_times = torch.where(late.times >= 0, times, -1.0)
    return late


def _is_whole(delay: Tensor) -> bool:
    """Whether spikes stay whole. A gradient to the delay needs both parts of each spike."""
    if torch.is_grad_enabled() and delay.requires_grad:
        return False
    return not is_traced() and bool((delay == delay.floor()).all())


def _delay_of(delay: Tensor | float, spikes: Any) -> Tensor:
    """The delay as a floating-point tensor that broadcasts to the features."""
    given = delay
    if not isinstance(delay, Tensor):
        check_delay(delay)
        delay = torch.as_tensor(delay, dtype=_float(spikes.dtype), device=spikes.device)
    check_device("delay", delay, spikes.device, "spikes")
    check_real("delay", delay)
    if not delay.is_floating_point():
        delay = delay.to(_float(spikes.dtype))
    features = spikes.shape[2:] if isinstance(spikes, Tensor) else spikes.features
    try:
        delay.expand(features)
    except RuntimeError:
        raise ValueError(
            f"delay has shape {tuple(delay.shape)}, which does not broadcast to the features "
            f"{tuple(features)}: use one delay for each unit, or one number"
        ) from None
    check_not_nan("delay", given)
    if not is_traced() and bool(delay.isinf().any()):
        raise ValueError(
            "delay contains an infinite value, but must be finite: it is a number of time steps. "
            "If training caused it, lower the learning rate"
        )
    return delay


def _float(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_delay(delay: Tensor | float) -> None:
    """Reject a delay that is complex, NaN, infinite or negative, before training."""
    check_real("delay", delay)
    check_not_nan("delay", delay)
    values = torch.as_tensor(delay)
    bad = values[~(values.isfinite() & (values >= 0))]
    if bad.numel():
        raise ValueError(
            f"delay contains {float(bad[0])}, but must be finite and not negative: it is a number "
            "of time steps"
        )


def check_max_delay(max_delay: float | None) -> float | None:
    if max_delay is None:
        return None
    if isinstance(max_delay, bool) or not isinstance(max_delay, int | float):
        raise TypeError(f"max_delay must be a number, not {type(max_delay).__name__}")
    if not (math.isfinite(max_delay) and max_delay > 0):
        raise ValueError(
            f"max_delay={max_delay} must be positive and finite: leave it out for none"
        )
    return max_delay
