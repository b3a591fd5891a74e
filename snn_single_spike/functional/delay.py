"""Delays of spikes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..ops.delay import checked_delay, delayed_sequence
from ..ops.validation import check_current
from ..spikes import SpikeEvents, Spikes, SpikeTimes
from ..spikes.delayed import DelayedSpikes
from ..spikes.lazy import LazyTensor, materialize

__all__ = ["delay_spikes"]


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
    if not isinstance(spikes, Spikes):
        check_current(spikes, "spikes")
    features = spikes.shape[2:] if isinstance(spikes, Tensor) else spikes.features
    clipped = checked_delay(delay, max_delay, features, spikes.dtype, spikes.device)
    if isinstance(spikes, Tensor):
        return delayed_sequence(spikes, clipped)
    return DelayedSpikes(spikes, clipped.expand(features)).simplified()
