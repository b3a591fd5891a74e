"""Converts the parts of a model that convert, and keeps the author's loops in the others.

A part converts on its own if it has its own loop over time, and no loop of another part calls it.
"""

from __future__ import annotations

import functools
import warnings

from snntorch._neurons.neurons import SpikingNeuron
from torch import nn

from .copies import copy_model
from .folded.modules import Converted, revert_in_place
from .loops.find import find_loops
from .refusals.layers import ConversionError
from .source.methods import entry_of
from .source.place import user_depth
from .source.repeated import called_in_loops
from .whole import Options, convert_whole

__all__ = ["convert_parts"]


def convert_parts(model: nn.Module, options: Options) -> nn.Module:
    """A copy of a model, with converted parts where the model does not convert as a whole.

    :raises ConversionError: a model that contains no loop over time, and does not convert
    """
    if not any(find_loops(part).rewritten for part in model.modules()):
        return convert_whole(model, options)
    new = copy_model(model, options.share_parameters)
    return _convert(new, "", options._replace(share_parameters=True))


def _convert(part: nn.Module, path: str, options: Options) -> nn.Module:
    """A part in its converted form if it converts; otherwise with converted parts."""
    try:
        new = convert_whole(part, options)
    except ConversionError as error:
        _warn(part, path, error)
        _convert_children(part, path, options)
        return part
    new._single_spike.keep_loop = functools.partial(_keep_loop, path=path, options=options)  # type: ignore[union-attr]
    return new


def _convert_children(part: nn.Module, path: str, options: Options) -> None:
    loops = find_loops(part)
    if loops.rewritten or path:
        called = set(called_in_loops(type(part), getattr(type(part), entry_of(type(part)))))
    else:
        called = set()
    for name, child in list(part.named_children()):
        steps = any(x == name or x.startswith(f"{name}.") for x in called)
        if steps or isinstance(child, (SpikingNeuron, Converted)):
            continue
        below = f"{path}.{name}" if path else name
        if find_loops(child).rewritten:
            part._modules[name] = _convert(child, below, options)
        else:
            _convert_children(child, below, options)


def _keep_loop(model: nn.Module, error: ConversionError, path: str, options: Options) -> None:
    """Turn a converted part back into the author's, after its first call has failed."""
    revert_in_place(model)
    _warn(model, path, error)
    _convert_children(model, path, options)


def _warn(part: nn.Module, path: str, error: ConversionError) -> None:
    name = type(part).__name__
    where = f"layer {path!r} ({name})" if path else f"the model ({name})"
    own = "keeps its author's loop over time, with snnTorch's neurons"
    what = own if find_loops(part).rewritten else "does not convert as a whole"
    warnings.warn(f"{where} {what}: {error}", stacklevel=user_depth())
