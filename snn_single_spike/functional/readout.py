"""The membrane that never fires, on a dense current."""

from __future__ import annotations

from torch import Tensor

from ..ops.readout import run_readout
from ..spikes.lazy import materialize

__all__ = ["leaky_readout"]


def leaky_readout(
    current: Tensor,
    beta: Tensor | float,
    *,
    mem: Tensor | None = None,
    reduction: str = "sum",
    backend: str = "auto",
) -> Tensor:
    """
    A leaky membrane that never fires, reduced over time as it is integrated.

    .. math::

            U[t] = \\text{clamp}(β, 0, 1) U[t-1] + I_{\\rm in}[t], \\qquad
            y = \\sum_t U[t], \\; \\max_t U[t] \\text{ or } U[T-1]

    The function does not write the membrane over time, and saves nothing of size T for the
    backward pass. With `"sum"` it is the readout of Taylor, King and Harper, arXiv:2205.15286.

    Example::

        scores = leaky_readout(current, beta=0.95)         # (T, B, 10) -> (B, 10)

    :param current: input current of shape `(T, B, *features)`; float32, float64, float16 or
        bfloat16. For spike times use :func:`linear_readout`
    :type current: torch.Tensor

    :param beta: decay rate per step, clipped between 0 and 1: a number, or a tensor that
        broadcasts to the features
    :type beta: float or torch.Tensor

    :param mem: membrane before the first step, of shape `(B, *features)`. Defaults to zeros
    :type mem: torch.Tensor, optional

    :param reduction: `"sum"`, `"max"` or `"last"` over time. The gradient of `"max"` goes to the
        first of equal maxima. Defaults to `"sum"`
    :type reduction: str, optional

    :param backend: as in :func:`single_spike_leaky`. Defaults to `"auto"`
    :type backend: str, optional

    :return: tensor of shape `(B, *features)`, type of the input
    :rtype: torch.Tensor

    :raises ValueError, TypeError, RuntimeError: as :func:`single_spike_leaky`
    """
    dense = materialize(current, "leaky_readout")
    return run_readout(dense, beta, mem=mem, reduction=reduction, backend=backend)
