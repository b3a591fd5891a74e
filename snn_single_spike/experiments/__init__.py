"""The papers' experiments: datasets, training and reports, behind ``snn-single-spike train``.

Imports run one way: datasets and network know nothing of training, nothing here knows of the
command line. What torch, snnTorch and numpy do not bring is imported where it is used.
"""


class ExperimentError(ValueError):
    """A setting, file or run that cannot be used; the message names it and the fix."""
