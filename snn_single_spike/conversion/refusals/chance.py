"""Random numbers in a converted model: one draw for each step and sample, or an error.

A loop over time draws at every step. A converted model runs all steps as one batch of
``num_steps * batch`` rows, so a draw is right if it has one entry for each row. While it is unknown
whether a model draws, its calls run under :class:`Draws`, which sees every random operator. Calls
of a model without random operators then compare the states of the generators only.
"""

from __future__ import annotations

import functools
import math
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..source.place import ENTRY, user_line
from .layers import ConversionError

__all__ = [
    "DrawnOnce",
    "Draws",
    "Generators",
    "LoopDraws",
    "WrongDraw",
    "generator_of",
    "is_random",
    "reject_draws_outside_of_torch",
    "states_outside",
    "wrong_size",
]

_INITIALISE = {"__init__", "reset_parameters", "initialize_parameters"}
_SHUFFLES = (torch.ops.aten.randperm,)


class WrongDraw(ConversionError):
    """A draw that does not have one entry for each step and sample."""


class DrawnOnce(BaseException):
    """A draw for all steps at once, while the input of the model is not expanded over time.

    Not an Exception: the user's forward must not catch it.
    """


def wrong_size(where: str, shape: tuple[int, ...], rows: int) -> WrongDraw:
    """The error for a draw that is the same at several steps."""
    return WrongDraw(
        f"{where} draws random numbers of shape {shape}. A loop over time draws them at every "
        f"step, and a converted model runs all steps at once, as a batch of {rows} rows (time x "
        "batch): one draw would serve several of them. Draw one entry for each row: "
        "torch.rand_like(x), torch.rand(x.size(0), ...), or F.dropout(x) in place of dropout on "
        "weights"
    )


