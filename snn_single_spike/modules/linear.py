"""A linear layer and its single-spike neurons in one module, from spike times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.delay import check_max_delay, checked_delay, delayed_sequence
from ..spikes import DelayedSpikes, SpikeEvents, SpikeTimes, choice
from ..spikes.layers import linear_spikes
from ._layer import SingleSpikeLayer
from .delay import add_delay
from .leaky import LeakyState

__all__ = ["SingleSpikeLinear"]


class SingleSpikeLinear(SingleSpikeLayer):
    """
    A linear layer of single-spike neurons: :class:`torch.nn.Linear` and
    :class:`snn_single_spike.SingleSpikeLeaky` in one module, from spike times to spike times.

    .. math::

            U[t] = βU[t-1] + W S_{\\rm in}[t] + b - R[t]

    Every input spike adds its column of W once. The forward pass allocates no tensor of shape
    `(time, batch, features)`. With `gradient="spike_time"` the backward pass allocates no such
    tensor either: memory does not grow with the number of time steps, and time hardly grows.

    Under a surrogate rule the backward pass visits every time step. The layer before a readout
    allocates no `(time, batch, features)` tensor. A hidden layer that feeds another hidden layer
    keeps the adjoint `(time, batch, out)` of the next layer during the backward pass, because
    this adjoint has no closed form.

    Method: Taylor, King and Harper, arXiv:2205.15286, and for `"spike_time"` Göltz et al., Fast &
    Deep, Nature Machine Intelligence 2021.

    Example::

        from snn_single_spike import LeakyReadout, SingleSpikeLinear, SpikeTimes

        hidden = SingleSpikeLinear(784, 1000, beta=0.9)
        output = nn.Sequential(nn.Linear(1000, 10), LeakyReadout(0.95))

        spikes = SpikeTimes(times, num_steps=100)         # times: (batch, 784)
        loss = F.cross_entropy(output(hidden(spikes)), targets)

    The `state_dict` has the keys `weight` and `bias` of :class:`torch.nn.Linear` and the keys of
    :class:`snntorch.Leaky`. Weight and bias are initialized as in :class:`torch.nn.Linear`.

    :param in_features: number of inputs
    :type in_features: int

    :param out_features: number of neurons
    :type out_features: int

    :param beta: membrane potential decay rate per step, as in
        :class:`snn_single_spike.SingleSpikeLeaky`
    :type beta: float or torch.tensor

    :param bias: learn a constant current for each neuron. Defaults to True
    :type bias: bool, optional

    :param delay: axonal delay of each input in time steps, at least 0: a number, or a tensor
        `(in_features,)`. With it the layer reads `delay_spikes(spikes, delay)`
        (:func:`snn_single_spike.functional.delay_spikes`), and the `state_dict` has the key
        `delay`. Defaults to None: no delay, or 0 with `learn_delay=True`
    :type delay: float or torch.Tensor, optional, keyword only

    :param learn_delay: make the delays a parameter. Defaults to False
    :type learn_delay: bool, optional, keyword only

    :param max_delay: larger delays count as this one. Defaults to None, without a limit
    :type max_delay: float, optional, keyword only

    :param device: device of the weights and the bias. Defaults to None: torch's default device
    :type device: torch.device, optional, keyword only

    :param dtype: type of the weights and the bias. Defaults to None: torch's default type
    :type dtype: torch.dtype, optional, keyword only

    Other keyword arguments as in :class:`snn_single_spike.SingleSpikeLeaky`. `init_hidden`,
    `output`, `spike_format` and `refractory` are not accepted.

    Inputs: spikes
        - **spikes** :class:`snn_single_spike.SpikeTimes` or :class:`snn_single_spike.SpikeEvents`
          with `in_features` units, or a dense tensor `(time, batch, in_features)`. On a CPU with
          numba, the layer converts a sparse float32 or float64 tensor without a gradient to
          events. The layer multiplies any other tensor with the weights, as `nn.Linear` does.
          Only such a product updates `self.mem`

    Outputs: :class:`snn_single_spike.SpikeTimes` of shape `(time, batch, out_features)`, in the
    type of the weights

    :raises TypeError: `init_hidden`, `output`, `spike_format` or `refractory` is passed
    :raises ValueError: a delay is negative, infinite or NaN, or there is not one for each input;
        `max_delay` is not positive, or passed without delays
    :raises ValueError, TypeError, RuntimeError: as
        :func:`snn_single_spike.functional.single_spike_linear`
    """

    layer = nn.Linear
    delay: Tensor | None
    learn_delay: bool = False
    max_delay: float | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        beta: Tensor | float,
        bias: bool = True,
        *,
        delay: Tensor | float | None = None,
        learn_delay: bool = False,
        max_delay: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **neuron: Any,
    ) -> None:
        super().__init__(beta, **neuron)
        linear = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        self.in_features, self.out_features = in_features, out_features
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        if delay is None and not learn_delay:
            if max_delay is not None:
                raise ValueError(
                    f"max_delay={max_delay} has no effect without delays: pass delay= or "
                    "learn_delay=True, or leave max_delay out"
                )
            self.register_parameter("delay", None)
        else:
            initial = 0.0 if delay is None else delay
            self.learn_delay, self.max_delay = learn_delay, check_max_delay(max_delay)
            add_delay(self, (in_features,), initial, learn_delay, like=self.weight)

    def forward(  # type: ignore[override]
        self, spikes: SpikeTimes | SpikeEvents | Tensor
    ) -> SpikeTimes:
        spikes = self._checked(spikes)
        if isinstance(spikes, Tensor):
            return self._from_dense(spikes)
        self._keep_no_state(spikes.num_steps)
        if self.delay is not None:
            spikes = DelayedSpikes(spikes, self._clipped_delay(spikes.device))  # type: ignore[assignment]
        return linear_spikes(spikes, self.weight, self.bias, self._neurons())

    def dense_current(self, spikes: Tensor) -> Tensor:
        """The current of the neurons from dense spikes, (time, batch, in_features)."""
        if self.delay is not None:
            spikes = delayed_sequence(spikes, self._clipped_delay(spikes.device))
        return F.linear(spikes, self.weight, self.bias)

    def _clipped_delay(self, device: torch.device) -> Tensor:
        """The delay of each input, for spikes on this device."""
        assert self.delay is not None
        features, dtype = (self.in_features,), self.weight.dtype
        return checked_delay(self.delay, self.max_delay, features, dtype, device).expand(features)

    def _check_shape(self, shape: torch.Size) -> None:
        if shape[2:] != (self.in_features,):
            raise ValueError(
                f"spikes has shape {tuple(shape)}, but (time, batch, {self.in_features}) is "
                "expected: for features of several dimensions use spikes.flatten(2), or make the "
                f"layer with in_features={shape[2:].numel()}"
            )

    def _faster_from_spikes(self, dense: Tensor) -> bool:
        """Whether a dense input is sparse enough to be converted to events."""
        fits = dense.dim() == 3 and dense.shape[2] == self.in_features
        fits = fits and dense.dtype == self.weight.dtype
        layer = choice.Layer(self.out_features, self.weight.numel())
        return fits and choice.events_pay_with_neurons(dense, layer, self.backend)

    def step(self, input_: Tensor, state: LeakyState | None = None) -> tuple[Tensor, LeakyState]:
        """
        Compute one time step of the layer, for streaming: :meth:`SingleSpikeLeaky.step` on the
        current of the linear layer.

        :param input_: dense spikes of one step, of shape `(batch, in_features)`
        :type input_: torch.Tensor
        :param state: the state that the last step returned. Defaults to None, which starts a
            sample
        :type state: LeakyState, optional
        :return: dense spikes of shape `(batch, out_features)`, and the state for the next step
        :rtype: tuple(torch.Tensor, LeakyState)
        :raises ValueError, TypeError: as :meth:`SingleSpikeLeaky.step`
        :raises RuntimeError: the layer has delays
        """
        if self.delay is not None:
            raise RuntimeError(
                "step() of a SingleSpikeLinear does not support delays, which need the spikes of "
                "earlier steps: call the layer with the whole sequence"
            )
        return super().step(self.dense_current(input_), state)

    def extra_repr(self) -> str:
        """The options that decide what the layer computes."""
        sizes = f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
        delays = ""
        if self.delay is not None:
            delays = f", learn_delay={self.learn_delay}, max_delay={self.max_delay}"
        return f"{sizes}{delays}, {super().extra_repr()}"
