"""The author's model, as the self-check runs it: a copy in float64, each neuron held to one spike.

With ``refractory`` a neuron is held to its refractory period, and 0 is the author's neuron itself.

Folding time into the batch changes the rounding of matrix products, and a membrane near its
threshold magnifies that. In float64 such differences are rare.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ...modules._base import SingleSpikeNeuron
from ..copies import copy_model, unfold_delay, unfold_neuron
from ..refusals.layers import is_delay
from ..refusals.state import is_own_state, mark_own_state
from ..source.users_code import is_users_code
from .same_draws import Place

__all__ = ["InDouble", "Layers", "double_copy", "make_author_s", "state_names"]

_MAKES = {
    *(torch.zeros, torch.ones, torch.full, torch.empty, torch.eye, torch.linspace),
    *(torch.tensor, torch.rand, torch.randn, torch.normal),
}


class InDouble(TorchFunctionMode):
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


def double_copy(model: Any, noise: bool = False) -> Any:
    """A copy of a converted model in float64, with fixed statistics of BatchNorm and the like.

    :param noise: whether the weights of the copy differ slightly
    """
    new = copy_model(model, share=False, warn=False)
    for module in new.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if not is_users_code(hook):  # such as a logger or a profiler
                    del hooks[key]
        module._backward_hooks.clear()
        if _has_statistics(module):
            module.training = False
        if hasattr(module, "spike_format"):
            vars(module)["spike_format"] = "dense"
    new.double()
    for module in new.modules():
        if not isinstance(module, SpikingNeuron):
            _double_attributes(module)
    if noise:
        for i, parameter in enumerate(new.parameters()):
            wave = torch.arange(parameter.numel(), device=parameter.device).add(i).cos()
            parameter.data.mul_(1 + 1e-5 * wave.view(parameter.shape).to(parameter.dtype))
    return new


def _has_statistics(module: nn.Module) -> bool:
    """Whether torch updates values of a layer in training, at every step of a loop."""
    if isinstance(module, (nn.modules.batchnorm._NormBase, _SpectralNorm)):
        return True
    return any(isinstance(x, SpectralNorm) for x in module._forward_pre_hooks.values())


def _double_attributes(module: nn.Module) -> None:
    for name, value in vars(module).items():
        if isinstance(value, Tensor) and value.dtype == torch.float32:
            vars(module)[name] = value.double()


def make_author_s(
    model: Any,
    one_step: bool,
    spans: Mapping[str, Sequence[Sequence[int]]] = MappingProxyType({}),
) -> None:
    """Turn a copy of a converted model into the author's, for one forward pass.

    :param one_step: whether the forward computes one step. Its neurons then carry their states
        from call to call
    :param spans: for each neuron, the calls in one step, and the steps, of each loop that calls it;
        one call for a neuron that is not named
    """
    for part in [module for module in model.modules() if hasattr(module, "_rewritten")]:
        part.__class__ = type(part)._original
    for path, neuron in list(model.named_modules()):
        if is_delay(neuron):
            unfold_delay(neuron)
        if isinstance(neuron, SingleSpikeNeuron):
            refractory = neuron.refractory
            unfold_neuron(neuron)
            _hold_to_spikes(neuron, refractory, spans.get(path, [(1, 0)]))
            if one_step:
                _carry_states(neuron, path)


def _hold_to_spikes(
    neuron: SpikingNeuron, refractory: int | None, spans: Sequence[Sequence[int]]
) -> None:
    """Replace the functions of a neuron that read its threshold, for one forward pass.

    The neuron is silent for ``refractory`` steps after a spike, and for ever if that is None.
    The places of one step call it in turn. Each of the ``spans``, of (places, steps), begins a new
    sample; the last one has no end.
    """
    plain = type(neuron).fire
    left = [places * steps for places, steps in spans[:-1]]  # calls of the spans to come
    most = max(places for places, _ in spans)
    silent: list[Any] = [0.0] * most  # number of silent steps to come
    now: list[Any] = [None] * most
    place = span = 0
    if refractory == 0:  # the author's neuron; its surrogate may return float32
        vars(neuron)["fire"] = lambda mem: plain(neuron, mem).to(mem.dtype)
        return

    def fire(mem: Tensor) -> Tensor:
        nonlocal place, span
        spikes = plain(neuron, mem)
        rest = torch.as_tensor(silent[place], device=mem.device).expand_as(mem)
        out = spikes * (rest <= 0)
        fired = now[place] = (out != 0).detach()
        silent[place] = torch.where(fired, math.inf if refractory is None else refractory, rest - 1)
        place = (place + 1) % spans[span][0]
        if span < len(left):
            left[span] -= 1
            if not left[span]:
                span, place = span + 1, 0
                silent[:], now[:] = [0.0] * most, [None] * most
        return out.to(mem.dtype)

    def mem_reset(mem: Tensor) -> Tensor:
        if now[place] is None or not getattr(neuron, "reset_delay", True):
            return torch.zeros_like(mem)  # the neuron has been reset at its spike
        return now[place].to(mem.dtype)

    vars(neuron)["fire"], vars(neuron)["mem_reset"] = fire, mem_reset


def _carry_states(neuron: Any, path: str) -> None:
    """Let a neuron carry its own states, whether its forward is given them, zeros, or none.

    A state that is not its own, as that of another neuron, has the effect that it has for snnTorch.
    """
    kind: Any = type(neuron)
    plain, names = kind.forward, state_names(kind)
    kept: dict[str, Any] = {}

    def is_start(name: str, state: Any) -> bool:
        if state is None or is_own_state(state, path):
            return True
        own = state is getattr(neuron, name, None)
        return state.shape == (0,) or (own and not state.any())

    def forward(input_: Tensor, *states: Any, **named: Any) -> Any:
        given = {**dict(zip(names, states, strict=False)), **named}
        given = {name: state for name, state in given.items() if not is_start(name, state)}
        for name, state in kept.items():
            setattr(neuron, name, state)
        out = plain(neuron, input_, **given)
        kept.update({name: getattr(neuron, name) for name in names})
        for state in out[1:] if isinstance(out, tuple) else ():
            mark_own_state(state, path)
        return out

    vars(neuron)["forward"] = forward


@functools.cache
def state_names(neuron: type) -> tuple[str, ...]:
    """The states that the forward of a snnTorch neuron takes, in its order."""
    return tuple(inspect.signature(neuron.forward).parameters)[2:]  # type: ignore[attr-defined]


class Layers:
    """The outputs of the layers of a model, call by call.

    :param place: returns where the model is
    """

    def __init__(self, model: nn.Module, place: Callable[[], Place]) -> None:
        self.calls: dict[str, list[tuple[Place, list[Tensor]]]] = {}
        self.kinds = {
            path: vars(module).get("original", type(module)).__name__
            for path, module in model.named_modules()
        }
        self.place, self.running = place, True
        for path, module in model.named_modules():
            if path and not isinstance(module, torch.jit.ScriptModule):
                module.register_forward_hook(functools.partial(self._record, path))

    def _record(self, path: str, module: nn.Module, inputs: Any, out: Any) -> None:
        if self.running:  # a checkpoint runs layers again in the backward pass
            tensors = [x.detach() for x in tree_leaves(out) if isinstance(x, Tensor)]
            self.calls.setdefault(path, []).append((self.place(), tensors))

    def pairs(self, loop: Layers) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Layers with their outputs (T, B, ...), here and in a loop over time."""
        for path, calls in self.calls.items():
            steps = loop.calls.get(path, [])
            if len(steps) != sum(num_steps for (_, num_steps, _), _ in calls):
                continue  # not called at every step
            for loop_calls, position, loop_steps in _in_loops(calls, steps):
                (_, num_steps, batch), mine = loop_calls[position]
                theirs = [tensors for _, tensors in loop_steps[position :: len(loop_calls)]]
                for index, x in enumerate(mine):
                    parts = [tensors[index] for tensors in theirs if index < len(tensors)]
                    right = _stacked(parts, num_steps)
                    if right is None:
                        continue
                    if x.shape[:1] == (num_steps * batch,):
                        x = x.unflatten(0, (num_steps, batch))
                    elif x.shape[:1] == (batch,):
                        x = x.expand(num_steps, *x.shape)
                    if x.shape == right.shape:
                        yield f"layer {path!r} ({self.kinds[path]})", x, right


def _in_loops(calls: list[Any], steps: list[Any]) -> Iterator[tuple[list[Any], int, list[Any]]]:
    """The calls of each loop, the position of one of them, and the steps of that loop."""
    start = 0
    for _, found in itertools.groupby(calls, key=lambda call: call[0][0]):
        group = list(found)
        end = start + sum(num_steps for (_, num_steps, _), _ in group)
        for position, ((_, num_steps, _), _) in enumerate(group):
            if num_steps:
                yield group, position, steps[start:end]
        start = end


def _stacked(parts: Iterable[Tensor], count: int) -> Tensor | None:
    parts = list(parts)
    same = len(parts) == count and len({x.shape for x in parts}) == 1
    return torch.stack(parts) if same else None
