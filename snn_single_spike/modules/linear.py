"""A linear layer and its single-spike neurons in one module, from spike times."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import backends
from ..functional import run_single_spike_linear
from ..ops.validation import UNPACK, check_current
from ..spikes import LazyTensor, SpikeEvents, Spikes, SpikeTimes
from ..spikes.lazy import materialize
from .leaky import LeakyState, SingleSpikeLeaky

__all__ = ["SingleSpikeLinear"]

# A dense input is faster taken as its spikes where at most one in so many of its entries is one,
# and they go to so many neurons. Measured with the compiled CPU loops, forward and backward: 784
# to 1000 units at T=100 3.5 and 1.6 times at one in 50 and one in 10, 1156 to 300 at T=300 2.5
# and 1.1 times, 784 to 100 at T=25 1.4 times at one in 50 and level at one in 20.
SPARSE, WIDE = 32, 100


class SingleSpikeLinear(SingleSpikeLeaky):
    """
    A linear layer of single-spike neurons: :class:`torch.nn.Linear` and
    :class:`snn_single_spike.SingleSpikeLeaky` in one, from spike times to spike times.

    .. math::

            U[t] = βU[t-1] + W S_{\\rm in}[t] + b - R[t]

    Every input spike adds its column of W once. No tensor of shape `(time, batch, features)` is
    made, forwards or backwards; with `gradient="spike_time"` memory does not grow with
    the number of time steps, and time hardly does.

    Example::

        from snn_single_spike import LeakyReadout, SingleSpikeLinear, SpikeTimes

        hidden = SingleSpikeLinear(784, 1000, beta=0.9)
        output = nn.Sequential(nn.Linear(1000, 10), LeakyReadout(0.95))

        spikes = SpikeTimes(times, num_steps=100)         # times: (batch, 784)
        loss = F.cross_entropy(output(hidden(spikes)), targets)

    Its `state_dict` has the keys `weight` and `bias` of the linear layer, initialised as torch
    does, and those of :class:`snntorch.Leaky`.

    :param in_features: number of inputs
    :type in_features: int

    :param out_features: number of neurons
    :type out_features: int

    :param beta: membrane potential decay rate, as in
        :class:`snn_single_spike.SingleSpikeLeaky`, of which all further arguments are taken but
        `init_hidden`, `output` and `spike_format`
    :type beta: float or torch.tensor

    :param bias: learn a constant current. Defaults to True
    :type bias: bool, optional

    :param device: of the weights and the bias
    :type device: torch.device, optional, keyword only

    :param dtype: of the weights and the bias
    :type dtype: torch.dtype, optional, keyword only

    Inputs: spikes
        - **spikes** :class:`snn_single_spike.SpikeTimes` or :class:`snn_single_spike.SpikeEvents`
          with `in_features` units, or a dense tensor `(time, batch, in_features)`. On the CPU,
          with numba, a float32 or float64 one without a gradient that is nearly all zeros is taken
          as its spikes; any other is multiplied as by `nn.Linear`. Only this keeps the last
          membrane in `self.mem`

    Outputs: :class:`snn_single_spike.SpikeTimes` of shape `(time, batch, out_features)`. A module
    that is compiled by `torch.compile` computes dense tensors, and returns one

    :raises ValueError, TypeError, RuntimeError: as
        :func:`snn_single_spike.functional.single_spike_linear`
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        beta: Tensor | float,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **neuron: Any,
    ) -> None:
        fixed = {"init_hidden", "output", "spike_format"} & neuron.keys()
        if fixed:
            names = " or ".join(f"`{name}`" for name in sorted(fixed))
            raise TypeError(
                f"SingleSpikeLinear does not accept {names}: it always returns spike times. For "
                "the membrane use nn.Linear followed by SingleSpikeLeaky."
            )
        super().__init__(beta, init_hidden=True, spike_format="times", **neuron)
        linear = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        self.in_features, self.out_features = in_features, out_features
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)

    def forward(  # type: ignore[override]
        self, spikes: SpikeTimes | SpikeEvents | Tensor
    ) -> SpikeTimes:
        if isinstance(spikes, LazyTensor) and not isinstance(spikes, Spikes):
            spikes = materialize(spikes, type(self).__name__)
        self._check(spikes)
        if isinstance(spikes, Tensor):
            if not self._faster_from_spikes(spikes):
                return super().forward(F.linear(spikes, self.weight, self.bias))
            spikes = SpikeEvents.from_dense(spikes)
        return run_single_spike_linear(
            spikes,
            self.weight,
            self.bias,
            self.beta,
            self.threshold,
            self.graded_spikes_factor,
            *self._surrogate(),
            self.gradient,
            self._reset(),
            self.backend,
        )

    def _check(self, spikes: SpikeTimes | SpikeEvents | Tensor) -> None:
        if isinstance(spikes, Tensor):
            check_current(spikes, "spikes")
        elif not isinstance(spikes, Spikes):
            fix = f": {UNPACK}" if isinstance(spikes, tuple) else ""
            raise TypeError(
                f"spikes must be SpikeTimes, SpikeEvents or a torch.Tensor, not "
                f"{type(spikes).__name__}{fix}"
            )
        if spikes.shape[2:] != (self.in_features,):
            raise ValueError(
                f"spikes has shape {tuple(spikes.shape)}, but (time, batch, {self.in_features}) is "
                "expected: for features of several dimensions use spikes.flatten(2), or make the "
                f"layer with in_features={spikes.shape[2:].numel()}"
            )

    def _faster_from_spikes(self, dense: Tensor) -> bool:
        """Whether few enough of the entries of a dense input are spikes."""
        if (
            torch.compiler.is_compiling()
            or self.out_features < WIDE
            or dense.device.type != "cpu"  # elsewhere to count would be to wait for the device
            or backends.explain("cpu")[0] != "numba"  # plain torch multiplies dense tensors
            or dense.dtype not in (torch.float32, torch.float64)
            or dense.dtype != self.weight.dtype
            or torch.is_autocast_enabled("cpu")  # asks for a product in half precision
            or (dense.requires_grad and torch.is_grad_enabled())
            or dense.dim() != 3
            or dense.shape[2] != self.in_features
            or not dense.numel()
        ):
            return False
        # torch's own count takes ten times as long.
        return np.count_nonzero(dense.detach().numpy()) * SPARSE <= dense.numel()

    def step(self, input_: Tensor, state: LeakyState | None = None) -> tuple[Tensor, LeakyState]:
        """One time step of the layer, for streaming: :meth:`SingleSpikeLeaky.step` on its current.

        :param input_: dense spikes of one step, of shape `(batch, in_features)`
        :type input_: torch.Tensor
        """
        return super().step(F.linear(input_, self.weight, self.bias), state)

    def extra_repr(self) -> str:
        """The options that decide what the layer computes."""
        sizes = f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, {super().extra_repr()}"
