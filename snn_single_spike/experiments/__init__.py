"""The papers' experiments: datasets, training and reports, behind ``snn-single-spike train``.

Imports run one way: training imports datasets and network, and nothing here imports the command
line. Packages beyond torch, snnTorch and numpy are imported by the modules that use them.
"""


class ExperimentError(ValueError):
    """An invalid setting, file or run; the message names it and the fix."""
