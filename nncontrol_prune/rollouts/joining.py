"""Joining the simulator's steps to the loop's transitions, and telling episodes apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

EPISODE_GAP = 1.0
"""A robot says nothing of episodes: there, a pause longer than this, in s, begins a new one."""


@dataclass(frozen=True)
class Timeline:
    """When something happened, row by row."""

    stamp: Floats
    """In s of the plant's clock. It restarts where the plant does."""
    log_time: Integers
    """Wall clock in ns."""

    @property
    def runs(self) -> Integers:
        """Number the stretches in which the plant's clock does not go back; one number a row."""
        return np.cumsum(np.diff(self.stamp, prepend=self.stamp[:1]) < 0)


def usual_period(stamp: Floats) -> float:
    """Return the usual time between two rows in s; infinite if there is but one."""
    gaps = np.diff(stamp)
    gaps = gaps[gaps > 0]
    return float(np.median(gaps)) if len(gaps) else float("inf")


def match_steps(transitions: Timeline, steps: Timeline) -> Integers:
    """Return for each transition the row of the step that started from it; -1 where there is none.

    Stamps belong together if they are less than half a period apart: they come from one clock, but a message may
    have rounded them. Where the clock restarts (a simulator that was started again), the same stamps come twice, and
    the log times tell which stretch of steps goes with which stretch of transitions.
    """
    match = np.full(len(transitions.stamp), -1, dtype=np.int64)
    tolerance = min(usual_period(transitions.stamp), usual_period(steps.stamp)) / 2
    if not np.isfinite(tolerance):
        tolerance = 1e-3
    candidates = list(stretches(transitions.runs))
    starts = np.array([transitions.log_time[part.start] for part in candidates])
    ends = np.array([transitions.log_time[part.stop - 1] for part in candidates])
    for part in stretches(steps.runs):
        first, last = steps.log_time[part.start], steps.log_time[part.stop - 1]
        overlap = np.minimum(last, ends) - np.maximum(first, starts)
        chosen = candidates[int(np.argmax(overlap))]
        rows, distance = _nearest(transitions.stamp[chosen], steps.stamp[part])
        # The nearest step is written last and stays.
        order = np.argsort(-distance, kind="stable")
        order = order[distance[order] < tolerance]
        match[chosen.start + rows[order]] = part.start + order
    return match


def number_episodes(transitions: Timeline, episode: Integers, known: Booleans, ended: Booleans) -> Integers:
    """Number the episodes from 0 in order, one number a transition.

    Args:
        transitions: When they were.
        episode: The simulator's number of the episode, where it is known.
        known: Where it is.
        ended: Whether the episode ended with the transition.
    """
    run = transitions.runs
    if known.any():
        label = _fill(np.where(known, episode, -1), known, ended, run)
        starts = np.diff(label, prepend=label[:1]) != 0
        starts[1:] |= ended[:-1]
    else:
        starts = np.diff(transitions.stamp, prepend=transitions.stamp[:1]) > EPISODE_GAP
    starts |= np.diff(run, prepend=run[:1]) != 0
    return np.cumsum(starts)


def _fill(label: Integers, known: Booleans, ended: Booleans, run: Integers) -> Integers:
    """Give transitions without a step the episode of the one before, or, if that one ended, of the next."""
    rows = np.arange(len(label))
    before = np.maximum.accumulate(np.where(known, rows, -1))
    after = np.minimum.accumulate(np.where(known, rows, len(rows))[::-1])[::-1]
    goes_on = (before >= 0) & (run[before] == run) & ~ended[before]
    precedes = (after < len(rows)) & (run[np.minimum(after, len(rows) - 1)] == run)
    source = np.where(goes_on, before, np.where(precedes, after, -1))
    return np.where(known, label, np.where(source >= 0, label[source], -1))


def _nearest(places: Floats, wanted: Floats) -> tuple[Integers, Floats]:
    """Return for each wanted value the nearest of the ascending places, and how far it is."""
    right = np.searchsorted(places, wanted, side="right")
    left = np.maximum(right - 1, 0)
    right = np.minimum(right, len(places) - 1)
    rows = np.where(np.abs(places[right] - wanted) < np.abs(places[left] - wanted), right, left)
    return rows, np.abs(places[rows] - wanted)


def stretches(numbers: Integers) -> Iterator[slice]:
    """Yield each stretch of equal numbers."""
    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    for start, stop in pairwise(edges):
        if stop > start:  # no numbers, no stretch
            yield slice(start, stop)
