"""Judging what comes in: is this state new, a repetition, too early, too old, or from a clock that went back?"""

from __future__ import annotations

import math
from enum import Enum

EARLY = 0.5
"""A state that comes sooner than this share of a period after the last one is left out: the plant is faster than the
controller."""


class Arrival(Enum):
    """What a state that arrives is."""

    NEW = "new"
    DUPLICATE = "duplicate"
    EARLY = "early"
    LATE = "late"


class InputMonitor:
    """Judges states by their stamps, and counts.

    Args:
        period: Of the controller, in seconds.
        timeout: Age in seconds past which a state is too old to act on.
    """

    def __init__(self, period: float, timeout: float) -> None:
        self._period = period
        self._timeout = timeout
        self._last = math.nan
        self.counts = dict.fromkeys(Arrival, 0)
        """How many there were of each kind."""
        self.jumps_back = 0
        """How many times the stamps went back, as they do when a simulator starts again."""
        self.gaps = 0
        """How many states are missing between those that came."""
        self.last_age = 0.0
        """Age of the newest state when it came, in seconds of the plant's clock."""

    def judge(self, stamp: float, now: float) -> Arrival:
        """Judge a state by its stamp.

        Args:
            stamp: Of the state, in seconds of the plant's clock.
            now: What that clock says now; NaN where there is none to ask.
        """
        arrival = self._judge(stamp, now)
        self.counts[arrival] += 1
        if arrival is Arrival.NEW:
            self._last = stamp
        return arrival

    def forget(self) -> None:
        """Take the next state for new, whatever its stamp."""
        self._last = math.nan

    def _judge(self, stamp: float, now: float) -> Arrival:
        passed = stamp - self._last
        if passed == 0.0:
            return Arrival.DUPLICATE
        self.last_age = 0.0 if math.isnan(now) else now - stamp
        if self.last_age > self._timeout:
            return Arrival.LATE
        if passed < 0.0:
            if passed > -self._timeout and not math.isnan(now) and now - self._last < self._timeout:
                return Arrival.LATE  # two states that overtook one another
            self.jumps_back += 1
            return Arrival.NEW
        if passed < EARLY * self._period:
            return Arrival.EARLY
        if passed > 1.5 * self._period and not math.isnan(self._last):
            self.gaps += round(passed / self._period) - 1
        return Arrival.NEW
