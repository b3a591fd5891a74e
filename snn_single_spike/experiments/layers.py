"""The notation of networks: `32C5-P2-64C5-P2-512`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from . import ExperimentError

_KINDS = {
    "linear": re.compile(r"(\d+)"),
    "convolution": re.compile(r"(\d+)C(\d+)"),
    "maximum": re.compile(r"P(\d+)"),
    "average": re.compile(r"AP(\d+)"),
}


class Layer(NamedTuple):
    """One layer of a network, without its neurons."""

    kind: str
    """``linear``, ``convolution``, ``maximum`` or ``average``."""

    size: int
    """The side of the kernel or window; 0 for ``linear``."""

    given: tuple[int, ...]
    """Features of the input, ``(units,)`` for ``linear``."""

    features: tuple[int, ...]
    """Features of the output."""

    fires: bool
    """Whether neurons stand directly behind the layer."""


def parse(text: str, features: Sequence[int], padding: str = "valid") -> list[Layer]:
    """
    Parse hidden layers, joined by `-`: `300` is a layer of neurons; `12C5` is a convolution to 12
    feature maps with kernels of 5 x 5, and their neurons; `P2` directly behind a convolution is the
    maximum of its currents in windows of 2 x 2, in front of the neurons; `AP2` is the average of
    spikes in such windows.

    :param features: features of the input, `(units,)` or `(channels, height, width)`
    :param padding: `same` if convolutions keep the size of their maps. Defaults to `valid`
    :raises ExperimentError: invalid layers, or layers that do not fit the input
    """
    layers: list[Layer] = []
    names = text.split("-")
    for name, following in zip(names, [*names[1:], ""], strict=True):
        pooled = _KINDS["maximum"].fullmatch(following) is not None
        before = layers[-1] if layers else None
        try:
            layer = _layer(name, tuple(features), before, pooled, padding)
        except ExperimentError as error:
            raise ExperimentError(f"--layers {text}, {name!r}: {error}") from None
        layers.append(layer)
        features = layer.features
    return layers


def _layer(
    name: str, given: tuple[int, ...], before: Layer | None, pooled: bool, padding: str
) -> Layer:
    """The layer of this name; ``pooled`` if the maximum of its currents is next."""
    kind, numbers = _read(name)
    if kind == "linear":
        return Layer(kind, 0, (math.prod(given),), (numbers[0],), True)
    if len(given) != 3:
        raise ExperimentError(
            f"images are needed, but the input has {given[0]} units; put convolutions first, or "
            "use numbers of neurons only"
        )
    channels, height, width = given
    side = numbers[-1]
    if kind == "convolution":
        if padding == "same":
            return Layer(kind, side, given, (numbers[0], height, width), not pooled)
        if side > min(height, width):
            raise ExperimentError(
                f"the input images are only {height} x {width}: use a kernel of at most "
                f"{min(height, width)}"
            )
        features = (numbers[0], height - side + 1, width - side + 1)
        return Layer(kind, side, given, features, not pooled)
    if before is None:
        raise ExperimentError("put a convolution before the first pooling")
    if kind == "maximum" and before.kind != "convolution":
        raise ExperimentError(
            "P is the maximum of the currents of a convolution; put it directly behind one, or use "
            f"AP{side}, the average of spikes"
        )
    if side > min(height, width):
        raise ExperimentError(
            f"the input maps are only {height} x {width}: use a window of at most "
            f"{min(height, width)}"
        )
    features = (channels, height // side, width // side)
    return Layer(kind, side, given, features, kind == "maximum")


def _read(name: str) -> tuple[str, list[int]]:
    for kind, pattern in _KINDS.items():
        if found := pattern.fullmatch(name):
            numbers = [int(number) for number in found.groups()]
            if 0 in numbers:
                raise ExperimentError("use numbers of at least 1")
            return kind, numbers
    raise ExperimentError(
        "use numbers of neurons, convolutions such as 12C5, and poolings such as P2 (maximum) and "
        "AP2 (average), joined by -"
    )