class Draws(TorchDispatchMode):
    """Checks that every draw has one entry for each step and sample.

    :param model: the converted model, for messages
    :param rows: (T * B,) where time is folded into the batch, (T, B) outside of the model
    :param expandable: whether a draw of another size, or before the first neuron, raises
        :class:`DrawnOnce`. Otherwise it is right if one of its sizes is a multiple of the rows, as
        of attention heads, and raises :class:`WrongDraw` if not
    :param generators: the generators of the model, at the start of the call
    """

    supports_higher_order_operators = True

    def __init__(
        self, model: Any, rows: tuple[int, ...], expandable: bool, generators: Generators
    ) -> None:
        super().__init__()
        self.model, self.rows, self.expandable = model, rows, expandable
        self._known = generators.states()  # with their states after the last draw
        self.seen = False
        self.wrong = False  # a draw of another size, which did not raise
        self.initialised = False  # parameters, as by lazy modules in their first call
        self._before: list[tuple[torch.Generator, Tensor]] = []  # before every draw

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would import the compiler in the first call

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """torch.compile of a part of the model continues to compile under this mode."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not is_random(func):
            return func(*args, **kwargs)
        generator = generator_of(args, kwargs)
        before = generator.get_state() if generator else None
        out = func(*args, **kwargs)
        if generator and before is not None:
            after = generator.get_state()
            if torch.equal(before, after):  # as dropout with p=0
                return out
            self._before.append((generator, before))
            self._reject_seeds(generator, before, after)
        if _is_initialising():
            self.initialised = True
        else:
            self.seen = True
            drawn = next(x for x in tree_leaves(out) if isinstance(x, Tensor))
            self._check(func, drawn.shape)
        return out

    def _reject_seeds(self, generator: torch.Generator, before: Tensor, after: Tensor) -> None:
        """Reject a generator that is seeded at every step: a loop would repeat its numbers."""
        # An operator receives its generator in a new Python object: its state identifies it.
        known = next((g for g in self._known if torch.equal(g.get_state(), after)), None)
        last = self._known.get(known) if known else None
        if known is not None:
            self._known[known] = after
        if last is None:
            if generator is default_generator(generator.device):
                return
            how = "draws from a torch.Generator that it has made, or keeps out of sight"
        elif torch.equal(last, before) or not _is_new(generator, before):
            return
        else:
            how = "seeds a random generator"
        raise WrongDraw(
            f"{user_line(sys._getframe(), self.model)} {how}. A loop over time would draw the same "
            "numbers at every step, and a converted model draws others. Seed once, before the "
            "model is called, and keep a torch.Generator as an attribute of the model"
        )

    def _check(self, func: Any, shape: torch.Size) -> None:
        shuffles = getattr(func, "overloadpacket", None) in _SHUFFLES
        if self._is_right(shape) and not shuffles:
            return
        if self.expandable:
            raise DrawnOnce
        where = user_line(sys._getframe(), self.model)
        if shuffles:
            raise WrongDraw(
                f"{where} shuffles with torch.randperm. A converted model folds time into the "
                "batch, so the permutation would mix time steps. Shuffle the samples before the "
                "model"
            )
        raise wrong_size(where, tuple(shape), math.prod(self.rows))

    def _is_right(self, shape: torch.Size) -> bool:
        if len(self.rows) > 1:
            return tuple(shape[: len(self.rows)]) == self.rows
        (rows,) = self.rows
        if self.expandable:
            return bool(self.model._single_spike.time.called) and tuple(shape[:1]) == self.rows
        return not rows or any(size and size % rows == 0 for size in shape)

    def rewind(self) -> None:
        """Set the generators back to their states before the first draw."""
        for generator, state in reversed(self._before):
            generator.set_state(state)


class LoopDraws(Draws):
    """Checks the draws inside of the loops over time of a forward.

    :param run: the running call
    :param expandable: whether a draw of another size sets ``wrong``, and does not raise
    :param generators: the generators of the model, at the start of the call
    """

    def __init__(self, run: Any, expandable: bool, generators: Generators) -> None:
        super().__init__(run.model, (0,), expandable, generators)
        self.run = run

    def _check(self, func: Any, shape: torch.Size) -> None:
        time = self.run.time
        if not time.num_steps:
            return  # outside of a loop the forward draws once, as its author wrote it
        self.rows = (time.num_steps * (time.batch or 0),)
        shuffles = getattr(func, "overloadpacket", None) in _SHUFFLES
        right = time.batch and tuple(shape[:1]) == self.rows
        if self.expandable and not (right or shuffles):
            self.wrong = True
            return
        expandable, self.expandable = self.expandable, False
        try:
            super()._check(func, shape)
        finally:
            self.expandable = expandable


class Generators:
    """The states of random generators at one moment."""

    def __init__(self, devices: Iterable[torch.device], held: Iterable[torch.Generator]) -> None:
        defaults = (default_generator(device) for device in {torch.device("cpu"), *devices})
        self._states = [(g, g.get_state()) for g in (*defaults, *held) if g is not None]

    def states(self) -> dict[torch.Generator, Tensor]:
        """The states, by generator."""
        return dict(self._states)

    def unchanged(self) -> bool:
        """Whether nothing was drawn since."""
        return all(_bytes(state) == _bytes(g.get_state()) for g, state in self._states)

    def rewind(self) -> None:
        """Set the generators back."""
        for generator, state in self._states:
            generator.set_state(state)


def _is_new(generator: torch.Generator, state: Tensor) -> bool:
    """Whether a state is that of a generator that was seeded, and has drawn nothing."""
    new = torch.Generator(generator.device).manual_seed(generator.initial_seed())
    return torch.equal(state, new.get_state())


def default_generator(device: torch.device) -> torch.Generator | None:
    """The generator that torch uses for a device; None if torch does not show it."""
    if device.type == "cpu":
        return torch.default_generator
    generators = getattr(getattr(torch, device.type, None), "default_generators", ())
    if not generators or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return None
    index = device.index
    return generators[torch.get_device_module(device).current_device() if index is None else index]


def states_outside() -> tuple[Any, ...]:
    """States of the global generators of Python and numpy."""
    _, keys, *others = cast(Any, np.random.get_state())  # noqa: NPY002  (users draw from it)
    return random.getstate(), keys.tobytes(), *others


def reject_draws_outside_of_torch(before: tuple[Any, ...]) -> None:
    """Raise if the global generators of Python or numpy have drawn since :func:`states_outside`."""
    after = states_outside()
    if after == before:
        return
    module = "random" if after[0] != before[0] else "numpy.random"
    raise ConversionError(
        f"the forward of the model draws from Python's {module}. A loop over time draws at every "
        "step, and a converted model draws once for all steps. Draw with torch, one entry for each "
        "row of the input: torch.rand_like(x), torch.bernoulli(x)"
    )


@functools.cache
def is_random(func: Callable[..., Any]) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())


def generator_of(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Generator | None:
    """The generator that an operator draws from."""
    given = (*args, *kwargs.values())
    for x in given:
        if isinstance(x, torch.Generator):
            return x
    for x in given:
        if isinstance(x, Tensor):
            return default_generator(x.device)
    return default_generator(torch.device(kwargs.get("device") or "cpu"))


def _is_initialising() -> bool:
    """Whether parameters are being initialised, as by lazy modules in their first call."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_name != ENTRY:
        if frame.f_code.co_name in _INITIALISE:
            return True
        frame = frame.f_back
    return False


def _bytes(state: Tensor) -> bytes:
    return state.numpy().tobytes()
