"""Functional single-spike neurons: whole sequences, no loop over time.

Shapes are time-major, `(T, B, *features)`, as in snnTorch's recordings. Membranes and synaptic
currents are computed in float32, or in float64 for float64 input.
"""

from ..backends._events import Events
from ..ops.validation import GRADIENT_RULES, REDUCTIONS, NaNError
from .conv import first_spike_pool2d, single_spike_conv1d, single_spike_conv2d
from .count import spike_count
from .delay import delay_spikes
from .linear import linear_readout, single_spike_linear
from .neuron import (
    DEFAULT_GRADIENT,
    SPIKE_FORMATS,
    SingleSpikes,
    first_spike_time,
    single_spike_leaky,
)
from .readout import leaky_readout

__all__ = [
    "DEFAULT_GRADIENT",
    "GRADIENT_RULES",
    "REDUCTIONS",
    "SPIKE_FORMATS",
    "Events",
    "NaNError",
    "SingleSpikes",
    "delay_spikes",
    "first_spike_pool2d",
    "first_spike_time",
    "leaky_readout",
    "linear_readout",
    "single_spike_conv1d",
    "single_spike_conv2d",
    "single_spike_leaky",
    "single_spike_linear",
    "spike_count",
]
