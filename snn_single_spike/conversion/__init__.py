"""Converts snnTorch models, as they are written, to whole sequences at once.

- :mod:`~snn_single_spike.conversion.api`: :func:`convert` and :func:`revert`
- :mod:`~snn_single_spike.conversion.explain`: :func:`explain`, which says what convert would do
- :mod:`~snn_single_spike.conversion.parts`, :mod:`~snn_single_spike.conversion.whole`: convert the
  parts of a model that convert, or the model as a whole
- :mod:`~snn_single_spike.conversion.folded`: the classes of converted neurons and models
- :mod:`~snn_single_spike.conversion.checked`: a call, with the comparison of the first calls
- :mod:`~snn_single_spike.conversion.immediate`: neurons that reset at the step of their spike
- :mod:`~snn_single_spike.conversion.selfcheck`: compares a loop in a forward with its conversion
- :mod:`~snn_single_spike.conversion.copies`: copies of models
- :mod:`~snn_single_spike.conversion.call`: one call of a converted model
- :mod:`~snn_single_spike.conversion.chance`: random numbers, drawn at every step
- :mod:`~snn_single_spike.conversion.loops`, :mod:`~snn_single_spike.conversion.plain`,
  :mod:`~snn_single_spike.conversion.rewrite`: find loops over time inside a forward, write them as
  plain loops, and rewrite these
- :mod:`~snn_single_spike.conversion.steps`, :mod:`~snn_single_spike.conversion.at_once`,
  :mod:`~snn_single_spike.conversion.indexed`, :mod:`~snn_single_spike.conversion.carried`,
  :mod:`~snn_single_spike.conversion.running`: run all steps of a rewritten loop at once
- :mod:`~snn_single_spike.conversion.state`: rejects state that a model keeps between steps
- :mod:`~snn_single_spike.conversion.checks`: rejects unsupported layers, warns about differences
- :mod:`~snn_single_spike.conversion.dataflow`, :mod:`~snn_single_spike.conversion.source`,
  :mod:`~snn_single_spike.conversion.methods`: read the source of the user's classes

Imports run in this order.
"""

from .api import ConversionError, convert, explain, revert

__all__ = ["ConversionError", "convert", "explain", "revert"]
