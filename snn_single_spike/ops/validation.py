"""Argument checks. Every error names the argument, the value found and the fix."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..backends._compiling import is_traced
from ..backends._types import (
    GRADIENT_RULES,
    REDUCTIONS,
    REFRACTORY_RULES,
    RESETS,
    Convolution,
    state_dtype,
)

__all__ = ["GRADIENT_RULES", "REDUCTIONS", "RESETS"]

UNPACK = "unpack the result of a neuron, spk, mem = lif(x), and pass spk"
_MOST = 1 << 30  # a refractory period that int32 steps can hold, longer than any sequence
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class NaNError(ValueError):
    """A parameter contains NaN. If training caused the NaN, the learning rate is too high."""


def check_transforms() -> None:
    """Reject transforms of torch that cannot pass through registered kernels."""
    if torch.compiler.is_compiling():
        return
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "Single-spike layers do not support the transforms of torch.func (grad, vmap, jacrev, "
            "...): use torch.autograd.grad or torch.autograd.functional, and a batch dimension in "
            "place of vmap"
        )
    if torch._C._get_tracing_state() is not None:
        raise RuntimeError(
            "Single-spike layers do not support torch.jit.trace, which cannot save their kernels: "
            "use torch.export.export(model, (x,)), or torch.compile(model)"
        )


def check_choice(name: str, value: object, choices: tuple[str | None, ...]) -> None:
    # `tensor in choices` would compare elementwise.
    if not isinstance(value, str | None) or value not in choices:
        found = (
            f"{name} is a tensor" if isinstance(value, Tensor) else f"{name}={value!r} is not known"
        )
        raise ValueError(f"{found}: use one of {', '.join(map(repr, choices))}")


def check_refractory(refractory: object, gradient: str) -> int | None:
    """A number of silent steps after each spike, or None for at most one spike."""
    if refractory is None:
        return None
    if isinstance(refractory, bool) or not isinstance(refractory, int) or refractory < 0:
        raise ValueError(
            f"refractory={refractory!r} must be an integer, 0 or more: the number of silent steps "
            "after each spike. Pass None for at most one spike"
        )
    if gradient not in REFRACTORY_RULES:
        raise ValueError(
            f"gradient={gradient!r} is defined for neurons that spike at most once, but "
            f"refractory={refractory} allows more spikes: pass gradient='masked', which is "
            "backpropagation through time, or refractory=None"
        )
    return min(refractory, _MOST)


def check_current(current: object, name: str = "current") -> Tensor:
    """A floating-point (T, B, *features) tensor with T >= 1."""
    check_transforms()
    if not isinstance(current, Tensor):
        fix = f"use torch.as_tensor({name})"
        if isinstance(current, tuple):
            fix = UNPACK
        raise TypeError(f"{name} must be a torch.Tensor, not {type(current).__name__}: {fix}")
    if current.dim() < 3:
        raise ValueError(
            f"{name} has shape {tuple(current.shape)}, but the whole sequence is expected at "
            "once, (time, batch, *features). Drop the loop over time and pass all steps, e.g. "
            "torch.stack(steps); convert(net) does it for a whole model, with convolutions and "
            f"pooling. For a single step use {name}.unsqueeze(0), or step() of a "
            f"SingleSpikeLeaky. For one neuron per sample use {name}.unsqueeze(-1)"
        )
    if current.dtype not in _DTYPES:
        raise TypeError(
            f"{name} has dtype {current.dtype}, but must be one of float32, float64, float16 or "
            f"bfloat16: use {name}.float()"
        )
    _check_extent(name, current)
    return current


def _check_extent(name: str, sequence: Tensor) -> None:
    """Require at least one time step and one neuron. A batch may be empty."""
    if sequence.shape[0] == 0:
        raise ValueError(
            f"{name} has shape {tuple(sequence.shape)}, with no time steps (T=0): pass at least one"
        )
    if 0 in sequence.shape[2:]:
        raise ValueError(
            f"{name} has shape {tuple(sequence.shape)}, with no neurons: pass at least one feature"
        )


def check_device(name: str, value: Tensor, device: torch.device, of: str = "input") -> None:
    if value.device != device:
        raise ValueError(
            f"{name} is on {value.device}, but the {of} is on {device}: move it with "
            f"{name}.to({str(device)!r})"
        )


def check_real(name: str, value: Tensor | complex) -> None:
    """Reject a complex number. Conversion to a real type would drop its imaginary part."""
    if value.is_complex() if isinstance(value, Tensor) else isinstance(value, complex):
        raise TypeError(f"{name} is complex, but must be real: use {name}.real")


def check_not_nan(name: str, value: Tensor | float) -> None:
    if is_traced():
        return
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()  # ten times as fast as a check by torch
    try:
        one = isinstance(value, float)
        found = math.isnan(value) if one else torch.as_tensor(value).isnan().any()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number or a tensor, not {value!r}") from None
    if found:
        raise NaNError(
            f"{name} contains NaN: initialize {name} with finite values; if training caused the "
            "NaN, lower the learning rate"
        )


def scaled(scores: Tensor, scale: Tensor | float) -> Tensor:
    """Scores times a number, or times a tensor that broadcasts to them; type of the scores."""
    check_real("scale", scale)
    if not isinstance(scale, Tensor):
        return scores if scale == 1 else scores * scale
    try:
        each = scale.expand(scores.shape)
    except RuntimeError:
        raise ValueError(
            f"scale has shape {tuple(scale.shape)}, which does not broadcast to the scores "
            f"{tuple(scores.shape)}: use a number, or one value per class, ({scores.shape[-1]},)"
        ) from None
    return (scores * each).to(scores.dtype)


def check_parameter(name: str, value: Tensor | float, current: Any) -> Tensor:
    """A parameter as a flat (P,) tensor in state precision, P = 1 or the number of features."""
    state = state_dtype(current.dtype)
    if not isinstance(value, Tensor):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(
                f"{name} must be a number or a tensor, not {type(value).__name__}"
            ) from None
        if not torch.compiler.is_compiling() and math.isnan(number):
            raise ValueError(f"{name} is NaN: pass a finite number")
        return torch.full((1,), number, dtype=state, device=current.device)
    check_device(name, value, current.device)
    check_real(name, value)
    # A 0-dimensional tensor is converted to the type of the input, as in torch.
    if value.dim() > 0 and value.dtype not in (current.dtype, state):
        raise TypeError(
            f"{name} has dtype {value.dtype}, but the input has {current.dtype}: convert one of "
            f"the two, with {name}.to({current.dtype}) or module.to(...)"
        )
    # On a GPU the check would wait for the device, so NaN propagates there.
    if value.device.type == "cpu":
        check_not_nan(name, value)
    if value.numel() == 1:
        one = value.reshape(1)
        return one if value.dtype == state else one.to(state)
    shape, features = value.shape, current.shape[2:]
    while len(shape) > len(features) and shape[0] == 1:
        shape = shape[1:]
    padded = (1,) * (len(features) - len(shape)) + tuple(shape)
    if len(padded) != len(features) or any(
        size not in (1, full) for size, full in zip(padded, features, strict=True)
    ):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, which does not broadcast to the features "
            f"{tuple(features)} of an input of shape {tuple(current.shape)}: pass a scalar, one "
            "value per neuron, or for the channels of images (C, 1, 1)"
        )
    return value.to(state).reshape(padded).expand(features).flatten().contiguous()


def check_state(name: str, state: Tensor | None, current: Tensor) -> Tensor | None:
    """An initial membrane or synaptic current (B, *features), flat and in state precision."""
    if state is None:
        return None
    if not isinstance(state, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor or None, not {type(state).__name__}")
    check_device(name, state, current.device)
    precision = state_dtype(current.dtype)
    if state.dtype not in (current.dtype, precision):
        raise TypeError(
            f"{name} has dtype {state.dtype}, but the input has {current.dtype}: use "
            f"{name}.to({current.dtype})"
        )
    if state.shape != current.shape[1:]:
        hint = ""
        if state.shape == current.shape:
            hint = (
                ": drop the loop over time and pass the whole sequence once, without "
                f"{name}; to continue after an earlier sequence, pass {name}[-1]"
            )
        elif state.dim() == current.dim():
            hint = f": to continue after an earlier sequence, pass {name}[-1]"
        raise ValueError(
            f"{name} has shape {tuple(state.shape)}, but an initial state has the shape of one "
            f"time step, {tuple(current.shape[1:])}{hint}"
        )
    return state.to(precision).flatten().contiguous()


def check_linear(features: int, device: torch.device, weight: Tensor, bias: Tensor | None) -> None:
    """Check that weights (out, in) and bias (out,) fit spikes with one dimension of features."""
    check_transforms()
    _check_weight(weight, 2, "(out, in)")
    if features != weight.shape[1]:
        raise ValueError(
            f"the spikes have {features} features, but the linear layer takes "
            f"{weight.shape[1]}: construct the layer with in_features={features}"
        )
    _check_outputs(device, weight, bias, "linear layer", "outputs")


def _check_weight(weight: Tensor, dimensions: int, expected: str) -> None:
    if weight.dim() != dimensions:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, but {expected} is expected")
    if not weight.is_floating_point():
        raise TypeError(
            f"weight has dtype {weight.dtype}, but must be floating-point: use weight.float()"
        )


def _check_outputs(
    device: torch.device, weight: Tensor, bias: Tensor | None, layer: str, outputs: str
) -> None:
    """Check the device of the parameters, and one bias for each output."""
    check_device("weight", weight, device, "spikes")
    if bias is not None:
        check_device("bias", bias, device, "spikes")
        check_real("bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"bias has shape {tuple(bias.shape)}, but the {layer} has {len(weight)} "
                f"{outputs}: pass a bias of shape ({len(weight)},), or None"
            )


def _pair(name: str, value: Any) -> tuple[int, int]:
    """A size of one or two dimensions, as torch takes it."""
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(sizes) not in (1, 2) or not all(isinstance(x, int) for x in sizes):
        raise ValueError(f"{name}={value!r} must be an integer, or one for each dimension")
    return (sizes[0], sizes[-1])


def check_conv(
    spikes: Any,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Convolution:
    """The sizes of a convolution of spikes (C, H, W) by weights (O, C / groups, KH, KW)."""
    check_transforms()
    _check_weight(weight, 4, "(out, in / groups, height, width)")
    if len(spikes.features) != 3:
        raise ValueError(
            f"the spikes have features {tuple(spikes.features)}, but maps (channels, height, "
            "width) are expected: reshape them, e.g. spikes.reshape(time, batch, 1, 28, 28)"
        )
    channels, *size = spikes.features
    if groups < 1 or channels % groups or len(weight) % groups:
        raise ValueError(
            f"groups={groups} must divide the {channels} channels of the spikes and the "
            f"{len(weight)} channels of the output: use a common divisor of both"
        )
    if channels // groups != weight.shape[1]:
        raise ValueError(
            f"the spikes have {channels} channels, but the convolution takes "
            f"{weight.shape[1] * groups}: construct the layer with in_channels={channels}"
        )
    _check_outputs(spikes.device, weight, bias, "convolution", "output channels")
    strides, dilations = _pair("stride", stride), _pair("dilation", dilation)
    if min(strides) < 1 or min(dilations) < 1:
        raise ValueError(f"stride={stride!r} and dilation={dilation!r} must be at least 1")
    spans = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
    if padding == "same":
        if strides != (1, 1):
            raise ValueError("padding='same' requires stride=1, as in torch")
        before, total = [span // 2 for span in spans], spans
    else:
        check_padding(padding)
        before = list(_pair("padding", 0 if padding == "valid" else padding))
        total = [2 * x for x in before]
    out = [
        (extent + pad - span - 1) // step + 1
        for extent, pad, span, step in zip(size, total, spans, strides, strict=True)
    ]
    if not torch.compiler.is_compiling() and min(out) < 1:
        raise ValueError(
            f"the spikes have maps of {size[0]} x {size[1]}, smaller than the kernel of "
            f"{weight.shape[2]} x {weight.shape[3]} with padding={padding!r} and "
            f"dilation={dilation!r}: pad the maps, or use a smaller kernel"
        )
    (height, width), (out_height, out_width), (top, left) = size, out, before
    (down, across), (down_dilation, across_dilation) = strides, dilations
    return Convolution(
        channels=channels,
        height=height,
        width=width,
        out_height=out_height,
        out_width=out_width,
        stride_y=down,
        stride_x=across,
        top=top,
        left=left,
        dilation_y=down_dilation,
        dilation_x=across_dilation,
        groups=groups,
    )


def check_padding(padding: Any) -> None:
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"padding={padding!r} must be a number, 'same' or 'valid'")
    elif min(_pair("padding", padding)) < 0:
        raise ValueError(f"padding={padding!r} must not be negative")


def check_recording(name: str, value: Tensor, differentiable: bool = True) -> None:
    """Require a (T, B, *features) tensor with T >= 1, floating-point if ``differentiable``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}")
    if value.dim() < 3:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, but all steps are expected at once, (time, "
            "batch, *features): pass torch.stack(steps)"
        )
    if differentiable and not value.is_floating_point():
        raise TypeError(
            f"{name} has dtype {value.dtype}, but must be floating-point to have a gradient: use "
            f"{name}.float()"
        )
    _check_extent(name, value)


