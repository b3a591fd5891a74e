"""The gradient to spikes as two factors. Operations without support receive the product."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_map

from ..backends._types import GradientFactors

At = Callable[[Tensor, Tensor], Tensor]
"""``at(steps, fired)`` computes (2, B, N) from steps (B, N), -1 for none: the gradient at one step
of each neuron, and at the step before it. The second one is read for neurons that fired only."""


_Result = TypeVar("_Result")


def held(parameter: Tensor) -> Tensor:
    """A parameter as a factored gradient reads it later: a copy if its own hooks may change it.

    Such hooks step an optimizer in the backward pass, as soon as the gradient of a parameter is
    complete. The layer before reads the factors after that.
    """
    owner = parameter if parameter._base is None else parameter._base  # a view shares its memory
    if type(owner) is Tensor and owner.is_leaf and owner.requires_grad:
        # A checkpoint returns other tensors than it was given, without their hooks.
        owner = get_gradient_edge(owner).node.variable  # type: ignore[attr-defined]
    return parameter.detach().clone() if owner._post_accumulate_grad_hooks else parameter


def _unchanged(
    reads: Sequence[Tensor], before: list[int], function: Callable[..., _Result], *arguments: Any
) -> _Result:
    """Call a function that reads tensors, unless they were changed in place since ``before``."""
    if [x._version for x in reads] != before:
        raise RuntimeError(
            "The weights or parameters of a layer were changed in place in the backward pass, and "
            "the gradient to the spikes that the layer reads is not computed yet: the layer before "
            "computes it from them. Step the optimizer after backward(), or in the hook of each "
            "parameter, parameter.register_post_accumulate_grad_hook(step)."
        )
    return function(*arguments)


class FactoredGradient(Tensor):
    """Gradient (T, B, N) to the spikes that a linear layer reads: its adjoint times its weights.

    The layer that returned the spikes multiplies the factors for a few samples at a time, or at its
    spike times only. Any other operation receives the dense product. The gradient to the spikes
    that a convolution reads is one factor without weights, which is computed for a few samples at a
    time. Then ``like`` is a tensor (..., N) of its type.

    ``reads`` are tensors of the layer that the factors read. They must not change before that.
    """

    factors: GradientFactors
    at: At | None
    """None if the gradient at some steps needs the product."""

    @staticmethod
    def __new__(
        cls,
        num_steps: int,
        batch: int,
        factors: GradientFactors,
        at: At | None,
        like: Tensor | None = None,
        reads: Sequence[Tensor] = (),
    ) -> FactoredGradient:
        if reads:
            check = functools.partial(_unchanged, reads, [x._version for x in reads])
            factors = factors._replace(rows=functools.partial(check, factors.rows))
            at = None if at is None else functools.partial(check, at)
        weight = factors.weight if like is None else like
        assert weight is not None
        new: FactoredGradient = Tensor._make_wrapper_subclass(
            cls, (num_steps, batch, weight.shape[-1]), dtype=weight.dtype, device=weight.device
        )
        new.factors, new.at = factors, at
        return new

    def to_dense(self) -> Tensor:  # type: ignore[override]
        return self.factors.to_dense(slice(0, self.shape[1]))

    def plus(self, other: FactoredGradient) -> FactoredGradient:
        """The sum of two gradients, as factors: the gradient of spikes that two layers read."""
        at, at_other = self.at, other.at
        both = None
        if at is not None and at_other is not None:
            both = lambda *steps: at(*steps) + at_other(*steps)  # noqa: E731
        factors = self.factors.plus(other.factors)
        num_steps, batch, units = self.shape
        like = torch.empty((0, units), dtype=self.dtype, device=self.device)
        return FactoredGradient(num_steps, batch, factors, both, like)

    def __coerce_same_metadata_as_tangent__(self, *expected: Any) -> Tensor:
        # The layer that returned the spikes may be compiled: it was traced with a dense gradient.
        return self.to_dense()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        function: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # Autograd sums the gradients of several layers that read the same spikes.
        if function is torch.ops.aten.add.Tensor and not kwargs:
            one, other = args
            if isinstance(one, FactoredGradient) and isinstance(other, FactoredGradient):
                return one.plus(other)

        if function._schema.is_mutable and isinstance(args[0], FactoredGradient):
            raise TypeError(
                f"{function} is not supported on the gradient of spike times: its dense tensor is "
                "rebuilt on every use. Use the operation that returns a new tensor."
            )

        def dense(x: Any) -> Any:
            return x.to_dense() if isinstance(x, FactoredGradient) else x

        return function(*tree_map(dense, args), **tree_map(dense, kwargs or {}))


def distinct_rows(gradient: Tensor) -> Tensor:
    """A gradient (T, ...) over time, or its one row (1, ...) if it is the same at every step.

    The gradient of a sum over time is an expanded tensor of one row. Reading this row T times costs
    nothing. Writing T copies would take as long as the whole backward pass.
    """
    # Strides are not final while a compiler traces.
    if not torch.compiler.is_compiling() and gradient.shape[0] > 1 and gradient.stride(0) == 0:
        return gradient[:1]
    return gradient


def rows_of(tensor: Tensor, weight: Tensor | None) -> GradientFactors:
    """A tensor (T or 1, B, O) as a gradient to spikes, or as its first factor."""
    return GradientFactors(lambda samples: tensor[:, samples].contiguous(), weight)


def factors_of(grad: Tensor) -> GradientFactors:
    """The factors of a gradient (T, B, O) to spikes. A dense gradient is a single factor."""
    if isinstance(grad, FactoredGradient):
        return grad.factors
    return rows_of(distinct_rows(grad), None)
