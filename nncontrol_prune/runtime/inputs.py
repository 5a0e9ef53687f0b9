"""Judging what comes in: is this state new, a repetition, too early, too old, or from a clock that went back?"""

from __future__ import annotations

import math
from enum import Enum

SAME_RATE = 0.9
"""States that are further apart than this share of a period, on the mean, are each acted on, since two clocks are never
quite the same. Of states that come faster, those are that are nearest to the controller's beat."""
SMOOTHING = 0.1
"""Share of a state's distance to the one before in the mean."""


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
        keeps_beat: Whether states that come faster than the controller's rate are left out; not where a timer starts
            the ticks, each of which wants the newest.
    """

    def __init__(self, period: float, timeout: float, *, keeps_beat: bool = True) -> None:
        self._keeps_beat = keeps_beat
        self._period = period
        self._timeout = timeout
        self._last = math.nan  # the last state that was new
        self._newest = math.nan  # the last one, be it new or early
        self._spacing = period  # mean distance of states
        self._due = math.nan  # when the next one is wanted
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
        if arrival in (Arrival.NEW, Arrival.EARLY):
            self._newest = stamp
        return arrival

    @property
    def ahead(self) -> float:
        """Seconds that the newest state was ahead of the clock, if too many to be told old when it is; otherwise 0."""
        return -self.last_age if self.last_age < -self._timeout else 0.0

    def forget(self) -> None:
        """Take the next state for new, whatever its stamp."""
        self._last = self._newest = self._due = math.nan

    def _judge(self, stamp: float, now: float) -> Arrival:
        passed = stamp - self._last
        if passed == 0.0:
            return Arrival.DUPLICATE
        self.last_age = 0.0 if math.isnan(now) else now - stamp
        if self.last_age > self._timeout:
            return Arrival.LATE
        if passed < 0.0:
            if passed > -self._timeout and not math.isnan(now):
                return Arrival.LATE  # two states that overtook one another
            self.jumps_back += 1
            self._due = stamp + self._period
            return Arrival.NEW
        distance = stamp - self._newest
        if distance > 1.5 * self._period:
            self.gaps += round(distance / self._period) - 1
        elif not math.isnan(distance):
            self._spacing += SMOOTHING * (distance - self._spacing)
        return self._judge_beat(stamp)

    def _judge_beat(self, stamp: float) -> Arrival:
        """Judge whether a state is the nearest to when one is due."""
        ahead = self._due - stamp
        if self._keeps_beat and self._spacing < SAME_RATE * self._period:
            if ahead > self._spacing / 2:
                return Arrival.EARLY
            if ahead > -self._spacing:
                self._due += self._period
                return Arrival.NEW
        self._due = stamp + self._period  # the beat begins anew
        return Arrival.NEW
