"""Single-spike layers for snnTorch, computed over the whole time axis at once."""

from pathlib import Path

# In a source checkout the Triton kernels lie beside this package, not inside it.
_checkout = Path(__file__).parent.parent
if (_checkout / "kernels" / "leaky.py").is_file():
    __path__.append(str(_checkout))

from . import functional  # noqa: E402
