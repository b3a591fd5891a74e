"""Single-spike layers for snnTorch, computed over the whole time axis at once."""

from importlib.metadata import PackageNotFoundError, version

from ._checkout import expose_kernels

expose_kernels()

from . import data, functional, init, losses, memory, metrics  # noqa: E402
from .conversion.api import ConversionError, convert, explain, revert  # noqa: E402
from .modules.alpha import SingleSpikeAlpha  # noqa: E402
from .modules.conv import SingleSpikeConv1d, SingleSpikeConv2d  # noqa: E402
from .modules.delay import SpikeDelay  # noqa: E402
from .modules.lapicque import SingleSpikeLapicque  # noqa: E402
from .modules.leaky import FusedLeaky, LeakyState, SingleSpikeLeaky  # noqa: E402
from .modules.linear import SingleSpikeLinear  # noqa: E402
from .modules.pooling import FirstSpikePool2d  # noqa: E402
from .modules.readout import LeakyReadout  # noqa: E402
from .modules.rleaky import SingleSpikeRLeaky  # noqa: E402
from .modules.synaptic import SingleSpikeSynaptic  # noqa: E402
from .spikes import (  # noqa: E402
    AveragedSpikes,
    DelayedSpikes,
    MaterializationWarning,
    SpikeEvents,
    SpikeTimes,
)

try:
    __version__ = version("snn-single-spike")
except PackageNotFoundError:  # a bare checkout on the path
    __version__ = "0+unknown"

__all__ = [
    "AveragedSpikes",
    "ConversionError",
    "DelayedSpikes",
    "FirstSpikePool2d",
    "FusedLeaky",
    "LeakyReadout",
    "LeakyState",
    "MaterializationWarning",
    "SingleSpikeAlpha",
    "SingleSpikeConv1d",
    "SingleSpikeConv2d",
    "SingleSpikeLapicque",
    "SingleSpikeLeaky",
    "SingleSpikeLinear",
    "SingleSpikeRLeaky",
    "SingleSpikeSynaptic",
    "SpikeDelay",
    "SpikeEvents",
    "SpikeTimes",
    "convert",
    "data",
    "explain",
    "functional",
    "init",
    "losses",
    "memory",
    "metrics",
    "revert",
]
