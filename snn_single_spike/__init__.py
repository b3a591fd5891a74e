"""Single-spike layers for snnTorch, computed over the whole time axis at once."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# In a source checkout the Triton kernels lie beside this package, not inside it.
_checkout = Path(__file__).parent.parent
if (_checkout / "kernels" / "leaky.py").is_file():
    __path__.append(str(_checkout))

from . import functional, losses, metrics  # noqa: E402
from .alpha import SingleSpikeAlpha  # noqa: E402
from .conversion import ConversionError, convert, revert  # noqa: E402
from .lapicque import SingleSpikeLapicque  # noqa: E402
from .leaky import LeakyState, SingleSpikeLeaky  # noqa: E402
from .linear import SingleSpikeLinear  # noqa: E402
from .pooling import AveragedSpikes  # noqa: E402
from .readout import LeakyReadout  # noqa: E402
from .rleaky import SingleSpikeRLeaky  # noqa: E402
from .spikes import SpikeEvents, SpikeTimes  # noqa: E402
from .synaptic import SingleSpikeSynaptic  # noqa: E402

try:
    __version__ = version("snn-single-spike")
except PackageNotFoundError:  # a bare checkout on the path
    __version__ = "0+unknown"

__all__ = [
    "AveragedSpikes",
    "ConversionError",
    "LeakyReadout",
    "LeakyState",
    "SingleSpikeAlpha",
    "SingleSpikeLapicque",
    "SingleSpikeLeaky",
    "SingleSpikeLinear",
    "SingleSpikeRLeaky",
    "SingleSpikeSynaptic",
    "SpikeEvents",
    "SpikeTimes",
    "convert",
    "functional",
    "losses",
    "metrics",
    "revert",
]
