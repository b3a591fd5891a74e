"""The neuron modules: snnTorch's neurons with at most one spike, over a whole sequence."""

from .alpha import SingleSpikeAlpha
from .conv import SingleSpikeConv1d, SingleSpikeConv2d
from .delay import SpikeDelay
from .lapicque import SingleSpikeLapicque
from .leaky import FusedLeaky, LeakyState, SingleSpikeLeaky
from .linear import SingleSpikeLinear
from .pooling import FirstSpikePool2d
from .readout import LeakyReadout
from .rleaky import SingleSpikeRLeaky
from .synaptic import SingleSpikeSynaptic

__all__ = [
    "FirstSpikePool2d",
    "FusedLeaky",
    "LeakyReadout",
    "LeakyState",
    "SingleSpikeAlpha",
    "SingleSpikeConv1d",
    "SingleSpikeConv2d",
    "SingleSpikeLapicque",
    "SingleSpikeLeaky",
    "SingleSpikeLinear",
    "SingleSpikeRLeaky",
    "SingleSpikeSynaptic",
    "SpikeDelay",
]
