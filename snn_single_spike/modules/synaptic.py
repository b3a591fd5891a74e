"""The single-spike form of :class:`snntorch.Synaptic`."""

from __future__ import annotations

from typing import Any

import snntorch as snn
from torch import Tensor

from ..spikes.lazy import materialize
from ._base import SingleSpikeNeuron
from .state import LeakyState

__all__ = ["SingleSpikeSynaptic"]


class SingleSpikeSynaptic(SingleSpikeNeuron, snn.Synaptic):
    """
    Leaky integrate-and-fire neuron with a synaptic current, which spikes at most once per
    sample, over a whole sequence in one call. The constructor takes the arguments of
    :class:`snntorch.Synaptic`.

    .. math::

            I_{\\rm syn}[t] = αI_{\\rm syn}[t-1] + I_{\\rm in}[t] \\\\
            U[t] = βU[t-1] + I_{\\rm syn}[t] - R[t] \\\\
            S[t] = 1 \\text{ at the first } t \\text{ with } U[t] > U_{\\rm thr}, \\text{ else } 0

    The reset R acts once, on the membrane, one step after the spike: `"subtract"` subtracts the
    threshold, `"zero"` sets the membrane to zero. Spikes up to the first spike, and states up to
    the step after the spike, equal the spikes and states of :class:`snntorch.Synaptic`. Before
    the first spike the neuron is linear in its input, as in Taylor, King and Harper,
    arXiv:2205.15286.

    Example::

        lif = SingleSpikeSynaptic(alpha=0.9, beta=0.8)       # was snn.Synaptic(...)
        spk, syn, mem = lif(current)                         # (time, batch, features)

    :param alpha: synaptic current decay rate per step. Clipped between 0 and 1 during the
        forward pass. A number, or a tensor that broadcasts to the features
    :type alpha: float or torch.tensor

    :param beta: membrane potential decay rate per step. Clipped between 0 and 1 during the
        forward pass. A number, or a tensor that broadcasts to the features
    :type beta: float or torch.tensor

    :param threshold: a neuron fires at the first step where its membrane is strictly above the
        threshold: a number, or a tensor that broadcasts to the features. Defaults to 1
    :type threshold: float or torch.tensor, optional

    :param spike_grad: surrogate gradient: a surrogate of :mod:`snntorch.surrogate`, or any
        differentiable function of `mem - threshold`. Defaults to None (ATan)
    :type spike_grad: Callable, optional

    :param surrogate_disable: if True, spikes carry no gradient. Defaults to False
    :type surrogate_disable: bool, optional

    :param init_hidden: if True, the layer returns the spikes only. Defaults to False
    :type init_hidden: bool, optional

    :param inhibition: must be False: inhibition couples neurons at every step
    :type inhibition: bool, optional

    :param learn_alpha: make alpha a parameter. Defaults to False
    :type learn_alpha: bool, optional

    :param learn_beta: make beta a parameter. Defaults to False
    :type learn_beta: bool, optional

    :param learn_threshold: make threshold a parameter. Defaults to False
    :type learn_threshold: bool, optional

    :param reset_mechanism: "subtract", "zero" or "none". Defaults to "subtract"
    :type reset_mechanism: str, optional

    :param state_quant: must be False: quantization makes the membrane non-linear in its input
    :type state_quant: bool, optional

    :param output: if True, the layer returns spikes and states also with `init_hidden=True`.
        Defaults to False
    :type output: bool, optional

    :param reset_delay: must be True: the reset comes one step after the spike
    :type reset_delay: bool, optional

    :param gradient: gradient rule, see :func:`snn_single_spike.functional.single_spike_leaky`.
        Defaults to "masked"
    :type gradient: str, optional, keyword only

    :param backend: implementation, see :mod:`snn_single_spike.backends`. Defaults to "auto"
    :type backend: str, optional, keyword only

    :param refractory: as in :class:`SingleSpikeLeaky`; 0 is :class:`snntorch.Synaptic` itself.
        Defaults to None: at most one spike
    :type refractory: int, optional, keyword only

    Inputs: \\input_, syn_0, mem_0
        - **input_** of shape `(time, batch, *features)`: the whole sequence; float32,
          float64, float16 or bfloat16
        - **syn_0**, **mem_0** of shape `(batch, *features)`: synaptic current and membrane
          before the first step, zeros by default
        - **state** by keyword, as in :class:`SingleSpikeLeaky`

    Outputs: spk, syn, mem
        - **spk**, **syn**, **mem** of shape `(time, batch, *features)`, type of the input:
          spikes, synaptic current and membrane at every step. With `init_hidden=True` the layer
          returns the spikes only, unless `output=True`

    After a call `self.syn` and `self.mem` hold the states of the last step, detached.

    :raises ValueError, TypeError, RuntimeError: as :class:`SingleSpikeLeaky`
    """

    alpha: Tensor

    def forward(
        self,
        input_: Tensor,
        syn: Tensor | None = None,
        mem: Tensor | None = None,
        *,
        state: LeakyState | None = None,
    ) -> Any:
        input_ = materialize(input_, self._get_name())
        states = self._initial(input_, state, syn=syn, mem=mem)
        result = self._run(input_, None, state, alpha=self.alpha, **states)
        return result.spikes if result.mem is None else (result.spikes, result.syn, result.mem)

    def _integrated(self) -> tuple[str, ...]:
        return "mem", "syn"
