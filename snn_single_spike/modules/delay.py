"""Delays of spikes between layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..functional.delay import delay_spikes
from ..ops.delay import check_delay, check_max_delay

__all__ = ["SpikeDelay", "add_delay"]


class SpikeDelay(nn.Module):
    """
    One delay for each neuron, between two layers:
    :func:`snn_single_spike.functional.delay_spikes`.

    Behind a layer it is a dendritic delay of the outputs of its neurons. In front of a layer it is
    an axonal delay of its inputs, which :class:`snn_single_spike.SingleSpikeLinear` has as an
    option, `learn_delay=True`.

    Example::

        net = nn.Sequential(
            SingleSpikeLinear(784, 200, beta=0.9),
            SpikeDelay(200, learn_delay=True),         # each hidden neuron sends its spike later
            nn.Linear(200, 10),
            LeakyReadout(0.95),
        )

    The `state_dict` has the key `delay`, as snnTorch's `SynapticDelay`.

    :param features: number of neurons, or the shape of their features
    :type features: int or tuple of int

    :param delay: initial delay in time steps, at least 0. A number, or a tensor that broadcasts to
        the features. Defaults to 0
    :type delay: float or torch.Tensor, optional

    :param learn_delay: make the delay a parameter, one for each neuron. Defaults to False
    :type learn_delay: bool, optional

    :param max_delay: larger delays count as this one. Defaults to None, without a limit
    :type max_delay: float, optional

    A parameter may leave the range by a step of the optimizer. The forward pass reads it clipped,
    and the gradient leads it back.

    Inputs: :class:`snn_single_spike.SpikeTimes`, :class:`snn_single_spike.SpikeEvents` or a dense
    tensor `(time, batch, *features)`

    Outputs: as :func:`snn_single_spike.functional.delay_spikes`

    :raises ValueError: a delay is negative, infinite or NaN, or does not broadcast to the features;
        `max_delay` is not positive
    """

    delay: Tensor

    def __init__(
        self,
        features: int | tuple[int, ...],
        delay: Tensor | float = 0.0,
        learn_delay: bool = False,
        max_delay: float | None = None,
    ) -> None:
        super().__init__()
        self.features = (features,) if isinstance(features, int) else tuple(features)
        self.learn_delay, self.max_delay = learn_delay, check_max_delay(max_delay)
        add_delay(self, self.features, delay, learn_delay)

    def forward(self, spikes: Any) -> Any:
        return delay_spikes(spikes, self.delay, max_delay=self.max_delay)

    def extra_repr(self) -> str:
        return f"{self.features}, learn_delay={self.learn_delay}, max_delay={self.max_delay}"


def add_delay(
    module: nn.Module,
    features: tuple[int, ...],
    delay: Tensor | float,
    learn: bool,
    like: Tensor | None = None,
) -> None:
    """Register a delay of these features as ``delay``, a parameter if it is learned."""
    check_delay(delay)
    made = torch.as_tensor(delay).detach()
    if like is not None:
        made = made.to(like)
    elif not made.is_floating_point():
        made = made.to(torch.get_default_dtype())
    try:
        made = made.expand(features).clone()
    except RuntimeError:
        raise ValueError(
            f"delay has shape {tuple(made.shape)}, which does not broadcast to the features "
            f"{features}: use one delay for each, or one number"
        ) from None
    if learn:
        module.delay = nn.Parameter(made)
    else:
        module.register_buffer("delay", made)
