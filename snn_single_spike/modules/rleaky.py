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
    Leaky integrate-and-fire neuron whose spike is fed back to itself, and which spikes at most
    once per sample, over a whole sequence in one call. Takes the constructor arguments of
    :class:`snntorch.RLeaky`, with `all_to_all=False`.

    .. math::

            U[t] = βU[t-1] + I_{\\rm in}[t] + V S[t-1] - R[t] \\\\
            S[t] = 1 \\text{ at the first } t \\text{ with } U[t] > U_{\\rm thr}, \\text{ else } 0

    Feedback and reset act once, one step after the spike: `"subtract"` takes the threshold off
    the membrane, `"zero"` sets it to zero, feedback included. Spikes up to and including the
    first, and the membrane up to the step after it, are those of :class:`snntorch.RLeaky`.
    Gradients pass through the feedback by the gradient rule; under `"spike_time"` the step that
    it arrives at is a constant. Before the first spike the neuron is linear in its input, as in
    Taylor, King and Harper, arXiv:2205.15286.

    Example::

        lif = SingleSpikeRLeaky(beta=0.9, V=0.5, all_to_all=False)  # was snn.RLeaky(...)
        spk, mem = lif(current)                                     # (time, batch, features)

    :param beta: membrane potential decay rate per step. Clipped between 0 and 1 during the
        forward pass. A number, or a tensor that broadcasts to the features
    :type beta: float or torch.tensor

    :param V: weight of the feedback, likewise. Defaults to 1
    :type V: float or torch.tensor, optional

    :param all_to_all: must be False (snnTorch's default is True): feedback to other neurons
        makes every step depend on all spikes of the last
    :type all_to_all: bool

    :param linear_features: must be None, it belongs to `all_to_all=True`
    :param conv2d_channels: must be None, likewise
    :param kernel_size: must be None, likewise

    :param threshold: membrane above which (strictly) a neuron fires, a number or one value
        per neuron. Defaults to 1
    :type threshold: float or torch.tensor, optional

    :param spike_grad: surrogate gradient, one of :mod:`snntorch.surrogate`; a function of the
        user's own cannot be differentiated inside the feedback, and is refused except under
        `gradient="spike_time"`. Defaults to None (ATan)
    :type spike_grad: Callable, optional

    :param surrogate_disable: spikes carry no gradient. Defaults to False
    :type surrogate_disable: bool, optional

    :param init_hidden: return the spikes only. Defaults to False
    :type init_hidden: bool, optional

    :param inhibition: not supported, must be False: it couples neurons at every step

    :param learn_beta: make beta a parameter. Defaults to False
    :type learn_beta: bool, optional

    :param learn_threshold: make threshold a parameter. Defaults to False
    :type learn_threshold: bool, optional

    :param learn_recurrent: make V a parameter. Defaults to True
    :type learn_recurrent: bool, optional

    :param reset_mechanism: "subtract", "zero" or "none". Defaults to "subtract"
    :type reset_mechanism: str, optional

    :param state_quant: not supported, must be False: it makes the membrane non-linear

    :param output: return spikes and membrane although `init_hidden=True`. Defaults to False
    :type output: bool, optional

    :param reset_delay: must be True: the reset comes one step after the spike

    :param gradient: gradient rule, see :func:`snn_single_spike.functional.single_spike_leaky`.
        Defaults to "masked"
    :type gradient: str, optional, keyword only

    :param backend: implementation, see :mod:`snn_single_spike.backends`. Defaults to "auto"
    :type backend: str, optional, keyword only

    Inputs: \\input_, spk_0, mem_0
        - **input_** of shape `(time, batch, *features)`: the whole sequence; float32,
          float64, float16 or bfloat16
        - **spk_0** of shape `(batch, *features)`: spikes that are fed back at the first step,
          zeros by default; they do not count as the one spike of the sample
        - **mem_0** of shape `(batch, *features)`: membrane before the first step, zeros by
          default

    Outputs: spk, mem
        - **spk**, **mem** of shape `(time, batch, *features)`, type of the input. With
          `init_hidden=True` only the spikes are returned, unless `output=True`

    After a call `self.spk` and `self.mem` are those of the last step, detached.

    :raises ValueError: also for `all_to_all=True`, and for a surrogate of the user's own
    :raises TypeError, RuntimeError: as :class:`SingleSpikeLeaky`
    """

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
        """Loading and casting can part V from its second name, which snnTorch's module reads."""
        if self.recurrent.V is not self.V:
            self.recurrent.V = self.V
