"""The single-spike form of :class:`snntorch.RLeaky` with one-to-one feedback."""

from __future__ import annotations

from typing import Any

import snntorch as snn
import torch
from torch import Tensor

from ..ops.validation import check_parameter, check_state
from ..spikes.lazy import materialize
from ._base import SingleSpikeNeuron

__all__ = ["SingleSpikeRLeaky"]


class SingleSpikeRLeaky(SingleSpikeNeuron, snn.RLeaky):
    """
    Leaky integrate-and-fire neuron with feedback of its spike, which spikes at most once per
    sample, over a whole sequence in one call. The constructor takes the arguments of
    :class:`snntorch.RLeaky`, with `all_to_all=False`.

    .. math::

            U[t] = βU[t-1] + I_{\\rm in}[t] + V S[t-1] - R[t] \\\\
            S[t] = 1 \\text{ at the first } t \\text{ with } U[t] > U_{\\rm thr}, \\text{ else } 0

    Feedback and reset act once, one step after the spike: `"subtract"` subtracts the threshold
    from the membrane, `"zero"` sets the membrane to zero, feedback included. Spikes up to the
    first spike, and the membrane up to the step after the spike, equal the spikes and membrane of
    :class:`snntorch.RLeaky`. Gradients pass through the feedback by the gradient rule. Under
    `"spike_time"` the step at which the feedback arrives is a constant. Before the first spike
    the neuron is linear in its input, as in Taylor, King and Harper, arXiv:2205.15286.

    Example::

        lif = SingleSpikeRLeaky(beta=0.9, V=0.5, all_to_all=False)  # was snn.RLeaky(...)
        spk, mem = lif(current)                                     # (time, batch, features)

    :param beta: membrane potential decay rate per step. Clipped between 0 and 1 during the
        forward pass. A number, or a tensor that broadcasts to the features
    :type beta: float or torch.tensor

    :param V: weight of the feedback: a number, or a tensor that broadcasts to the features.
        Defaults to 1
    :type V: float or torch.tensor, optional

    :param all_to_all: must be False (snnTorch's default is True): with feedback to other neurons
        every step depends on all spikes of the step before
    :type all_to_all: bool

    :param linear_features: must be None: snnTorch uses this argument with `all_to_all=True` only
    :type linear_features: int, optional

    :param conv2d_channels: must be None: snnTorch uses this argument with `all_to_all=True` only
    :type conv2d_channels: int, optional

    :param kernel_size: must be None: snnTorch uses this argument with `all_to_all=True` only
    :type kernel_size: int, optional

    :param threshold: a neuron fires at the first step where its membrane is strictly above the
        threshold: a number, or a tensor that broadcasts to the features. Defaults to 1
    :type threshold: float or torch.tensor, optional

    :param spike_grad: surrogate gradient: a surrogate of :mod:`snntorch.surrogate`. A custom
        function is not supported, except with `gradient="spike_time"`. Defaults to None (ATan)
    :type spike_grad: Callable, optional

    :param surrogate_disable: if True, spikes carry no gradient. Defaults to False
    :type surrogate_disable: bool, optional

    :param init_hidden: if True, the layer returns the spikes only. Defaults to False
    :type init_hidden: bool, optional

    :param inhibition: must be False: inhibition couples neurons at every step
    :type inhibition: bool, optional

    :param learn_beta: make beta a parameter. Defaults to False
    :type learn_beta: bool, optional

    :param learn_threshold: make threshold a parameter. Defaults to False
    :type learn_threshold: bool, optional

    :param learn_recurrent: make V a parameter. Defaults to True
    :type learn_recurrent: bool, optional

    :param reset_mechanism: "subtract", "zero" or "none". Defaults to "subtract"
    :type reset_mechanism: str, optional

    :param state_quant: must be False: quantization makes the membrane non-linear in its input
    :type state_quant: bool, optional

    :param output: if True, the layer returns spikes and membrane also with `init_hidden=True`.
        Defaults to False
    :type output: bool, optional

    :param reset_delay: must be True: the reset comes one step after the spike
    :type reset_delay: bool, optional

    :param gradient: gradient rule, see :func:`snn_single_spike.functional.single_spike_leaky`.
        Defaults to "masked"
    :type gradient: str, optional, keyword only

    :param backend: implementation, see :mod:`snn_single_spike.backends`. Defaults to "auto"
    :type backend: str, optional, keyword only

    Inputs: \\input_, spk_0, mem_0
        - **input_** of shape `(time, batch, *features)`: the whole sequence; float32,
          float64, float16 or bfloat16
        - **spk_0** of shape `(batch, *features)`: spikes that are fed back at the first step,
          zeros by default. These spikes do not count as the spike of the sample
        - **mem_0** of shape `(batch, *features)`: membrane before the first step, zeros by
          default

    Outputs: spk, mem
        - **spk**, **mem** of shape `(time, batch, *features)`, type of the input: spikes and
          membrane at every step. With `init_hidden=True` the layer returns the spikes only,
          unless `output=True`

    After a call `self.spk` and `self.mem` hold spikes and membrane of the last step, detached.

    :raises ValueError: `all_to_all=True`, or a custom surrogate; else as
        :class:`SingleSpikeLeaky`
    :raises TypeError, RuntimeError: as :class:`SingleSpikeLeaky`
    """

    _continues = False

    V: Tensor
    spk: Tensor

    def forward(self, input_: Tensor, spk: Tensor | None = None, mem: Tensor | None = None) -> Any:
        input_ = materialize(input_, self._get_name())
        states = self._initial(input_, spk=spk, mem=mem)
        before, dtype = check_state("spk", states.pop("spk"), input_), input_.dtype
        if before is not None:
            weight = check_parameter("V", self.V, input_)
            weight = weight.expand(input_.shape[2:].numel()).view(input_.shape[2:])
            input_ = input_.to(weight.dtype)
            fed_back = weight * before.view(input_.shape[1:])
            input_ = torch.cat((input_[:1] + fed_back, input_[1:]))
        result = self._run(input_, dtype, feedback=self.V, **states)
        if result.spikes is not None and not torch.compiler.is_compiling():
            self.spk = result.spikes[-1].detach().clone()  # not the whole recording
            self._sync_with_snntorch()
        return result.spikes if result.mem is None else (result.spikes, result.mem)

    def _sync_with_snntorch(self) -> None:
        """Let snnTorch's module `recurrent` hold V again, after V was loaded or cast."""
        if self.recurrent.V is not self.V:
            self.recurrent.V = self.V
