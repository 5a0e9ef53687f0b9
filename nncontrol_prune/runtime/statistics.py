"""Tick statistics that cost nothing to have on: preallocated, written by the loop, read by anyone."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

COLUMNS: Final = ("bundle", "period", "compute", "lateness")
_BUNDLE, _PERIOD, _COMPUTE, _LATENESS = range(4)


class Quantiles(BaseModel):
    """Quantiles of a time, in seconds."""

    p50: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Quantiles:
        """Compute them; all NaN for no values."""
        if not len(values):
            return cls(p50=np.nan, p99=np.nan, p999=np.nan, max=np.nan)
        p50, p99, p999 = np.percentile(values, [50, 99, 99.9])
        return cls(p50=p50, p99=p99, p999=p999, max=values.max())


class TickSummary(BaseModel):
    """Statistics of a stretch of ticks. Times in seconds."""

    ticks: int
    overruns: int
    """Ticks whose work ended after the next tick's deadline."""
    skipped: int
    """Ticks that were not carried out, since the one before or the machine took too long."""
    period: Quantiles
    compute: Quantiles
    """From reading the observation to having handed on the command."""
    lateness: Quantiles
    """From a tick's deadline to its start."""


class TickStatistics:
    """The last ticks of a loop.

    Args:
        capacity: How many ticks are kept.
    """

    def __init__(self, capacity: int = 1 << 16) -> None:
        self._rows = np.zeros((capacity, len(COLUMNS)))
        self._capacity = capacity
        self.ticks = 0
        """Ticks carried out since the start."""
        self.overruns = 0
        self.skipped = 0

    def record(self, bundle: int, period: float, compute: float, lateness: float) -> None:
        """Keep one tick; called by the loop only. Times in seconds."""
        row = self._rows[self.ticks % self._capacity]
        row[_BUNDLE] = bundle
        row[_PERIOD] = period
        row[_COMPUTE] = compute
        row[_LATENESS] = lateness
        self.ticks += 1

    def rows(self) -> NDArray[np.float64]:
        """Return a copy of the ticks kept, (ticks, 4), oldest first; columns as in `COLUMNS`."""
        ticks = self.ticks
        if ticks <= self._capacity:
            return self._rows[:ticks].copy()
        return np.roll(self._rows, -(ticks % self._capacity), axis=0)

    def summary(self, bundle: int | None = None) -> TickSummary:
        """Summarize the ticks kept, or those of one controller (counted by swaps)."""
        rows = self.rows()
        if bundle is not None:
            rows = rows[rows[:, _BUNDLE] == bundle]
        return TickSummary(
            ticks=self.ticks if bundle is None else len(rows),
            overruns=self.overruns,
            skipped=self.skipped,
            # The first tick has no period.
            period=Quantiles.of(rows[np.isfinite(rows[:, _PERIOD]), _PERIOD]),
            compute=Quantiles.of(rows[:, _COMPUTE]),
            lateness=Quantiles.of(rows[:, _LATENESS]),
        )
