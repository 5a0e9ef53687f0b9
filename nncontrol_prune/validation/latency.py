"""How long a deployed policy takes for an action, on this machine."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.verdict import Criterion

RUNS = 400
"""Runs that a figure is taken from, after a tenth as many that do not count."""
TURNS = 5
"""Turns that the runs are shared among: another job's interference seldom lasts through all."""


def latencies(bundle: Bundle, runs: int = RUNS) -> NDArray[np.float64]:
    """Return the seconds (runs,) that the policy took for observations as it meets them."""
    observations = bundle.reference_observations.astype(np.float64)
    action = np.zeros(bundle.manifest.action.size)
    seconds = np.zeros(runs)
    for run in range(-runs // 10, runs):
        start = time.perf_counter()
        bundle.policy.act(observations[run % len(observations)], action)
        if run >= 0:
            seconds[run] = time.perf_counter() - start
    return seconds


def latency_criterion(candidate: Bundle, dense: Bundle, share: float) -> Criterion:
    """Ask that 99 of 100 actions take no more than a share of the control period.

    The quietest of a few turns counts, since what other programs take is not the candidate's doing. The dense
    controller's figure is there to compare with.
    """
    mine, their = (
        min(float(np.quantile(latencies(bundle, RUNS // TURNS), 0.99)) for _ in range(TURNS))
        for bundle in (candidate, dense)
    )
    limit = share / candidate.manifest.rate
    reason = (
        f"latency: 99 of 100 actions take up to {1e6 * mine:.0f} µs on this machine, dense "
        f"{1e6 * their:.0f}; {1e6 * limit:.0f} µs are allowed, {share:.0%} of the control period"
    )
    return Criterion(name="latency", outcome="passed" if mine <= limit else "failed", reason=reason)
