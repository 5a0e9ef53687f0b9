"""Tick statistics that cost nothing to have on: preallocated, written by the loop, read by anyone."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

COLUMNS: Final = ("bundle", "period", "compute", "lateness", "inference")
BUNDLE, PERIOD, COMPUTE, LATENESS, INFERENCE = range(5)
SUMMARIZED = 1000
"""Ticks in a summary; few enough that it does not hold up the loop."""


class Quantiles(BaseModel):
    """Quantiles of a time, in seconds."""

    p50: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Quantiles:
        """Compute them over the values that are numbers; all NaN for none."""
        values = values[np.isfinite(values)]
        if not len(values):
            return cls(p50=np.nan, p99=np.nan, p999=np.nan, max=np.nan)
        p50, p99, p999 = np.percentile(values, [50, 99, 99.9])
        return cls(p50=p50, p99=p99, p999=p999, max=values.max())


class TickSummary(BaseModel):
    """Statistics of a stretch of ticks. Times in seconds."""

    ticks: int
    overruns: int = 0
    """Ticks whose work ended after the next tick's deadline."""
    skipped: int = 0
    """Ticks that were not carried out, since the one before or the machine took too long."""
    period: Quantiles
    compute: Quantiles
    """From reading the observation to having handed on the command."""
    lateness: Quantiles
    """From a tick's deadline to its start."""
    inference: Quantiles
    """The controller alone: from observation to action."""


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

    def record(self, bundle: int, period: float, compute: float, lateness: float, inference: float) -> None:
        """Keep one tick; called by the loop only. Times in seconds."""
        row = self._rows[self.ticks % self._capacity]
        row[BUNDLE] = bundle
        row[PERIOD] = period
        row[COMPUTE] = compute
        row[LATENESS] = lateness
        row[INFERENCE] = inference
        self.ticks += 1

    @property
    def oldest(self) -> int:
        """Number of the oldest tick kept."""
        return max(0, self.ticks - self._capacity)

    def rows(self, start: int = 0, count: int | None = None) -> NDArray[np.float64]:
        """Return a copy of kept ticks, (ticks, 5), oldest first; columns as in `COLUMNS`.

        Args:
            start: Number of the first tick wanted; what is no longer kept is left out.
            count: How many at the most.
        """
        end = self.ticks
        start = min(max(start, self.oldest), end)
        if count is not None:
            end = min(end, start + count)
        if start == end:
            return self._rows[:0].copy()
        first, last = start % self._capacity, (end - 1) % self._capacity + 1
        if first < last:
            return self._rows[first:last].copy()
        return np.concatenate([self._rows[first:], self._rows[:last]])

    def summary(self) -> TickSummary:
        """Summarize the last ticks."""
        summary = summarize(self.rows(self.ticks - SUMMARIZED))
        return summary.model_copy(update={"ticks": self.ticks, "overruns": self.overruns, "skipped": self.skipped})


def summarize(rows: NDArray[np.float64]) -> TickSummary:
    """Summarize ticks, (ticks, 5), with columns as in `COLUMNS`."""
    return TickSummary(
        ticks=len(rows),
        period=Quantiles.of(rows[:, PERIOD]),
        compute=Quantiles.of(rows[:, COMPUTE]),
        lateness=Quantiles.of(rows[:, LATENESS]),
        inference=Quantiles.of(rows[:, INFERENCE]),
    )
