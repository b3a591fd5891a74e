"""The current of a linear layer or convolution from spike times, computed on its first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backends._types import Convolution
from ..ops.current import event_current
from ..ops.layer import LayerNeurons, dense_conv, dense_linear
from ..ops.validation import check_conv, check_linear
from . import choice
from ._base import Spikes
from .delayed import DelayedSpikes
from .layers import conv_spikes, linear_spikes, made_dense_by_convolution
from .lazy import LazySequence, changed, implements, versions
from .times import SpikeTimes

__all__ = ["ConvCurrent", "LazyCurrent", "conv1d_as_2d", "follows"]


_FOLLOWS: dict[Callable[..., Any], Callable[..., ConvCurrent | None]] = {}


def follows(*functions: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register an implementation of torch functions whose first argument is a ConvCurrent.

    It returns a ConvCurrent, or None for arguments with which only the tensor can be used.
    """

    def register(implementation: Callable[..., Any]) -> Callable[..., Any]:
        _FOLLOWS.update(dict.fromkeys(functions, implementation))
        return implementation

    return register


class _WeightedSpikes(LazySequence):
    """The base of the currents: spikes, weights and a bias, nothing computed."""

    kind: str

    def __init__(self, spikes: Spikes, weight: Tensor, bias: Tensor | None) -> None:
        if not torch.is_grad_enabled():
            spikes, weight = spikes.detach(), weight.detach()
            bias = None if bias is None else bias.detach()
        self.spikes, self.weight, self.bias = spikes.unfold(), weight, bias
        self.folded = spikes.folded
        self._versions = versions((weight, bias))

    @property
    def num_steps(self) -> int:  # type: ignore[override]
        return self.spikes.num_steps

    @property
    def batch(self) -> int:  # type: ignore[override]
        return self.spikes.batch

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.weight.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.weight.device

    @property
    def requires_grad(self) -> bool:
        bias = self.bias is not None and self.bias.requires_grad
        return self.spikes.requires_grad or self.weight.requires_grad or bias

    def _opened(self) -> tuple[Spikes, Tensor, Tensor | None]:
        if changed((self.weight, self.bias), self._versions):
            raise RuntimeError(
                f"The current of a {self.kind} is computed on its first use, and the weight or "
                "bias of the layer has been changed in place since the layer ran. Use the current "
                "before this change, e.g. call current.to_dense() ahead of optimizer.step()."
            )
        return self.spikes, self.weight, self.bias

    def detach(self) -> Any:
        """The same current without a gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return self._is_like(spikes=self.spikes.detach(), weight=self.weight.detach(), bias=bias)

    def __getstate__(self) -> dict[str, Any]:
        self._opened()  # raises if the layer has changed
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._versions = versions((self.weight, self.bias))  # a copy has new counters

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, of={self.spikes})"


class LazyCurrent(_WeightedSpikes):
    """
    The current `(T, B, out)` of a linear layer from spike times or events, not computed yet.

    `torch.nn.Linear` and `torch.nn.functional.linear` return a LazyCurrent for :class:`SpikeTimes`
    and :class:`SpikeEvents` with one feature dimension. Neurons and readouts of this package read
    the spikes and the weights with :meth:`linear`, and never store the current.

    :param spikes: spikes with one feature dimension
    :type spikes: SpikeTimes or SpikeEvents

    :param weight: weights of shape `(out, in)`
    :type weight: torch.Tensor

    :param bias: constant current of shape `(out,)`, or None
    :type bias: torch.Tensor, optional
    """

    kind = "linear layer"

    @property
    def features(self) -> torch.Size:  # type: ignore[override]
        return self.weight.shape[:1]

    def linear(self) -> tuple[Spikes, Tensor, Tensor | None]:
        """
        The spikes, the weight and the bias from which the current is computed.

        :rtype: tuple(SpikeTimes or SpikeEvents, torch.Tensor, torch.Tensor or None)
        :raises RuntimeError: the weight or the bias has been changed in place since the layer was
            called
        """
        return self._opened()

    def single_spikes(self, neurons: LayerNeurons) -> SpikeTimes:
        """The spikes of neurons that this current drives, without the current."""
        return linear_spikes(*self.linear(), neurons)

    def to_dense(self) -> Tensor:
        """
        The current as a tensor `(T, B, out)`, differentiable, in the type of the weights.

        :rtype: torch.Tensor
        :raises RuntimeError: as :meth:`linear`
        """
        spikes, weight, bias = self.linear()
        if isinstance(spikes, DelayedSpikes):
            spikes, weight = spikes.shared(), torch.cat((weight, weight), 1)
        if not choice.current_pays(spikes, weight):
            return self._leading(dense_linear(spikes.read_dense(), weight, bias))
        if spikes.height is not None:
            weight = weight * spikes.height.to(weight.dtype)
        given, events = spikes.carrier, spikes.events()
        return self._leading(event_current(self.num_steps, given, weight, bias, events))


class ConvCurrent(_WeightedSpikes):
    """
    The current `(T, B, out, *maps)` of a convolution from spike times or events, not computed yet.

    `torch.nn.Conv1d` and `torch.nn.Conv2d` return a ConvCurrent for :class:`SpikeTimes` and
    :class:`SpikeEvents`. :class:`snn_single_spike.SingleSpikeLeaky` with `spike_format="times"`
    reads the spikes and the weights with :meth:`convolution`, and never stores the current. Max
    pooling of a ConvCurrent returns a ConvCurrent, if its windows lie side by side, and so do
    average pooling and a BatchNorm in eval mode.

    :param spikes: spikes with the features `(channels, height, width)`
    :type spikes: SpikeTimes or SpikeEvents

    :param weight: weights of shape `(out, in / groups, height, width)`
    :type weight: torch.Tensor

    :param bias: constant current of shape `(out,)`, or None
    :type bias: torch.Tensor, optional

    :param sizes: the sizes of the convolution
    :type sizes: Convolution

    :param features: the features of the current: `(out, height, width)`, or `(out, width)` of a
        convolution in one dimension
    :type features: torch.Size
    """

    kind = "convolution"

    def __init__(
        self,
        spikes: Spikes,
        weight: Tensor,
        bias: Tensor | None,
        sizes: Convolution,
        features: torch.Size,
    ) -> None:
        super().__init__(spikes, weight, bias)
        self.sizes = sizes
        self.features = features

    def convolution(self) -> tuple[Spikes, Tensor, Tensor | None, Convolution]:
        """
        The spikes, the weight, the bias and the sizes from which the current is computed.

        :raises RuntimeError: the weight or the bias has been changed in place since the layer was
            called
        """
        return (*self._opened(), self.sizes)

    def single_spikes(self, neurons: LayerNeurons) -> SpikeTimes:
        """The spikes of neurons that this current drives, without the current."""
        return conv_spikes(*self.convolution(), self.features, neurons)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in _FOLLOWS and args and isinstance(args[0], ConvCurrent):
            found = _FOLLOWS[function](*args, **(kwargs or {}))
            if found is not None:
                return found
        return super().__torch_function__(function, types, args, kwargs)

    def folded_into(
        self, weight: Tensor, bias: Tensor | None, sizes: Convolution, features: torch.Size
    ) -> ConvCurrent:
        """The current of the same spikes by other weights."""
        spikes = self.spikes.fold() if self.folded else self.spikes
        return ConvCurrent(spikes, weight, bias, sizes, features)

    def to_dense(self) -> Tensor:
        """
        The current as a tensor `(T, B, *features)`, differentiable, in the type of the weights.

        :rtype: torch.Tensor
        :raises RuntimeError: as :meth:`convolution`
        """
        spikes, weight, bias, sizes = self.convolution()
        dense = dense_conv(spikes.read_dense(), weight, bias, sizes)
        return self._leading(dense.unflatten(2, self.features))


@implements(F.linear)
def _linear(spikes: Spikes, weight: Tensor, bias: Tensor | None = None) -> Any:
    if len(spikes.features) != 1:
        return dense_linear(spikes.materialize("linear over several features"), weight, bias)
    check_linear(spikes.features[0], spikes.device, weight, bias)
    if not spikes.prefer_events():
        return dense_linear(spikes.read_dense(), weight, bias)
    current = LazyCurrent(spikes, weight, bias)
    return current.to_dense() if spikes.opened else current


@implements(F.conv2d)
def _conv2d(
    spikes: Spikes,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    sizes = check_conv(spikes, weight, bias, stride, padding, dilation, groups)
    features = torch.Size((len(weight), sizes.out_height, sizes.out_width))
    return _conv(spikes, weight, bias, sizes, features)


@implements(F.conv1d)
def _conv1d(
    spikes: Spikes,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    spikes, weight, sizes = conv1d_as_2d(spikes, weight, bias, stride, padding, dilation, groups)
    return _conv(spikes, weight, bias, sizes, torch.Size((len(weight), sizes.out_width)))


def conv1d_as_2d(
    spikes: Any,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> tuple[Spikes, Tensor, Convolution]:
    """A convolution in one dimension as a convolution of maps with one row."""
    if weight.dim() != 3 or len(spikes.features) != 2:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and the spikes have features "
            f"{tuple(spikes.features)}, but (out, in / groups, length) and (channels, length) are "
            "expected: use spikes.reshape(time, batch, channels, length)"
        )

    def across(value: Any, down: int) -> Any:
        if isinstance(value, str):
            return value
        return (down, value[0] if isinstance(value, (tuple, list)) else value)

    channels, length = spikes.features
    maps = spikes._with_features((channels, 1, length))
    kernel = weight.unsqueeze(2)
    how = (across(stride, 1), across(padding, 0), across(dilation, 1))
    return maps, kernel, check_conv(maps, kernel, bias, *how, groups)


def _conv(
    spikes: Spikes, weight: Tensor, bias: Tensor | None, sizes: Convolution, features: torch.Size
) -> Any:
    if reason := made_dense_by_convolution(spikes):
        dense = spikes.materialize(reason)
    elif spikes.prefer_events():
        return ConvCurrent(spikes, weight, bias, sizes, features)
    else:
        dense = spikes.read_dense()
    if spikes.folded:
        dense = dense.unflatten(0, (spikes.num_steps, spikes.batch))
    current = dense_conv(dense, weight, bias, sizes).unflatten(2, features)
    return current.flatten(0, 1) if spikes.folded else current
