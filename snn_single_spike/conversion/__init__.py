"""Converts snnTorch models, as they are written, to whole sequences at once.

- :mod:`~snn_single_spike.conversion.api`: :func:`convert` and :func:`revert`
- :mod:`~snn_single_spike.conversion.folded`: runs a converted model
- :mod:`~snn_single_spike.conversion.checks`: rejects unsupported layers, warns about differences
- :mod:`~snn_single_spike.conversion.source`: finds loops in the source of a class

Imports run in this order: api, folded, checks, source.
"""

from .api import ConversionError, convert, revert

__all__ = ["ConversionError", "convert", "revert"]
