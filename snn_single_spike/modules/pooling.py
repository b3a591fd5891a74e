"""Pooling of spike times."""

from __future__ import annotations

from torch import nn

from ..functional import first_spike_pool2d
from ..spikes import SpikeTimes

__all__ = ["FirstSpikePool2d"]


class FirstSpikePool2d(nn.Module):
    """
    The earliest spike of each window: :func:`snn_single_spike.functional.first_spike_pool2d`.

    The layer takes the place of :class:`torch.nn.MaxPool2d` behind a neuron. One spike at most
    leaves a window, and the result is :class:`snn_single_spike.SpikeTimes` again.

    Example::

        net = nn.Sequential(
            SingleSpikeConv2d(1, 32, 5, beta=0.9),
            FirstSpikePool2d(2),
            SingleSpikeConv2d(32, 64, 5, beta=0.9),
        )

    :param kernel_size: size of a window
    :type kernel_size: int or tuple

    `stride`, `padding` and `ceil_mode` as in :class:`torch.nn.MaxPool2d`.

    Inputs: :class:`snn_single_spike.SpikeTimes` with the features `(channels, height, width)`

    Outputs: :class:`snn_single_spike.SpikeTimes`
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.ceil_mode = padding, ceil_mode

    def forward(self, spikes: SpikeTimes) -> SpikeTimes:
        return first_spike_pool2d(
            spikes, self.kernel_size, self.stride, self.padding, self.ceil_mode
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"ceil_mode={self.ceil_mode}"
        )
