"""The single-spike form of :class:`snntorch.Lapicque`."""

from __future__ import annotations

import functools
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from ..backends._types import state_dtype
from ..ops.scaled import scaled
from ..ops.validation import check_parameter
from ..spikes.lazy import materialize
from ._base import SingleSpikeNeuron
from .state import LeakyState

__all__ = ["SingleSpikeLapicque"]


# The permitted combinations of given beta, R and C
_ENOUGH = {(True, False, False), (False, True, True), (True, True, False), (True, False, True)}


class SingleSpikeLapicque(SingleSpikeNeuron, snn.Lapicque):
    """
    Lapicque's RC circuit as a neuron that spikes at most once per sample, over a whole
    sequence in one call. The constructor takes the arguments of :class:`snntorch.Lapicque`.

    .. math::

            U[t] = \\Big(1 - \\frac{Δt}{RC}\\Big)U[t-1] + \\frac{Δt}{C}I_{\\rm in}[t] - R[t] \\\\
            S[t] = 1 \\text{ at the first } t \\text{ with } U[t] > U_{\\rm thr}, \\text{ else } 0

    The reset acts once, one step after the spike: `"subtract"` subtracts the threshold from the
    membrane, `"zero"` sets the membrane to zero. Spikes up to the first spike, and the membrane
    up to the step after the spike, equal the spikes and membrane of :class:`snntorch.Lapicque`.
    As in snnTorch, the decay is the Euler step 1 - Δt/RC, not beta itself, and is not clipped.
    If R or Δt is not 1, the layer multiplies the factors of the input with each other first, and
    the last bit of the membrane may differ. Before the first spike the neuron is linear in its
    input, as in Taylor, King and Harper, arXiv:2205.15286.

    Example::

        lif = SingleSpikeLapicque(R=5, C=1e-3, time_step=1e-3)  # was snn.Lapicque(...)
        spk, mem = lif(current)                                 # (time, batch, features)

    Pass two of beta, R and C, or beta alone. The third follows from :math:`β = e^{-Δt/RC}`. If
    beta is passed alone, R is 1.

    :param beta: membrane decay rate per step: a number, or a tensor that broadcasts to the
        features. Defaults to False (computed from R and C)
    :type beta: float or torch.tensor, optional

    :param R: resistance: a number, or a tensor that broadcasts to the features. Defaults to
        False (computed from beta and C)
    :type R: float or torch.tensor, optional

    :param C: capacitance: a number, or a tensor that broadcasts to the features. Defaults to
        False (computed from beta and R)
    :type C: float or torch.tensor, optional

    :param time_step: duration Δt of a step, in the unit of RC. Defaults to 1
    :type time_step: float, optional

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

    :param learn_beta: make beta a parameter. Requires `beta`. Every call computes C or R from the
        current beta. (snnTorch 1.0 keeps the initial C or R.) Defaults to False
    :type learn_beta: bool, optional

    :param learn_threshold: make threshold a parameter. Defaults to False
    :type learn_threshold: bool, optional

    :param reset_mechanism: "subtract", "zero" or "none". Defaults to "subtract"
    :type reset_mechanism: str, optional

    :param state_quant: must be False: quantization makes the membrane non-linear in its input
    :type state_quant: bool, optional

    :param output: if True, the layer returns spikes and membrane also with `init_hidden=True`.
        Defaults to False
    :type output: bool, optional

    :param gradient: gradient rule, see :func:`snn_single_spike.functional.single_spike_leaky`.
        Defaults to "masked"
    :type gradient: str, optional, keyword only

    :param backend: implementation, see :mod:`snn_single_spike.backends`. Defaults to "auto"
    :type backend: str, optional, keyword only

    :param refractory: as in :class:`SingleSpikeLeaky`; 0 is :class:`snntorch.Lapicque` itself.
        Defaults to None: at most one spike
    :type refractory: int, optional, keyword only

    Inputs: \\input_, mem_0
        - **input_** of shape `(time, batch, *features)`: the whole sequence; float32,
          float64, float16 or bfloat16
        - **mem_0** of shape `(batch, *features)`: membrane before the first step, zeros by
          default
        - **state** by keyword, as in :class:`SingleSpikeLeaky`

    Outputs: spk, mem
        - **spk**, **mem** of shape `(time, batch, *features)`, type of the input: spikes and
          membrane at every step. With `init_hidden=True` the layer returns the spikes only,
          unless `output=True`

    After a call `self.mem` holds the membrane of the last step, detached.

    :raises ValueError: too few or too many of beta, R and C, or `learn_beta=True` without beta;
        else as :class:`SingleSpikeLeaky`
    :raises TypeError, RuntimeError: as :class:`SingleSpikeLeaky`
    """

    R: Tensor
    C: Tensor
    time_step: Tensor
    _derived = "C"  # the parameter that is computed from a learned beta

    def _constructor_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        beta, R, C = given["beta"], given["R"], given["C"]
        found = tuple(value is not False for value in (beta, R, C))
        if found not in _ENOUGH:
            raise ValueError(
                f"beta={beta!r}, R={R!r}, C={C!r} do not define the circuit: pass beta alone, or "
                "two of the three"
            )
        if given["learn_beta"] and beta is False:
            raise ValueError("learn_beta=True requires beta: pass beta in place of R or C")
        if beta is not False and (torch.as_tensor(beta) <= 0).any():
            raise ValueError(f"beta={beta!r} must be greater than 0: beta=0 means RC=0")
        for name in ("R", "C"):
            if given[name] is not False and (torch.as_tensor(given[name]) == 0).any():
                raise ValueError(
                    f"{name}={given[name]!r} must not be 0: the membrane divides by RC"
                )
        return given

    def _lapicque_cases(self, time_step, beta, R, C) -> None:
        # snnTorch's constructor calls this method. snnTorch's version supports neither per-neuron
        # values nor a learned beta next to R.
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
        """Update C or R from a learned beta."""
        if isinstance(self.beta, nn.Parameter):
            setattr(self, self._derived, self._from_beta().detach())

    def _from_beta(self) -> Tensor:
        other = self.R if self._derived == "C" else self.C
        return self.time_step / (other * torch.log(1 / self.beta))

    def forward(
        self, input_: Tensor, mem: Tensor | None = None, *, state: LeakyState | None = None
    ) -> Any:
        input_ = materialize(input_, self._get_name())
        states = self._initial(input_, state, mem=mem)
        circuit = {"R": self.R, "C": self.C}
        for name, value in circuit.items():
            check_parameter(name, value, input_)
        if isinstance(self.beta, nn.Parameter):
            check_parameter("beta", self.beta, input_)
            circuit[self._derived] = self._from_beta()
        R, C = circuit["R"], circuit["C"]
        # The factors are rounded as in snnTorch, and then multiplied into one.
        wide = state_dtype(input_.dtype)
        factors = (R, 1 / (R * C), self.time_step)
        scale = functools.reduce(torch.mul, (factor.to(wide) for factor in factors))
        result = self._run(
            scaled(input_.to(wide), scale),
            input_.dtype,
            state,
            beta=1 - self.time_step / (R * C),
            clamp=False,
            **states,
        )
        return result.spikes if result.mem is None else (result.spikes, result.mem)