def not_classes(name: str, value: Any, other: str = "") -> ValueError:
    """The error for a recording that is not (T, B, C), such as one of a loop of whole sequences."""
    cure = f"use {name}.flatten(2)"
    if value.dim() == 4 and value.shape[0] == value.shape[1]:
        cure = (
            "a converted model computes all steps in one call, so remove the loop over time around "
            f"it. If the second dimension is the batch, {cure}"
        )
    return ValueError(
        f"{name} has shape {tuple(value.shape)}, but (time, batch, classes){other} is expected: "
        f"{cure}"
    )


def check_targets(targets: Tensor, scores: Tensor) -> Tensor:
    """Class indices (B,) for scores (B, C), as int64."""
    batch, classes = scores.shape
    if not isinstance(targets, Tensor):
        raise TypeError(
            f"targets must be a torch.Tensor, not {type(targets).__name__}: use "
            "torch.as_tensor(targets)"
        )
    if targets.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(
            f"targets has dtype {targets.dtype}, but class indices are integers: use "
            "targets.long(), or targets.argmax(1) for one-hot targets"
        )
    if targets.dim() != 1:
        raise ValueError(
            f"targets has shape {tuple(targets.shape)}, but one class index per sample is "
            f"expected, ({batch},): use targets.argmax(1) for one-hot targets"
        )
    if targets.shape[0] != batch:
        raise ValueError(
            f"targets has {targets.shape[0]} samples, but the recording has {batch} (its second "
            "dimension, after time): pass targets of the same batch, or put time first. A model "
            "that is given images without time is made by convert(net, num_steps=T)"
        )
    check_device("targets", targets, scores.device, "recording")
    if targets.device.type == "cpu" and not is_traced():
        wrong = targets[(targets < 0) | (targets >= classes)]
        if wrong.numel():
            raise ValueError(
                f"targets contains {wrong[0].item()}, but there are {classes} classes: indices "
                f"run from 0 to {classes - 1}. Correct the labels, or widen the output layer"
            )
    return targets.long()
