"""A call of a converted model, with the comparison that its first calls make."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ..call import run_converted, run_looped, undo_of
from ..comparison.compare import SelfCheck, foreign_error, warn_unless_compared
from ..refusals.layers import ConversionError
from ..source.methods import entry_of
from ..source.place import user_depth
from .formats import choose_formats

__all__ = ["call_model"]


def call_model(model: Any, author: Any, run: Any, args: Any, kwargs: Any) -> Any:
    """
    Call a converted model.

    :param author: the forward of the author's class
    :param run: the forward that runs all steps at once
    """
    if model._single_spike.looped and torch.compiler.is_dynamo_compiling():
        return torch.compiler.disable(_run_uncompiled)(model, author, run, args, kwargs)
    if torch.compiler.is_compiling():
        if not torch.compiler.is_dynamo_compiling():
            warn_unless_compared(model)
        return _run(model, run, args, kwargs)
    new = model.training not in model._single_spike.decisions
    if new and model._single_spike.keep_loop:
        return _run_or_keep_loop(model, author, run, args, kwargs)
    return _run_checked(model, author, run, args, kwargs)


def _run(model: Any, run: Any, args: Any, kwargs: Any) -> Any:
    conversion = model._single_spike
    call = run_looped if conversion.looped else run_converted
    return call(model, choose_formats(run, model) if conversion.auto else run, args, kwargs)


def _run_checked(model: Any, author: Any, run: Any, args: Any, kwargs: Any) -> Any:
    conversion = model._single_spike
    new = model.training not in conversion.decisions
    check = SelfCheck(model, author, run)
    try:
        out = _run(model, run, args, kwargs)
    except ConversionError:
        raise
    except Exception as error:
        found = foreign_error(model, author, args, kwargs, error) if new else error
        if found is error or not conversion.looped:
            raise
        raise found from error
    check.after(args, kwargs)
    return out


def _run_or_keep_loop(model: Any, author: Any, run: Any, args: Any, kwargs: Any) -> Any:
    """The first call of a model that keeps its author's loop if the loop cannot run at once."""
    undo = undo_of(model, args, kwargs)
    try:
        return _run_checked(model, author, run, args, kwargs)
    except ConversionError as error:
        undo()
        model._single_spike.keep_loop(model, error)
    return getattr(model, entry_of(type(model)))(*args, **kwargs)


def _run_uncompiled(model: Any, author: Any, run: Any, args: Any, kwargs: Any) -> Any:
    warnings.warn(
        "torch.compile does not compile a converted model with a loop over time inside forward: "
        "the model runs as it does without torch.compile. To compile it, take the loop out of "
        "forward, and convert again",
        stacklevel=user_depth(),
    )
    return call_model(model, author, run, args, kwargs)
