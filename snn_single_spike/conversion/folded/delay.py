"""snnTorch's SynapticDelay in a converted model: it delays the whole sequence."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ...functional import delay_spikes
from ...spikes import SpikeEvents, SpikeTimes
from ...spikes.lazy import materialize
from ..refusals.layers import ConversionError
from ..time_axis import Time

__all__ = ["FoldedDelay", "fold_delay"]


class FoldedDelay:
    """Mixed into the class of a SynapticDelay of a converted model, where time is folded.

    snnTorch's delay keeps the inputs of the last steps. Here it receives all steps at once.
    """

    __slots__ = ()
    _original: type
    _time: Time
    _path: str

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (type(self)._original,), self.__dict__

    def _in_sequence(self, spikes: Any) -> Any:
        layer: Any = self
        if layer.kernel != "linear" or layer.delay.requires_grad:
            # The author's own kernel: at whole delays its gradient is another one.
            author: Any = type(self)._original
            return author.forward(layer, materialize(spikes, "SynapticDelay"))
        if not isinstance(spikes, SpikeTimes | SpikeEvents):
            spikes = materialize(spikes, "SynapticDelay")
        return delay_spikes(spikes, layer.delay, max_delay=layer.max_delay)

    def _forward(self, input_: Any) -> Any:
        time = self._time
        if not time.num_steps:
            raise RuntimeError(
                f"layer {self._path!r} (SynapticDelay) of a converted model was called outside of "
                "the model: call the model, or use snn_single_spike.SpikeDelay on its own"
            )
        sequence = time.unfold(input_)
        if len(sequence.shape) != 3:
            raise ConversionError(
                f"layer {self._path!r} (SynapticDelay) has an input of shape "
                f"{tuple(input_.shape)}, but snnTorch's delay expects (batch, channels): flatten it"
            )
        return time.fold(self._in_sequence(sequence))

    def _reset(self) -> Tensor:
        return self._buffer  # type: ignore[attr-defined]  # empty: nothing is kept


@functools.cache
def _folded_class(original: Any) -> Any:
    names = {
        "forward": FoldedDelay._forward,
        "reset_delay": FoldedDelay._reset,
        "_original": original,
        "__reduce_ex__": FoldedDelay.__reduce_ex__,
        "__module__": original.__module__,
        "__doc__": original.__doc__,
    }
    return type(original.__name__, (original, FoldedDelay), names)


def _rebuild(original: type) -> Any:
    return object.__new__(_folded_class(original))


def fold_delay(delay: Any, time: Time, path: str) -> None:
    """Turn a SynapticDelay into its folded form, in place."""
    kind: Any = type(delay)
    delay.__class__ = _folded_class(kind)
    delay._time, delay._path = time, path
    delay.step_mode = False
    delay._buffer = torch.zeros_like(delay._buffer[:0])
