"""Single-spike models as graphs of the Neuromorphic Intermediate Representation, and back.

NIR has no neuron that fires at most once. A single-spike neuron is written as the LIF or CubaLIF
node that snnTorch writes for it, with the mark ``metadata["max_spikes"] = 1``. A reader without
support for the mark reads an ordinary spiking network. A neuron that may spike again has
``metadata["refractory"]``, its silent steps, in place of it. ``metadata["reset_mechanism"]`` names
the reset of the membrane, because NIR's own reset, to ``v_reset``, cannot express "subtract".
"""

try:
    import nir  # noqa: F401
    import snntorch.export_nir
    import snntorch.import_nir  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"snn_single_spike.nir needs packages that are not installed ({error}): "
        'pip install "snn-single-spike[nir]"'
    ) from error

from .read import import_from_nir
from .write import export_to_nir

__all__ = ["export_to_nir", "import_from_nir"]
