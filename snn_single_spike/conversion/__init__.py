"""Converts snnTorch models, as they are written, to whole sequences at once.

- :mod:`~snn_single_spike.conversion.api`: :func:`convert` and :func:`revert`
- :mod:`~snn_single_spike.conversion.explain`: :func:`explain`, which says what convert would do
- :mod:`~snn_single_spike.conversion.parts`, :mod:`~snn_single_spike.conversion.whole`: convert the
  parts of a model that convert, or the model as a whole
- :mod:`~snn_single_spike.conversion.folded`: the modules of a converted model
- :mod:`~snn_single_spike.conversion.comparison`: compares the first calls with the author's model
- :mod:`~snn_single_spike.conversion.call`: one call of a converted model
- :mod:`~snn_single_spike.conversion.one_step`: one run of a forward of one step
- :mod:`~snn_single_spike.conversion.loops`: loops over time in a forward: finds and rewrites them,
  and runs each once for all steps
- :mod:`~snn_single_spike.conversion.attributes`, :mod:`~snn_single_spike.conversion.time_axis`:
  what a converted model holds, and the time axis that its parts share
- :mod:`~snn_single_spike.conversion.copies`: copies of models
- :mod:`~snn_single_spike.conversion.refusals`: rejects what cannot be converted
- :mod:`~snn_single_spike.conversion.source`: reads the source of the user's classes

Imports run in this order.
"""

from .api import ConversionError, convert, explain, revert

__all__ = ["ConversionError", "convert", "explain", "revert"]
