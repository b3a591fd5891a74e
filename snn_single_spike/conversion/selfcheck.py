"""Compares a model with its own loop over time with the author's loop, on a few samples.

The author's loop runs with snnTorch's neurons, held to one spike and one reset, or to the
refractory period that the model was converted with. Both run on copies, in float64: folding time
into the batch changes the rounding of matrix products, and a membrane near its threshold magnifies
that.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map

from ..modules._base import SingleSpikeNeuron
from ..spikes.lazy import LazyTensor
from .call import run_folded
from .chance import Generators
from .checks import BATCH_NORM, DROPOUT, ConversionError
from .copies import copy_model, unfold_neuron
from .steps import LoopRun

__all__ = ["compare_with_loop"]

_SAMPLES = 2
_TOLERANCE = 1e-4
_MAKES = {
    *(torch.zeros, torch.ones, torch.full, torch.empty, torch.eye, torch.linspace),
    *(torch.tensor, torch.rand, torch.randn, torch.normal),
}


class _InDouble(TorchFunctionMode):
    """Makes float64 of float32 wherever the code names it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        double = {torch.float32: torch.float64}
        kwargs = {
            key: double.get(x, x) if isinstance(x, torch.dtype) else x
            for key, x in (kwargs or {}).items()
        }
        if any(isinstance(x, torch.dtype) for x in args):
            args = [double.get(x, x) if isinstance(x, torch.dtype) else x for x in args]
        if func in _MAKES and kwargs.get("dtype") is None:
            made = func(*args, **kwargs)
            return made.double() if made.dtype == torch.float32 else made
        return func(*args, **kwargs)


def compare_with_loop(model: Any, loop: Any, folded: Any, args: Any, kwargs: Any) -> None:
    """Raise ConversionError if the author's loop gives other outputs or gradients.

    :param loop: the author's forward
    :param folded: the forward that runs all steps of the loop at once
    """
    decision = model._single_spike.decisions[model.training]
    batch = max(decision.loops[0], default=0)
    given = tree_map(lambda x: x.to_dense() if isinstance(x, LazyTensor) else x, (args, kwargs))
    tensors = [x for x in torch.utils._pytree.tree_leaves(given) if isinstance(x, Tensor)]
    generators = Generators({x.device for x in tensors}, ())
    samples = _few(given, tensors, batch)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = None
            for inputs in (samples, given):
                generators.rewind()
                try:
                    expected = _run_loop(model, loop, inputs)
                except Exception:  # such as a fixed batch size
                    continue
                break
            if expected is None:
                reason = "the author's loop does not run on a copy in float64"
            elif not generators.unchanged():
                reason = "forward draws random numbers, and a loop draws others at every step"
            else:
                whole = inputs is given
                difference = _difference(model, folded, inputs, whole, expected)
                if difference and _is_close_call(model, loop, folded, inputs, whole):
                    difference = ""
                reason = ""
    finally:
        generators.rewind()
    if reason:
        warnings.warn(
            f"the model was not compared with the author's loop: {reason}. Compare them yourself, "
            "or convert with check=False",
            stacklevel=2,
        )
    elif difference:
        raise ConversionError(
            f"{difference}. The steps of the loop depend on one another, or on the batch, in a way "
            "that the source does not show. Take the loop out of forward, so that forward computes "
            "one step and returns the spikes and the membrane of this step, and convert again"
        )


def _few(given: Any, tensors: list[Tensor], batch: int) -> Any:
    """The inputs of a few samples; all of them where the batch dimension is not clear."""
    dims = {id(x): [d for d, size in enumerate(x.shape) if size == batch] for x in tensors}
    if batch <= _SAMPLES or any(len(found) > 1 for found in dims.values()):
        return given

    def few(x: Any) -> Any:
        return x.narrow(dims[id(x)][0], 0, _SAMPLES) if dims.get(id(x)) else x

    return tree_map(few, given)


def _run_loop(model: Any, loop: Any, given: Any, noise: bool = False) -> Any:
    """Outputs and gradients of the author's loop."""
    new: Any = _double(model, noise)
    for part in [m for m in new.modules() if hasattr(m, "_rewritten")]:
        part.__class__ = type(part).__mro__[2]
    for neuron in [m for m in new.modules() if isinstance(m, SingleSpikeNeuron)]:
        refractory = neuron.refractory
        unfold_neuron(neuron)
        if refractory != 0:  # 0 is the author's neuron itself
            _hold_to_spikes(neuron, refractory)
    return _results(new, lambda args, kwargs: loop(new, *args, **kwargs), given)


def _run_folded(model: Any, folded: Any, given: Any, whole: bool, noise: bool) -> Any:
    new: Any = _double(model, noise)
    for neuron in new.modules():
        if hasattr(neuron, "spike_format"):
            neuron.spike_format = "dense"
    decision = model._single_spike.decisions[model.training]
    sizes = [size if whole else min(size, _SAMPLES) for size in decision.loops[0]]

    def call(args: Any, kwargs: Any) -> Any:
        time = new._single_spike.time
        run = LoopRun(new, time)
        if decision.expand:
            run = LoopRun(new, time, True, sizes, decision.loops[1])
        return run_folded(run, folded, args, kwargs)

    return _results(new, call, given)


