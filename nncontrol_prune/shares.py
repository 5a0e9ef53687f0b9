"""Shares as people read them."""

from __future__ import annotations

import math


def percent_removed(share: float) -> str:
    """Return the share that was removed in percent, to a tenth and to two digits of what is left: 90.0%, 99.975%."""
    left = 1.0 - share
    digits = max(1, math.floor(-math.log10(left))) if left > 0.0 else 1
    return f"{share:.{digits}%}"
