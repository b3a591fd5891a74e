"""Whole snnTorch models, as they are written, over the whole sequence at once."""

from .api import ConversionError, convert, revert

__all__ = ["ConversionError", "convert", "revert"]
