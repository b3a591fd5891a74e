"""Constants and helpers of the writer and the reader of NIR graphs."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import nir
import numpy as np

DT = 1e-4
"""Seconds per time step, fixed in snnTorch's exporter and importer: beta = 1 - dt / tau."""

NEURON_NODES = (nir.LIF, nir.CubaLIF)


def is_neuron(node: nir.NIRNode) -> bool:
    return isinstance(node, NEURON_NODES)


def unused_name(name: str, taken: Container[str], owner: object = None) -> str:
    """``name`` with underscores added until it is not taken, and no attribute of ``owner``."""
    while not name or name in taken or (owner is not None and hasattr(owner, name)):
        name += "_"
    return name


def pair(value: Any) -> tuple[int, int]:
    """A size of two dimensions, given as one number or as two."""
    height, width = np.broadcast_to(value, 2)
    return int(height), int(width)
