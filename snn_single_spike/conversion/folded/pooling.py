"""MaxPool2d of a converted model that lets the earliest spike of each window through."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...functional import first_spike_pool2d
from ...spikes import SpikeTimes
from ..refusals.layers import ConversionError

__all__ = ["EarliestMaxPool2d", "pool_earliest"]


class EarliestMaxPool2d(nn.MaxPool2d):
    """:class:`torch.nn.MaxPool2d`, and the earliest spike of each window for spike times.

    Other inputs, as the current of a convolution, have their maximum at every step.
    """

    def forward(self, input: Any) -> Any:
        plain = not self.return_indices and self.dilation in (1, (1, 1))
        if not isinstance(input, SpikeTimes) or not plain:
            return super().forward(input)
        sizes = self.kernel_size, self.stride, self.padding, self.ceil_mode
        pooled = first_spike_pool2d(input.unfold(), *sizes)
        return pooled.fold() if input.folded else pooled

    def _get_name(self) -> str:
        return nn.MaxPool2d.__name__


def pool_earliest(model: nn.Module) -> None:
    """Turn every MaxPool2d of a model into an :class:`EarliestMaxPool2d`, in place."""
    pools = [part for part in model.modules() if type(part) is nn.MaxPool2d]
    if not pools:
        raise ConversionError(
            "first_spike_pooling=True needs an nn.MaxPool2d, and the model has none: leave the "
            "option out, or use nn.MaxPool2d in place of functions in forward"
        )
    for part in pools:
        part.__class__ = EarliestMaxPool2d
