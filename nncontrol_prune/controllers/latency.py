"""How long a deployed policy takes for an action, on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.bundle import Bundle


def latencies(bundle: Bundle, runs: int) -> NDArray[np.float64]:
    """Return the seconds (runs,) that a policy takes for observations as it meets them; warm."""
    observations = bundle.reference_observations.astype(np.float64)
    action = np.zeros(bundle.manifest.action.size)
    seconds = np.zeros(runs)
    for run in range(-runs // 10, runs):
        start = time.perf_counter()
        bundle.policy.act(observations[run % len(observations)], action)
        if run >= 0:
            seconds[run] = time.perf_counter() - start
    return seconds


def latencies_in_turns(bundles: Sequence[Bundle], runs: int, turns: int) -> list[NDArray[np.float64]]:
    """Return the seconds (turns, runs) that each of some policies takes.

    They take turns, so what else the machine does slows all of them alike, and seldom in every turn.
    """
    taken = [[latencies(bundle, runs) for bundle in bundles] for _ in range(turns)]
    return [np.array(seconds) for seconds in zip(*taken, strict=True)]
