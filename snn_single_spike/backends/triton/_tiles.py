"""Spikes of a convolution as its kernels read them: by tile of neurons, and by channel."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .._events import Events
from .._types import Convolution

_CHANNELS = 32  # neighboring channels of a tile: the rows of weights are read in this length
_POSITIONS = 64
# Numbers of a tile that stay in registers: currents, and each of the other states.
_NUMBERS = {torch.float32: 256, torch.float64: 128}
# The cost of the interpreter is per program and step: large tiles are cheap.
_INTERPRETED = 4096


class Tile(NamedTuple):
    """Sizes of a tile: powers of two."""

    y: int
    x: int
    channels: int

    def counts(self, conv: Convolution) -> tuple[int, int]:
        """The number of tiles of a map, in a column and in a row."""
        windows_y, windows_x = windows(conv)
        return triton.cdiv(windows_y, self.y), triton.cdiv(windows_x, self.x)


def windows(conv: Convolution) -> tuple[int, int]:
    """The number of neurons of a channel, in a column and in a row."""
    return conv.out_height // conv.pool_y, conv.out_width // conv.pool_x


def tile_of(conv: Convolution, out_channels: int, dtype: torch.dtype, interpreted: bool) -> Tile:
    """The tile of a program of one warp, for ``out_channels`` channels of a group."""
    power = triton.next_power_of_2
    channels = min(power(out_channels), _CHANNELS)
    numbers = _INTERPRETED if interpreted else _NUMBERS[dtype]
    positions = numbers // (channels * power(conv.pool_y * conv.pool_x))
    positions = max(1, positions if interpreted else min(positions, _POSITIONS))
    windows_y, windows_x = windows(conv)
    # As square as the map allows: then a spike reaches the fewest tiles.
    y = min(power(windows_y), 1 << (positions.bit_length() - 1) // 2)
    x = min(power(windows_x), positions // y)
    return Tile(min(power(windows_y), positions // x), x, channels)


class Spikes(NamedTuple):
    """Spikes with their places in the map of inputs, in the order of events: by sample and time."""

    num_samples: int
    times: Tensor
    """(E,) int32, as all that follow."""
    channels: Tensor
    samples: Tensor
    rows: Tensor
    """From the first row that the kernel covers, padding included."""
    columns: Tensor
    units: Tensor
    values: Tensor | None
    """(E,), of the type of the weights; None if every height is 1."""


Sorted = dict[str, Tensor | None]
"""Spikes in an order of parts, by name of a kernel's arguments.

The spikes of part i are at indices offsets[i] to offsets[i + 1] - 1, in the order of time.
"""


def places_of(events: Events, conv: Convolution, dtype: torch.dtype) -> Spikes:
    pixel = events.units % (conv.height * conv.width)
    return Spikes(
        len(events.offsets) - 1,
        events.times,
        events.units // (conv.height * conv.width),
        events.samples().to(torch.int32),
        pixel // conv.width + conv.top,
        pixel % conv.width + conv.left,
        events.units,
        None if events.values is None else events.values.to(dtype),
    )


def _sorted(
    spikes: Spikes, names: tuple[str, ...], part: Tensor, parts: int, copies: int = 1
) -> Sorted:
    """The spikes by part, each of them ``copies`` times; without those of part ``parts``."""
    part, order = part.sort(stable=True)
    bounds = torch.arange(parts + 1, dtype=part.dtype, device=part.device)
    moved: Sorted = {"offsets": torch.searchsorted(part, bounds)}
    for name in names:
        values = getattr(spikes, name)
        moved[name] = None if values is None else values[order // copies]
    return moved


def by_channel(spikes: Spikes, conv: Convolution) -> Sorted:
    """The spikes of all samples, by channel."""
    names = ("times", "samples", "rows", "columns", "values")
    return _sorted(spikes, names, spikes.channels, conv.channels)


def _tiles_reached(
    place: Tensor, tiles: int, length: int, pool: int, stride: int, reach: int
) -> tuple[Tensor, Tensor]:
    """The tiles (E, n) of ``length`` neurons that a row or column reaches, and which there are.

    ``reach`` is the number of inputs from the first to the last tap.
    """
    step = length * pool * stride  # inputs from one tile to the next
    reach += (length * pool - 1) * stride
    tile = place[:, None] // step - torch.arange(reach // step + 1, device=place.device)
    real = (tile >= 0) & (tile < tiles) & (place[:, None] - tile * step <= reach)
    return tile.to(torch.int32), real


def by_tile(spikes: Spikes, conv: Convolution, kernel: tuple[int, int], tile: Tile) -> Sorted:
    """The spikes by sample, group and tile. A spike that reaches several tiles is in each.

    The number of spikes depends on sizes alone, so that a GPU need not report it.
    """
    tiles_y, tiles_x = tile.counts(conv)
    reach_y, reach_x = conv.dilation_y * (kernel[0] - 1), conv.dilation_x * (kernel[1] - 1)
    y, in_y = _tiles_reached(spikes.rows, tiles_y, tile.y, conv.pool_y, conv.stride_y, reach_y)
    x, in_x = _tiles_reached(spikes.columns, tiles_x, tile.x, conv.pool_x, conv.stride_x, reach_x)
    group = spikes.channels // (conv.channels // conv.groups)
    map_ = (spikes.samples * conv.groups + group)[:, None, None]
    part = (map_ * tiles_y + y[:, :, None]) * tiles_x + x[:, None, :]
    parts = spikes.num_samples * conv.groups * tiles_y * tiles_x
    part = torch.where(in_y[:, :, None] & in_x[:, None, :], part, parts)
    names = ("times", "channels", "rows", "columns", "values")
    return _sorted(spikes, names, part.flatten(), parts, part.shape[1] * part.shape[2])
