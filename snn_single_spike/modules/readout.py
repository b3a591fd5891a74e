"""The output layer of arXiv:2205.15286, which never fires."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import backends
from ..functional import leaky_readout, linear_readout
from ..ops.neuron import run_single_spike
from ..ops.validation import REDUCTIONS, check_choice, check_not_nan, scaled
from ..spikes import LazyCurrent
from ..spikes.lazy import materialize, to_dense

__all__ = ["LeakyReadout"]


class LeakyReadout(nn.Module):
    """
    Leaky integrator that never fires: class scores from the membrane over time.

    .. math::

            U[t] = βU[t-1] + I_{\\rm in}[t], \\qquad
            y = c \\sum_t U[t], \\; c \\max_t U[t] \\text{ or } c \\, U[T-1]

    The reduction is fused into the integration, so the membrane over time is not stored. With
    `"sum"` it is the readout of Taylor, King and Harper, arXiv:2205.15286.

    Choose the scale c where scores saturate a cross entropy. One spike of weight w changes a sum
    over T steps by up to w T, so scores of some hundred are common, and most samples then have no
    gradient. :func:`snn_single_spike.init.readout_scale` computes a scale with which a spike of
    weight 1 changes a score by 1.

    Example::

        readout = LeakyReadout(beta=0.95, learn_beta=True)
        scores = readout(fc2(spk1))                  # (time, batch, 10) -> (batch, 10)
        loss = torch.nn.functional.cross_entropy(scores, targets)

    :param beta: decay rate per step, clipped between 0 and 1. A number, or a tensor that
        broadcasts to the features (one value per class)
    :type beta: float or torch.tensor

    :param learn_beta: make beta a parameter. Defaults to False
    :type learn_beta: bool, optional

    :param reduction: `"sum"`, `"max"` or `"last"` over time. None returns the membrane at every
        step. Defaults to `"sum"`
    :type reduction: str, optional, keyword only

    :param scale: factor c of the output: a number, or a tensor that broadcasts to the features.
        Defaults to 1
    :type scale: float or torch.tensor, optional, keyword only

    :param learn_scale: make the scale a parameter. Defaults to False
    :type learn_scale: bool, optional, keyword only

    :param backend: implementation, see :mod:`snn_single_spike.backends`. Defaults to "auto"
    :type backend: str, optional, keyword only

    Inputs: \\input_, mem_0
        - **input_** of shape `(time, batch, *features)`: float32, float64, float16 or bfloat16;
          or the :class:`snn_single_spike.spikes.LazyCurrent` that `nn.Linear` returns for spike
          times
        - **mem_0** of shape `(batch, *features)`: membrane before the first step, zeros by
          default

    Outputs: y of shape `(batch, *features)`, or `(time, batch, *features)` with `reduction=None`;
    type of the input

    :raises ValueError: `reduction` or `backend` is unknown, or beta or the scale contains NaN
    :raises ValueError, TypeError, RuntimeError: as
        :func:`snn_single_spike.functional.leaky_readout`
    """

    def __init__(
        self,
        beta: Tensor | float,
        learn_beta: bool = False,
        *,
        reduction: str | None = "sum",
        scale: Tensor | float = 1.0,
        learn_scale: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if reduction is not None:
            check_choice("reduction", reduction, (*REDUCTIONS, None))
        check_choice("backend", backend, ("auto", *backends.BACKENDS))
        check_not_nan("beta", beta)
        check_not_nan("scale", scale)
        beta = torch.as_tensor(beta)
        if learn_beta:
            self.beta = nn.Parameter(beta)
        else:
            self.register_buffer("beta", beta)
        self.scale: Tensor | float
        if learn_scale:
            self.scale = nn.Parameter(torch.as_tensor(scale))
        elif isinstance(scale, Tensor):
            self.register_buffer("scale", scale)
        else:
            self.scale = scale  # not in the state_dict
        self.reduction = reduction
        self.backend = backend

    def extra_repr(self) -> str:
        scale = f", scale={self.scale}" if isinstance(self.scale, int | float) else ""
        return f"reduction={self.reduction!r}{scale}, backend={self.backend!r}"

    def forward(self, input_: Any, mem: Tensor | None = None) -> Tensor:
        return scaled(self._reduced(input_, mem), self.scale)

    def _reduced(self, input_: Any, mem: Tensor | None) -> Tensor:
        how: dict[str, Any] = {"reduction": self.reduction, "backend": self.backend}
        if self.reduction is None:
            return self._membrane(input_, mem)
        if isinstance(input_, LazyCurrent) and mem is None:
            return linear_readout(*input_.linear(), self.beta, **how)
        return leaky_readout(materialize(input_, self._get_name()), self.beta, mem=mem, **how)

    def _membrane(self, input_: Any, mem: Tensor | None) -> Tensor:
        """The membrane at every step, (time, batch, *features)."""
        result = run_single_spike(
            to_dense(input_),
            self.beta,
            float("inf"),
            1.0,
            None,
            None,
            "masked",
            "none",
            mem=mem,
            want_spikes=False,
            backend=self.backend,
        )
        assert result.mem is not None
        return result.mem
