"""The neuron modules: snnTorch's neurons with at most one spike, over a whole sequence."""

from .alpha import SingleSpikeAlpha
from .lapicque import SingleSpikeLapicque
from .leaky import FusedLeaky, LeakyState, SingleSpikeLeaky
from .linear import SingleSpikeLinear
from .readout import LeakyReadout
from .rleaky import SingleSpikeRLeaky
from .synaptic import SingleSpikeSynaptic

__all__ = [
    "FusedLeaky",
    "LeakyReadout",
    "LeakyState",
    "SingleSpikeAlpha",
    "SingleSpikeLapicque",
    "SingleSpikeLeaky",
    "SingleSpikeLinear",
    "SingleSpikeRLeaky",
    "SingleSpikeSynaptic",
]
