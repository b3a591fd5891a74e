"""The loss on the membrane of the output layer."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from ..backends._types import state_dtype
from ..ops.validation import (
    REDUCTIONS,
    check_choice,
    check_not_nan,
    check_recording,
    check_targets,
    not_classes,
    scaled,
)
from ..spikes.lazy import to_dense
from ._checks import BATCH_REDUCTIONS, check_class_weight

__all__ = ["ce_membrane_loss"]


class ce_membrane_loss:
    """
    Cross entropy on a membrane reduced over time: its sum, its maximum or its last value.

    With `"sum"` it is the readout loss of arXiv:2205.15286. With `"max"` it equals
    :class:`snntorch.functional.ce_max_membrane_loss`. Spikes of the output layer change this loss
    only through resets, so it also trains silent neurons.

    Example::

        loss_fn = losses.ce_membrane_loss("max")
        loss = loss_fn(mem_out, targets)                     # mem_out: (time, batch, classes)
        loss = loss_fn(LeakyReadout(0.95)(current), targets) # scores, already reduced

    :param reduction: over time: `"sum"`, `"max"` or `"last"`, as in
        :class:`snn_single_spike.LeakyReadout`. Defaults to `"sum"`
    :type reduction: str, optional

    :param weight: one weight per class, `(C,)`. The mean over the batch is the weighted mean, as
        in torch; snnTorch divides by the number of samples. Defaults to None
    :type weight: torch.Tensor, optional

    :param scale: factor of the scores before the cross entropy, a number or a tensor that
        broadcasts to `(B, C)`, as in :class:`snn_single_spike.LeakyReadout`. Defaults to 1
    :type scale: float or torch.Tensor, optional, keyword only

    :param batch_reduction: over the batch: `"mean"`, `"sum"` or `"none"` (snnTorch's
        `reduction`). Defaults to `"mean"`
    :type batch_reduction: str, optional, keyword only

    Inputs: mem_out, targets
        - **mem_out** of shape `(T, B, C)`: the membrane at every step; or of shape `(B, C)`:
          scores, which are not reduced
        - **targets** of shape `(B,)`: class indices

    Outputs: scalar, or `(B,)` with `batch_reduction="none"`; float32 or float64

    :raises ValueError: an unknown option, a wrong shape, `T = 0`, batches that differ, a class
        index out of range
    :raises TypeError: a membrane that is not floating-point, targets that are not integers
    """

    def __init__(
        self,
        reduction: str = "sum",
        weight: Tensor | None = None,
        *,
        scale: Tensor | float = 1.0,
        batch_reduction: str = "mean",
    ) -> None:
        if reduction in BATCH_REDUCTIONS and reduction not in REDUCTIONS:
            raise ValueError(
                f"reduction={reduction!r} is not a reduction over time: use 'sum', 'max' or "
                f"'last'. For the reduction over the batch use batch_reduction={reduction!r}"
            )
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("batch_reduction", batch_reduction, BATCH_REDUCTIONS)
        self.reduction = reduction
        check_not_nan("scale", scale)
        self.weight, self.scale = weight, scale
        self.batch_reduction = batch_reduction
        self.__name__ = type(self).__name__

    def __call__(self, mem_out: Tensor, targets: Tensor) -> Tensor:
        scores = self._scores(to_dense(mem_out))
        targets = check_targets(targets, scores)
        weight = check_class_weight(self.weight, scores)
        scores = scaled(scores, self.scale)
        return cross_entropy(scores, targets, weight, reduction=self.batch_reduction)

    def _scores(self, mem_out: Tensor) -> Tensor:
        if isinstance(mem_out, Tensor) and mem_out.dim() == 2:
            check_recording("mem_out", mem_out[None])
            return mem_out.to(state_dtype(mem_out.dtype))
        check_recording("mem_out", mem_out)
        if mem_out.dim() != 3:
            raise not_classes("mem_out", mem_out, " or (batch, classes)")
        state = state_dtype(mem_out.dtype)
        if self.reduction == "sum":
            return mem_out.sum(0, dtype=state)
        return (mem_out.max(0).values if self.reduction == "max" else mem_out[-1]).to(state)
