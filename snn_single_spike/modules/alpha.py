"""The single-spike form of :class:`snntorch.Alpha`."""

from __future__ import annotations

from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from ..backends._compiling import is_traced
from ..backends._decay import clip_decay
from ..ops.validation import check_state
from ..spikes.lazy import materialize
from ._base import SingleSpikeNeuron

__all__ = ["SingleSpikeAlpha"]


class SingleSpikeAlpha(SingleSpikeNeuron, snn.Alpha):
    """
    Alpha membrane neuron that spikes at most once per sample, over a whole sequence in one
    call. The constructor takes the arguments of :class:`snntorch.Alpha`.

    .. math::

            I_{\\rm exc}[t] = αI_{\\rm exc}[t-1] + I_{\\rm in}[t] \\\\
            I_{\\rm inh}[t] = βI_{\\rm inh}[t-1] - I_{\\rm in}[t] \\\\
            U[t] = τ_{α}(I_{\\rm exc}[t] + I_{\\rm inh}[t]) \\\\
            S[t] = 1 \\text{ at the first } t \\text{ with } U[t] > U_{\\rm thr}, \\text{ else } 0

    with :math:`τ_{α} = 1 + \\log α / (\\log β - \\log α)`. The reset acts once, one step after
    the spike. `"zero"` sets all states to zero. `"subtract"` acts as in snnTorch's Alpha: the
    threshold is subtracted from the excitatory current, the inhibitory current is set to zero,
    and its last value is added to the membrane of that step.

    Spikes up to the first spike, and states up to the step after the spike, equal the spikes and
    states of :class:`snntorch.Alpha`. Before the first spike the neuron is linear in its input,
    as in Taylor, King and Harper, arXiv:2205.15286.

    Example::

        lif = SingleSpikeAlpha(alpha=0.9, beta=0.8)          # was snn.Alpha(...)
        spk, syn_exc, syn_inh, mem = lif(current)            # (time, batch, features)

    :param alpha: decay rate per step of the excitatory current, greater than beta. Clipped
        between 0 and 1. A number, or a tensor that broadcasts to the features
    :type alpha: float or torch.tensor

    :param beta: decay rate per step of the inhibitory current, less than 1. Clipped between 0
        and 1. A number, or a tensor that broadcasts to the features
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

    :param learn_alpha: make alpha a parameter. Training must keep alpha above beta. (snnTorch 1.0
        raises for `learn_alpha=True`.) Defaults to False
    :type learn_alpha: bool, optional

    :param learn_beta: make beta a parameter. Defaults to False
    :type learn_beta: bool, optional

    :param learn_threshold: make threshold a parameter. Defaults to False
    :type learn_threshold: bool, optional

    :param reset_mechanism: "zero", "subtract" or "none". Defaults to "zero"
    :type reset_mechanism: str, optional

    :param state_quant: must be False: quantization makes the membrane non-linear in its input
    :type state_quant: bool, optional

    :param output: if True, the layer returns spikes and states also with `init_hidden=True`.
        Defaults to False
    :type output: bool, optional

    :param gradient: gradient rule, see :func:`snn_single_spike.functional.single_spike_leaky`.
        Defaults to "masked"
    :type gradient: str, optional, keyword only

    :param backend: implementation, see :mod:`snn_single_spike.backends`. Defaults to "auto"
    :type backend: str, optional, keyword only

    Inputs: \\input_, syn_exc_0, syn_inh_0, mem_0
        - **input_** of shape `(time, batch, *features)`: the whole sequence; float32,
          float64, float16 or bfloat16
        - **syn_exc_0**, **syn_inh_0**, **mem_0** of shape `(batch, *features)`: states before
          the first step, zeros by default. The currents determine the membrane, so mem_0 has no
          effect

    Outputs: spk, syn_exc, syn_inh, mem
        - **spk**, **syn_exc**, **syn_inh**, **mem** of shape `(time, batch, *features)`, type
          of the input: spikes, synaptic currents and membrane at every step. With
          `init_hidden=True` the layer returns the spikes only, unless `output=True`

    After a call `self.syn_exc`, `self.syn_inh` and `self.mem` hold the states of the last step,
    detached.

    :raises ValueError: alpha is not greater than beta, or beta is 1; else as
        :class:`SingleSpikeLeaky`
    :raises TypeError, RuntimeError: as :class:`SingleSpikeLeaky`
    """

    _continues = False

    alpha: Tensor

    def _constructor_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        # snnTorch would replace the parameter by a clipped tensor, and raise.
        self._learns_alpha = given["learn_alpha"]
        return given | {"learn_alpha": False}

    def _init_single_spike(
        self, gradient: str, backend: str, refractory: int | None = None
    ) -> None:
        if self.__dict__.pop("_learns_alpha", False):
            clipped = self.alpha
            del self.alpha
            self.alpha = nn.Parameter(clipped)
        super()._init_single_spike(gradient, backend, refractory)

    def forward(
        self,
        input_: Tensor,
        syn_exc: Tensor | None = None,
        syn_inh: Tensor | None = None,
        mem: Tensor | None = None,
    ) -> Any:
        input_ = materialize(input_, self._get_name())
        states = self._initial(input_, syn_exc=syn_exc, syn_inh=syn_inh, mem=mem)
        check_state("mem", states["mem"], input_)  # mem has no effect
        result = self._run(
            input_,
            alpha=self.alpha,
            gain=self._gain(),
            syn=states["syn_exc"],
            inh=states["syn_inh"],
        )
        if result.mem is None:
            return result.spikes
        return result.spikes, result.syn, result.inh, result.mem

    def _gain(self) -> Tensor:
        """tau_alpha, the factor of the difference of the currents, as snnTorch computes it."""
        alpha, beta = torch.log(clip_decay(self.alpha)), torch.log(clip_decay(self.beta))
        gain = alpha / (beta - alpha) + 1
        if gain.device.type == "cpu" and not is_traced() and gain.isnan().any():
            raise ValueError(
                "alpha and beta are equal, both at or above 1, or NaN, but the membrane of Alpha "
                "requires alpha above beta, and beta below 1: keep both so in training"
            )
        return gain

    def _integrated(self) -> tuple[str, ...]:
        return "mem", "syn_exc", "syn_inh"