def _double(model: Any, noise: bool) -> Any:
    """A copy in float64, without dropout, and with fixed statistics of BatchNorm."""
    new = copy_model(model, False)
    for module in new.modules():
        module._forward_hooks.clear()
        module._backward_hooks.clear()
        if isinstance(module, (*BATCH_NORM, DROPOUT)):
            module.training = False
    new.double()
    if noise:
        for i, parameter in enumerate(new.parameters()):
            wave = torch.arange(parameter.numel(), device=parameter.device).add(i).cos()
            parameter.data.mul_(1 + 1e-5 * wave.view(parameter.shape).to(parameter.dtype))
    return new


def _results(new: Any, call: Any, given: Any) -> Any:
    def double(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.detach().double() if x.is_floating_point() else x.detach()

    args, kwargs = tree_map(double, given)
    with _InDouble():
        out = call(args, kwargs)
    leaves, _ = tree_flatten_with_path(out, is_leaf=lambda x: isinstance(x, LazyTensor))
    named = [(keystr(k), x.to_dense() if isinstance(x, LazyTensor) else x) for k, x in leaves]
    loss: Any = 0
    for _, x in named:
        if isinstance(x, Tensor) and x.requires_grad and x.is_floating_point():
            weight = torch.arange(x.numel(), device=x.device, dtype=x.dtype).add(1).cos()
            loss = loss + (x * weight.view(x.shape)).sum()
    gradients: dict[str, Any] = {}
    if isinstance(loss, Tensor) and torch.is_grad_enabled():
        named_parameters = [(n, p) for n, p in new.named_parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, [p for _, p in named_parameters], allow_unused=True)
        gradients = dict(zip((n for n, _ in named_parameters), found, strict=True))
    return named, gradients


def _is_close_call(model: Any, loop: Any, folded: Any, given: Any, whole: bool) -> bool:
    """Whether a slight change of the weights removes a difference: a membrane at its threshold."""
    expected = _run_loop(model, loop, given, noise=True)
    return not _difference(model, folded, given, whole, expected, noise=True)


def _difference(
    model: Any, folded: Any, given: Any, whole: bool, expected: Any, noise: bool = False
) -> str:
    """How the folded model differs from the author's loop; "" if it does not."""
    try:
        named, gradients = _run_folded(model, folded, given, whole, noise)
    except Exception as error:
        return f"the author's loop runs on a few samples, and the converted model raises: {error}"
    right, right_gradients = expected
    if [name for name, _ in named] != [name for name, _ in right]:
        return f"the author's loop returns {len(right)} values, the converted one {len(named)}"
    for (name, mine), (_, theirs) in zip(named, right, strict=True):
        where = f"output {name}" if name else "the output"
        if not isinstance(theirs, Tensor) or not isinstance(mine, Tensor):
            if isinstance(theirs, Tensor) or isinstance(mine, Tensor) or mine != theirs:
                return f"{where} is {mine!r}, and {theirs!r} in the author's loop"
            continue
        if mine.shape != theirs.shape:
            return (
                f"{where} has shape {tuple(mine.shape)}, and {tuple(theirs.shape)} in the "
                "author's loop"
            )
        scale = theirs.detach().abs().double().nan_to_num().amax().item() if theirs.numel() else 0
        close = torch.isclose(
            mine.detach().double(),
            theirs.detach().double(),
            rtol=_TOLERANCE,
            atol=_TOLERANCE * max(scale, 1e-3),
            equal_nan=True,
        )
        if not close.all():
            first = tuple(close.logical_not().nonzero()[0].tolist())
            return f"{where} differs from that of the author's loop, first at index {first}"
    masked = all(getattr(m, "gradient", "masked") == "masked" for m in model.modules())
    if not (masked and model.training):
        return ""
    for name, theirs in right_gradients.items():
        mine = gradients.get(name)
        size = 0.0 if theirs is None else theirs.norm().item()
        gap = (0 if mine is None else mine) - (0 if theirs is None else theirs)
        gap = gap.norm().item() if isinstance(gap, Tensor) else 0.0
        if math.isfinite(size) and gap > _TOLERANCE * size + 1e-9:
            return f"the gradient of {name!r} differs from that of the author's loop"
    return ""


def _hold_to_spikes(neuron: SpikingNeuron, refractory: int | None) -> None:
    """Replace the functions of a neuron that read its threshold, for one forward pass.

    The neuron is silent for ``refractory`` steps after a spike, and for ever if that is None.
    """
    plain = type(neuron).fire
    silent: Tensor | float = 0.0  # number of silent steps to come
    now: Tensor | None = None

    def fire(mem: Tensor) -> Tensor:
        nonlocal silent, now
        spikes = plain(neuron, mem)
        silent = torch.as_tensor(silent).expand_as(mem)
        out = spikes * (silent <= 0)
        now = (out != 0).detach()
        silent = torch.where(now, math.inf if refractory is None else refractory, silent - 1)
        return out.to(mem.dtype)

    def mem_reset(mem: Tensor) -> Tensor:
        return torch.zeros_like(mem) if now is None else now.to(mem.dtype)

    vars(neuron)["fire"], vars(neuron)["mem_reset"] = fire, mem_reset
