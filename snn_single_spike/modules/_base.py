"""The base of all single-spike neurons: option checks, states, and snnTorch's registry."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor

from .. import backends
from ..functional.neuron import DEFAULT_GRADIENT
from ..ops.neuron import Result, run_single_spike
from ..ops.surrogate import SpikeGrad, Surrogate, recognize, split, surrogate_disabled
from ..ops.validation import (
    GRADIENT_RULES,
    RESETS,
    check_choice,
    check_current,
    check_not_nan,
    check_refractory,
)
from .state import NO_SECOND_SPIKE, LastCall, LeakyState, checked, last_spike

# Options of snnTorch's neurons, the only value that is supported without a loop over time, and why.
NEEDS_THE_LOOP = (
    ("inhibition", False, "inhibition couples neurons at every step"),
    ("state_quant", False, "quantization makes the membrane non-linear in its input"),
    ("reset_delay", True, "the reset comes one step after the spike"),
    ("all_to_all", False, "spikes drive other neurons at the next step"),
)
REFRACTORY = ("Leaky", "Synaptic", "Lapicque")
"""snnTorch's neurons that may spike more than once here."""
# States that a snnTorch neuron keeps between calls, in buffers that no state_dict contains
STATES = ("spk", "mem", "syn", "syn_exc", "syn_inh")
# Constructor arguments that must not be NaN
_PARAMETERS = ("alpha", "beta", "V", "R", "C", "time_step", "threshold", "graded_spikes_factor")


def check_options(
    keep: str,
    gradient: str,
    backend: str,
    given: Mapping[str, Any] | None = None,
    refractory: int | None = None,
) -> None:
    """Reject options that are not supported over a whole sequence.

    ``keep`` names the snnTorch class that supports them; ``given`` holds the constructor arguments
    by name.
    """
    if refractory is not None and keep not in REFRACTORY:
        raise ValueError(
            f"refractory={refractory!r} is not supported by the single-spike form of snntorch."
            f"{keep}, which spikes at most once: leave it out, or keep snntorch.{keep} for this "
            "layer"
        )
    given = given or {}
    for option, only, reason in NEEDS_THE_LOOP:
        if option in given and given[option] is not only:
            raise ValueError(
                f"{option}={given[option]!r} is not supported over a whole sequence ({reason}): "
                f"pass {option}={only}, or keep snntorch.{keep} for this layer"
            )
    check_choice("reset_mechanism", given.get("reset_mechanism", "none"), RESETS)
    check_choice("gradient", gradient, GRADIENT_RULES)
    check_refractory(refractory, gradient)
    check_choice("backend", backend, ("auto", *backends.BACKENDS))
    for name in _PARAMETERS:
        if name in given:
            check_not_nan(name, given[name])


def _snntorch_class(cls: type) -> Any:
    """The snnTorch class that a single-spike class derives from; None for a mixin."""
    return next((c for c in cls.__mro__ if c.__module__.startswith("snntorch.")), None)


