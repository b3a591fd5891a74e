"""What modules share that are a layer of torch and its single-spike neurons in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..ops.validation import UNPACK, check_current
from ..spikes import LazyTensor, SpikeEvents, Spikes, SpikeTimes
from ..spikes.lazy import materialize
from .leaky import SingleSpikeLeaky

_FIXED = {"init_hidden", "output", "spike_format", "refractory"}


class SingleSpikeLayer(SingleSpikeLeaky):
    """Leaky neurons behind a ``layer`` of torch, which always return spike times."""

    layer: Callable[..., Any]
    dense_current: Callable[[Tensor], Tensor]

    def __init__(self, beta: Tensor | float, **neuron: Any) -> None:
        if fixed := _FIXED & neuron.keys():
            names = " or ".join(f"`{name}`" for name in sorted(fixed))
            raise TypeError(
                f"{type(self).__name__} does not accept {names}: it always returns spike times. "
                "For the membrane, or more than one spike, use "
                f"nn.{type(self).layer.__name__} followed by SingleSpikeLeaky."
            )
        super().__init__(beta, init_hidden=True, spike_format="times", **neuron)

    def _checked(self, spikes: Any) -> Any:
        """The input of a call as it is computed: spikes, or a dense tensor (T, B, *features)."""
        if isinstance(spikes, LazyTensor) and not isinstance(spikes, Spikes):
            spikes = materialize(spikes, type(self).__name__)
        if isinstance(spikes, Tensor):
            check_current(spikes, "spikes")
        elif not isinstance(spikes, Spikes):
            fix = UNPACK if isinstance(spikes, tuple) else "use SpikeTimes.from_dense(spikes)"
            raise TypeError(
                f"spikes must be SpikeTimes, SpikeEvents or a torch.Tensor, not "
                f"{type(spikes).__name__}: {fix}"
            )
        self._check_shape(spikes.shape)
        self._check_hooks()
        if isinstance(spikes, Tensor) and self._faster_from_spikes(spikes):
            return SpikeEvents.from_dense(spikes)
        return spikes

    def _from_dense(self, spikes: Tensor) -> SpikeTimes:
        """A call with dense spikes, from their current."""
        return super().forward(self.dense_current(spikes))

    def _faster_from_spikes(self, dense: Tensor) -> bool:
        """Whether a dense input is sparse enough to be converted to events."""
        return False

    def _check_shape(self, shape: Any) -> None:
        raise NotImplementedError
