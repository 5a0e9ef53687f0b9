"""What all pictures have in common, whatever draws them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

DENSE, PRUNED = "#2b5d8c", "#d9822b"
"""Colours of the two controllers; blue and orange differ for everyone who sees any colour, and in grey."""


def without_wraps(signal: ArrayLike) -> NDArray[np.float64]:
    """Return a signal with gaps (NaN) where an angle wraps, so that no line is drawn across the picture.

    What goes beyond ±2π is no angle that wraps, and stays as it is.
    """
    values = np.array(signal, dtype=np.float64)
    if (np.abs(values) > 2 * np.pi).any():
        return values
    values[np.abs(np.diff(values, prepend=values[:1])) > np.pi] = np.nan
    return values
