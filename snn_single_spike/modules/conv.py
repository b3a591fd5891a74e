"""A convolution and its single-spike neurons in one module, from spike times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.validation import check_conv, check_padding
from ..spikes import SpikeEvents, SpikeTimes
from ..spikes.current import conv1d_as_2d
from ..spikes.layers import conv_spikes
from ._layer import SingleSpikeLayer
from .leaky import LeakyState

__all__ = ["SingleSpikeConv1d", "SingleSpikeConv2d"]


class _SingleSpikeConv(SingleSpikeLayer):
    """The base of both: options, checks, and the weights of ``layer``, a convolution of torch."""

    convolve: Callable[..., Tensor]
    maps: tuple[str, ...]
    """Names of the dimensions behind the channels."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        beta: Tensor | float,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        **neuron: Any,
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(
                f"padding_mode={padding_mode!r} is not supported by {type(self).__name__}, which "
                "computes from the spikes: pad the spikes, or use padding_mode='zeros'"
            )
        check_padding(padding)
        super().__init__(beta, **neuron)
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        layer = type(self).layer(*sizes, device=device, dtype=dtype)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = layer.kernel_size, layer.stride, layer.padding
        self.dilation, self.groups, self.padding_mode = layer.dilation, groups, padding_mode
        self.weight = layer.weight
        self.register_parameter("bias", layer.bias)

    def forward(  # type: ignore[override]
        self, spikes: SpikeTimes | SpikeEvents | Tensor
    ) -> SpikeTimes:
        spikes = self._checked(spikes)
        if isinstance(spikes, Tensor):
            return self._from_dense(spikes)
        self._keep_no_state(spikes.num_steps)
        how = (self.bias, self.stride, self.padding, self.dilation, self.groups)
        if len(self.maps) == 1:
            given, weight, sizes = conv1d_as_2d(spikes, self.weight, *how)
            features = (self.out_channels, sizes.out_width)
        else:
            given, weight = spikes, self.weight
            sizes = check_conv(spikes, weight, *how)
            features = (self.out_channels, sizes.out_height, sizes.out_width)  # type: ignore
        return conv_spikes(given, weight, self.bias, sizes, torch.Size(features), self._neurons())

    def dense_current(self, spikes: Tensor) -> Tensor:
        """The current of the neurons from dense spikes."""
        return self._current(spikes.flatten(0, 1)).unflatten(0, spikes.shape[:2])

    def _current(self, maps: Tensor) -> Tensor:
        return type(self).convolve(
            maps, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def _check_shape(self, shape: torch.Size) -> None:
        if len(shape) != 3 + len(self.maps) or shape[2] != self.in_channels:
            wanted = ", ".join(("time", "batch", str(self.in_channels), *self.maps))
            raise ValueError(
                f"spikes has shape {tuple(shape)}, but ({wanted}) is expected: use "
                "spikes.reshape(...), or make the layer with another in_channels"
            )

    def step(self, input_: Tensor, state: LeakyState | None = None) -> tuple[Tensor, LeakyState]:
        """
        Compute one time step of the layer, for streaming: :meth:`SingleSpikeLeaky.step` on the
        current of the convolution.

        :param input_: dense spikes of one step, of shape `(batch, in_channels, *maps)`
        :type input_: torch.Tensor
        :param state: the state that the last step returned. Defaults to None, which starts a
            sample
        :type state: LeakyState, optional
        :return: dense spikes of shape `(batch, out_channels, *maps)`, and the state for the next
            step
        :rtype: tuple(torch.Tensor, LeakyState)
        :raises ValueError, TypeError: as :meth:`SingleSpikeLeaky.step`
        """
        return super().step(self._current(input_), state)

    def extra_repr(self) -> str:
        """The options that decide what the layer computes."""
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        how = ", ".join(
            f"{name}={getattr(self, name)}" for name in ("stride", "padding", "dilation", "groups")
        )
        return f"{sizes}, {how}, bias={self.bias is not None}, {super().extra_repr()}"


class SingleSpikeConv2d(_SingleSpikeConv):
    """
    A convolution of single-spike neurons: :class:`torch.nn.Conv2d` and
    :class:`snn_single_spike.SingleSpikeLeaky` in one module, from spike times to spike times.

    .. math::

            U[t] = βU[t-1] + W * S_{\\rm in}[t] + b - R[t]

    Every input spike adds its patch of W to the outputs that it reaches once. No tensor of shape
    `(time, batch, out_channels, height, width)` is stored, in the forward or in the backward pass.
    With `gradient="spike_time"` only steps with spikes are visited, and time hardly grows with the
    number of steps. Under a surrogate rule the backward pass visits every step.

    Method: Taylor, King and Harper, arXiv:2205.15286, and for `"spike_time"` Göltz et al., Fast &
    Deep, Nature Machine Intelligence 2021.

    Example::

        from snn_single_spike import SingleSpikeConv2d, SingleSpikeLinear, SpikeTimes

        net = nn.Sequential(
            SingleSpikeConv2d(1, 32, 5, beta=0.9, stride=2),
            SingleSpikeConv2d(32, 64, 5, beta=0.9, stride=2),
            nn.Flatten(2),
            SingleSpikeLinear(64 * 4 * 4, 10, beta=0.9),
        )
        spk_rec = net(SpikeTimes(times, num_steps=100))         # times: (batch, 1, 28, 28)

    The `state_dict` has the keys `weight` and `bias` of :class:`torch.nn.Conv2d` and the keys of
    :class:`snntorch.Leaky`. Weight and bias are initialized as in :class:`torch.nn.Conv2d`.

    :param in_channels: channels of the input
    :type in_channels: int

    :param out_channels: channels of the output
    :type out_channels: int

    :param kernel_size: size of the kernel
    :type kernel_size: int or tuple

    :param beta: membrane potential decay rate per step, as in
        :class:`snn_single_spike.SingleSpikeLeaky`: a number, one value for each channel
        `(out_channels, 1, 1)`, or one for each neuron
    :type beta: float or torch.tensor

    :param bias: learn a constant current for each channel. Defaults to True
    :type bias: bool, optional

    `stride`, `padding`, `dilation`, `groups`, `device` and `dtype` as in :class:`torch.nn.Conv2d`.
    `padding_mode` must be `"zeros"`. Other keyword arguments as in
    :class:`snn_single_spike.SingleSpikeLeaky`. `init_hidden`, `output` and `spike_format` are not
    accepted.

    Inputs: spikes
        - **spikes** :class:`snn_single_spike.SpikeTimes` or :class:`snn_single_spike.SpikeEvents`
          with the features `(in_channels, height, width)`, or a dense tensor
          `(time, batch, in_channels, height, width)`, which is computed as by `nn.Conv2d`

    Outputs: :class:`snn_single_spike.SpikeTimes` of shape
    `(time, batch, out_channels, height, width)`, in the type of the weights

    :raises TypeError: `init_hidden`, `output` or `spike_format` is passed
    :raises ValueError: `padding_mode` is not `"zeros"`
    :raises ValueError, TypeError, RuntimeError: as
        :func:`snn_single_spike.functional.single_spike_conv2d`
    """

    layer = nn.Conv2d
    convolve = staticmethod(F.conv2d)
    maps = ("height", "width")


class SingleSpikeConv1d(_SingleSpikeConv):
    """
    A convolution of single-spike neurons in one dimension: :class:`torch.nn.Conv1d` and
    :class:`snn_single_spike.SingleSpikeLeaky` in one module. The arguments are those of
    :class:`snn_single_spike.SingleSpikeConv2d`.

    Example::

        layer = SingleSpikeConv1d(700, 64, 3, beta=0.9, padding=1)
        layer(spikes).times                                     # (batch, 64, length)

    Inputs: spikes
        - **spikes** :class:`snn_single_spike.SpikeTimes` or :class:`snn_single_spike.SpikeEvents`
          with the features `(in_channels, length)`, or a dense tensor
          `(time, batch, in_channels, length)`

    Outputs: :class:`snn_single_spike.SpikeTimes` of shape `(time, batch, out_channels, length)`
    """

    layer = nn.Conv1d
    convolve = staticmethod(F.conv1d)
    maps = ("length",)