def _signature(cls: type, original: type) -> inspect.Signature:
    """The signature for help() and editors: the snnTorch arguments, then the keyword arguments."""
    constructors = [vars(c)["__init__"] for c in cls.__mro__ if "__init__" in vars(c)]
    own = inspect.signature(constructors[0])
    positional = list(own.parameters.values())[1:]
    if any(p.kind is p.VAR_POSITIONAL for p in positional):
        positional = list(inspect.signature(original.__init__).parameters.values())[1:]  # type: ignore[misc]
        below = constructors[: constructors.index(original.__init__)]  # type: ignore[misc]
        keyword: dict[str, inspect.Parameter] = {}  # the default of a subclass counts
        for constructor in reversed(below):
            parameters = inspect.signature(constructor).parameters.values()
            keyword |= {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
        positional += keyword.values()
    return own.replace(parameters=positional, return_annotation=own.empty)


class SingleSpikeNeuron:
    """A mixin that makes a snnTorch neuron compute a whole sequence.

    A neuron spikes at most once, or more often with `refractory`.

    The neuron keeps the parameters and buffers that snnTorch makes, but for the states of the last
    step: attributes hold these. The constructor takes the arguments of the snnTorch class, and
    `gradient`, `backend` and `refractory` by keyword.
    """

    gradient: str
    backend: str
    refractory: int | None = None  # of pickles from before this option
    _last_call: LeakyState | LastCall | None = None
    _mem_of_last_call: Tensor | None = None
    beta: Tensor
    threshold: Tensor
    graded_spikes_factor: Tensor
    reset_mechanism: str
    init_hidden: bool
    output: bool
    spike_grad: Any
    surrogate_disable: bool
    register_buffer: Callable[..., None]
    _buffers: dict[str, Tensor | None]
    _state_buffers: tuple[str, ...] = ()
    _continues = True
    """Whether a call may continue the sequence of an earlier one."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        original = _snntorch_class(cls)
        if original is not None:
            cls.__signature__ = _signature(cls, original)  # type: ignore[attr-defined]

    def __init__(
        self,
        *args: Any,
        gradient: str = DEFAULT_GRADIENT,
        backend: str = "auto",
        refractory: int | None = None,
        **kwargs: Any,
    ) -> None:
        original = _snntorch_class(type(self))
        try:
            bound = inspect.signature(original.__init__).bind(self, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}() {error}") from None
        bound.apply_defaults()
        given = dict(bound.arguments)
        del given["self"]
        check_options(original.__name__, gradient, backend, given, refractory)
        super().__init__(**self._constructor_arguments(given))
        self._init_single_spike(gradient, backend, refractory)

    def _constructor_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments for the constructor of the snnTorch class."""
        return given

    def _init_single_spike(
        self, gradient: str, backend: str, refractory: int | None = None
    ) -> None:
        """Set the attributes of this class on a neuron that snnTorch has constructed."""
        if self.surrogate_disable:
            self.spike_grad = surrogate_disabled
        else:
            self.spike_grad = recognize(self.spike_grad) or self.spike_grad
        self.gradient = gradient
        self.backend = backend
        self.refractory = refractory
        self._states_to_attributes()
        self._track()

    def _states_to_attributes(self) -> None:
        """Make the states empty attributes in place of buffers.

        A state has the shape of the last batch, and no call starts from it. A buffer of such a
        shape fails where buffers of two models meet: DistributedDataParallel broadcasts them, and
        an average of models copies them.
        """
        self._state_buffers = tuple(name for name in STATES if name in self._buffers)
        for name in self._state_buffers:
            device = getattr(self._buffers[name], "device", None)
            delattr(self, name)
            setattr(self, name, torch.zeros(0, device=device))

    def _states_to_buffers(self) -> None:
        """Undo :meth:`_states_to_attributes`: empty buffers, as in a new neuron of snnTorch."""
        for name in self.__dict__.pop("_state_buffers"):
            device = getattr(self.__dict__.pop(name), "device", None)
            self.register_buffer(name, torch.zeros(0, device=device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move or cast the module, and the states with it."""
        super()._apply(fn, recurse)  # type: ignore[misc]
        for name in self._state_buffers:
            if isinstance(state := getattr(self, name), Tensor):
                setattr(self, name, fn(state))
        self._mem_of_last_call = self.mem
        return self

    def _sync_with_snntorch(self) -> None:
        """Update attributes that snnTorch's module reads and this module does not."""

    def extra_repr(self) -> str:
        """The options that decide what the layer computes."""
        spikes = "" if self.refractory is None else f"refractory={self.refractory}, "
        return (
            f"reset_mechanism={self.reset_mechanism!r}, {spikes}gradient={self.gradient!r}, "
            f"backend={self.backend!r}"
        )

    def _run(
        self,
        input_: Tensor,
        dtype: torch.dtype | None = None,
        state: LeakyState | None = None,
        /,
        **neuron: Any,
    ) -> Result:
        """Compute the whole sequence, and keep the states of the last step as attributes.

        ``dtype`` is the type of the user's input, for a neuron that has widened the input.
        ``state`` is the state before the first step, if it comes from an earlier call.
        """
        dtype = dtype or input_.dtype
        widens = dtype != input_.dtype

        def widened(value: Any) -> Any:
            same = widens and isinstance(value, Tensor) and value.dtype == dtype
            return value.to(input_.dtype) if same else value

        neuron = {name: widened(value) for name, value in neuron.items()}
        # An attribute of varying shape would recompile a compiled graph at every change.
        keep_states = not torch.compiler.is_compiling()
        surrogate, custom_surrogate = self._surrogate()
        result = run_single_spike(
            input_,
            widened(neuron.pop("beta", self.beta)),
            widened(self.threshold),
            widened(neuron.pop("graded_spikes_factor", self.graded_spikes_factor)),
            surrogate,
            custom_surrogate,
            self.gradient,
            self._reset(),
            **neuron,
            refractory=self.refractory if state is None else self._period(),
            want_mem=self.output or not self.init_hidden,
            want_final=keep_states,
            backend=self.backend,
        )
        if result.final is not None:
            final = result.final.detach()
            for name, value in zip(self._integrated(), final, strict=True):
                setattr(self, name, value.detach().to(dtype))  # snnTorch detaches it in place
            if self._continues:
                self._keep(LastCall(state, final, result.times, input_.shape[0]))
        if widens:
            wide = ("spikes", "mem", "syn", "inh")
            given = {name: getattr(result, name) for name in wide}
            result = result._replace(**{k: x.to(dtype) for k, x in given.items() if x is not None})
        return result

    def _reset(self) -> str:
        """The kernel's name of the reset: all neurons but Leaky set zero after the integration."""
        return "zero_after" if self.reset_mechanism == "zero" else self.reset_mechanism

    def _integrated(self) -> tuple[str, ...]:
        """Names of the states that the operator integrates, the membrane first."""
        return ("mem",)

    def _initial(
        self, input_: Tensor, state: LeakyState | None = None, /, **given: Tensor | None
    ) -> dict[str, Tensor | None]:
        """Initial states by name; an empty state, or a state of another batch, becomes None.

        Every ``forward`` calls this method first: it checks the input before the input is used.
        """
        check_current(input_)
        if state is not None:
            return self._continued(input_, state, given)
        if self.init_hidden and any(state is not None for state in given.values()):
            named = " or ".join(f"`{name}`" for name in given)
            raise TypeError(
                f"{named} is not accepted with init_hidden=True, which starts every call from "
                "zeros: leave it out, or construct the neuron with init_hidden=False"
            )
        here = (input_.shape[1:], input_.dtype)

        def left_over(name: str, state: Tensor | None) -> bool:
            if not isinstance(state, Tensor) or (state.shape, state.dtype) == here:
                return False
            return state.shape == (0,) or state is getattr(self, name)  # from reset_mem()

        return {n: None if left_over(n, state) else state for n, state in given.items()}

    def _continued(
        self, input_: Tensor, state: LeakyState, given: dict[str, Tensor | None]
    ) -> dict[str, Tensor | None]:
        """The initial states of a sequence that continues an earlier one."""
        if self.gradient != "masked":
            raise ValueError(
                f"state= continues a sequence, which gradient={self.gradient!r} does not support: "
                "pass the whole sequence, or make the neuron with gradient='masked'"
            )
        if any(isinstance(value, Tensor) for value in given.values()):
            named = " and ".join(f"`{name}`" for name in given)
            raise TypeError(f"state= contains {named}: pass either the one or the others")
        state = checked(state, input_)
        states: dict[str, Tensor | None] = {name: getattr(state, name) for name in given}
        return states | {"last": last_spike(state)}

    @property
    def state(self) -> LeakyState | None:
        """The state after the last call, detached, with which :meth:`forward` continues."""
        last = self._last_call
        if last is not None and self._was_reset():
            last = self._last_call = None
        if isinstance(last, LastCall):  # most calls continue nothing, so it is computed here
            last = self._last_call = last.state()
        return last

    @state.setter
    def state(self, state: LeakyState | None) -> None:
        self._keep(state)

    def _keep(self, last: LeakyState | LastCall | None) -> None:
        # Past nn.Module.__setattr__, which looks for parameters first: 1 µs each in a small call.
        vars(self).update(_last_call=last, _mem_of_last_call=self.mem)

    def _was_reset(self) -> bool:
        """Whether snnTorch's reset_hidden() or utils.reset() has put zeros in place of `mem`."""
        mem = self.mem
        replaced = isinstance(mem, Tensor) and mem is not self._mem_of_last_call
        return replaced and not bool(mem.any())

    def reset_mem(self) -> Any:
        """As in snnTorch. The next sample starts from zeros, so that `state` is None."""
        vars(self)["_last_call"] = None  # as in _keep
        return super().reset_mem()  # type: ignore[misc]

    def _keep_no_state(self, num_steps: int) -> None:
        """After a call from spike times, which has computed no membrane of the last step."""
        if not torch.compiler.is_compiling():
            self._keep(LastCall(None, None, None, num_steps))

    def _period(self) -> int:
        """The refractory period in a later part of a sample; without one it does not end."""
        return NO_SECOND_SPIKE if self.refractory is None else self.refractory

    def _surrogate(self) -> tuple[Surrogate | None, SpikeGrad | None]:
        known = isinstance(self.spike_grad, Surrogate) or self.spike_grad is surrogate_disabled
        if torch.compiler.is_compiling() and not known:
            return None, self.spike_grad  # recognized in the constructor
        return split(self.spike_grad)

    def _track(self) -> None:
        """Register the neuron for snnTorch's resets, by a weak reference."""
        listed = SpikingNeuron.instances
        listed[:] = [neuron for neuron in listed if neuron is not self and neuron is not None]
        listed.append(weakref.proxy(self, _forget))

    def __getattr__(self, name: str) -> Any:
        # snnTorch's AttributeMonitor calls this method for states that exist.
        if name in STATES and name in vars(self):
            return vars(self)[name]
        return super().__getattr__(name)  # type: ignore[misc]

    def _save_to_state_dict(self, *arguments: Any) -> None:
        self._sync_with_snntorch()
        super()._save_to_state_dict(*arguments)  # type: ignore[misc]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        self._track()  # snnTorch resets a copied or loaded neuron, too


def _forget(proxy: Any) -> None:
    # None, not a shorter list: snnTorch may be iterating over the list by index.
    listed = SpikingNeuron.instances
    listed[:] = [None if neuron is proxy else neuron for neuron in listed]
