"""The registered operators, their gradients, and the checks of their arguments."""

from . import decomposition as decomposition
