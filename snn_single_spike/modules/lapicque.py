"""The single-spike form of :class:`snntorch.Lapicque`."""

from __future__ import annotations

import functools
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from ..backends._types import state_dtype
from ..ops.validation import check_parameter
from ..spikes.lazy import materialize
from ._base import SingleSpikeNeuron

__all__ = ["SingleSpikeLapicque"]


# Which of beta, R and C are given
_ENOUGH = {(True, False, False), (False, True, True), (True, True, False), (True, False, True)}


class SingleSpikeLapicque(SingleSpikeNeuron, snn.Lapicque):
    """
    Lapicque's RC circuit as a neuron that spikes at most once per sample, over a whole
    sequence in one call. Takes the constructor arguments of :class:`snntorch.Lapicque`.

    .. math::

            U[t] = \\Big(1 - \\frac{Δt}{RC}\\Big)U[t-1] + \\frac{Δt}{C}I_{\\rm in}[t] - R[t] \\\\
            S[t] = 1 \\text{ at the first } t \\text{ with } U[t] > U_{\\rm thr}, \\text{ else } 0

    The reset acts once, one step after the spike: `"subtract"` takes the threshold off the
    membrane, `"zero"` sets it to zero. Spikes up to and including the first, and the membrane up
    to the step after it, are those of :class:`snntorch.Lapicque`; as there, the decay is the
    Euler step 1 - Δt/RC, not beta itself, and is not clipped. Where R or Δt is not 1, the
    factors of the input are multiplied with each other first, so that the last bit of the
    membrane may differ. Before the first spike the neuron is linear in its input, as in Taylor,
    King and Harper, arXiv:2205.15286.

    Example::

        lif = SingleSpikeLapicque(R=5, C=1e-3, time_step=1e-3)  # was snn.Lapicque(...)
        spk, mem = lif(current)                                 # (time, batch, features)

    Two of beta, R and C, or beta alone, must be given; then
    :math:`β = e^{-Δt/RC}`, and R is 1 where only beta is given.

    :param beta: membrane decay rate per step, a number or a tensor that broadcasts to the
        features. Defaults to False (from R and C)
    :type beta: float or torch.tensor, optional

    :param R: resistance, likewise. Defaults to False (from beta and C)
    :type R: float or torch.tensor, optional

    :param C: capacitance, likewise. Defaults to False (from beta and R)
    :type C: float or torch.tensor, optional

    :param time_step: Δt, in the unit of RC. Defaults to 1
    :type time_step: float, optional

    :param threshold: membrane above which (strictly) a neuron fires, a number or one value
        per neuron. Defaults to 1
    :type threshold: float or torch.tensor, optional

    :param spike_grad: surrogate gradient, one of :mod:`snntorch.surrogate` or any
        differentiable function of `mem - threshold`. Defaults to None (ATan)
    :type spike_grad: Callable, optional

    :param surrogate_disable: spikes carry no gradient. Defaults to False
    :type surrogate_disable: bool, optional

    :param init_hidden: return the spikes only. Defaults to False
    :type init_hidden: bool, optional

    :param inhibition: not supported, must be False: it couples neurons at every step

    :param learn_beta: make beta a parameter, which needs beta to be given; what was derived from
        it, C or R, then follows it at every call (snnTorch 1.0 keeps the value it began with).
        Defaults to False
    :type learn_beta: bool, optional

    :param learn_threshold: make threshold a parameter. Defaults to False
    :type learn_threshold: bool, optional

    :param reset_mechanism: "subtract", "zero" or "none". Defaults to "subtract"
    :type reset_mechanism: str, optional

    :param state_quant: not supported, must be False: it makes the membrane non-linear

    :param output: return spikes and membrane although `init_hidden=True`. Defaults to False
    :type output: bool, optional

    :param gradient: gradient rule, see :func:`snn_single_spike.functional.single_spike_leaky`.
        Defaults to "masked"
    :type gradient: str, optional, keyword only

    :param backend: implementation, see :mod:`snn_single_spike.backends`. Defaults to "auto"
    :type backend: str, optional, keyword only

    Inputs: \\input_, mem_0
        - **input_** of shape `(time, batch, *features)`: the whole sequence; float32,
          float64, float16 or bfloat16
        - **mem_0** of shape `(batch, *features)`: membrane before the first step, zeros by
          default

    Outputs: spk, mem
        - **spk**, **mem** of shape `(time, batch, *features)`, type of the input. With
          `init_hidden=True` only the spikes are returned, unless `output=True`

    After a call `self.mem` is the membrane of the last step, detached.

    :raises ValueError: also for too few or too many of beta, R and C, and for learn_beta
        without beta
    :raises TypeError, RuntimeError: as :class:`SingleSpikeLeaky`
    """

    R: Tensor
    C: Tensor
    time_step: Tensor
    _derived = "C"  # what follows a learned beta

    def _constructor_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        beta, R, C = given["beta"], given["R"], given["C"]
        found = tuple(value is not False for value in (beta, R, C))
        if found not in _ENOUGH:
            raise ValueError(
                f"beta={beta!r}, R={R!r}, C={C!r}: pass beta alone, or two of the three; each "
                "follows from the other two"
            )
        if given["learn_beta"] and beta is False:
            raise ValueError("learn_beta=True needs beta: pass beta in the place of R or C")
        if beta is not False and (torch.as_tensor(beta) <= 0).any():
            raise ValueError(f"beta={beta!r} must be greater than 0: RC would be 0")
        for name in ("R", "C"):
            if given[name] is not False and (torch.as_tensor(given[name]) == 0).any():
                raise ValueError(
                    f"{name}={given[name]!r} must not be 0: the membrane divides by RC"
                )
        return given

    def _lapicque_cases(self, time_step, beta, R, C) -> None:
        # Called by snnTorch's constructor. Its own takes neither per-neuron values nor a learned
        # beta next to R.
        self.register_buffer("time_step", torch.as_tensor(time_step))
        self.register_buffer("R", torch.as_tensor(1 if R is False else R))
        self.register_buffer("C", torch.as_tensor(1 if C is False else C))
        if beta is False:
            rate = -self.time_step / (self.R * self.C)
            self.register_buffer("beta", torch.exp(torch.ones(1) * rate))
        elif C is False:
            self.C = self._from_beta().detach()
        else:
            self._derived = "R"
            self.R = self._from_beta().detach()

    def _sync_with_snntorch(self) -> None:
        """C or R, which every call derives from a learned beta."""
        if isinstance(self.beta, nn.Parameter):
            setattr(self, self._derived, self._from_beta().detach())

    def _from_beta(self) -> Tensor:
        other = self.R if self._derived == "C" else self.C
        return self.time_step / (other * torch.log(1 / self.beta))

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        input_ = materialize(input_, self._get_name())
        states = self._initial(input_, mem=mem)
        circuit = {"R": self.R, "C": self.C}
        for name, value in circuit.items():
            check_parameter(name, value, input_)
        if isinstance(self.beta, nn.Parameter):
            check_parameter("beta", self.beta, input_)
            circuit[self._derived] = self._from_beta()
        R, C = circuit["R"], circuit["C"]
        # The factors are rounded where snnTorch rounds them; what is left is one product.
        state = state_dtype(input_.dtype)
        factors = (R, 1 / (R * C), self.time_step)
        scale = functools.reduce(torch.mul, (factor.to(state) for factor in factors))
        result = self._run(
            input_.to(state) * scale,
            input_.dtype,
            beta=1 - self.time_step / (R * C),
            clamp=False,
            **states,
        )
        return result.spikes if result.mem is None else (result.spikes, result.mem)
