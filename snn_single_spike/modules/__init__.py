"""The neuron modules: snnTorch's neurons over a whole sequence, with at most one spike."""

from .alpha import SingleSpikeAlpha
from .lapicque import SingleSpikeLapicque
from .leaky import LeakyState, SingleSpikeLeaky
from .linear import SingleSpikeLinear
from .readout import LeakyReadout
from .rleaky import SingleSpikeRLeaky
from .synaptic import SingleSpikeSynaptic

__all__ = [
    "LeakyReadout",
    "LeakyState",
    "SingleSpikeAlpha",
    "SingleSpikeLapicque",
    "SingleSpikeLeaky",
    "SingleSpikeLinear",
    "SingleSpikeRLeaky",
    "SingleSpikeSynaptic",
]
