"""Whether a candidate is fast enough for its rate, on this machine."""

from __future__ import annotations

import numpy as np

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.latency import latencies_in_turns
from nncontrol_prune.controllers.verdict import Criterion

RUNS = 80
"""Runs of one turn."""
TURNS = 5


def latency_criterion(candidate: Bundle, dense: Bundle, share: float) -> Criterion:
    """Ask that 99 of 100 actions take no more than a share of the control period.

    The quietest of a few turns counts, since what other programs take is not the candidate's doing. The dense
    controller's figure is there to compare with.
    """
    taken = latencies_in_turns((candidate, dense), RUNS, TURNS)
    mine, their = (float(np.quantile(seconds, 0.99, axis=1).min()) for seconds in taken)
    limit = share / candidate.manifest.rate
    reason = (
        f"latency: 99 of 100 actions take up to {1e6 * mine:.0f} µs on this machine, dense "
        f"{1e6 * their:.0f}; {1e6 * limit:.0f} µs are allowed, {share:.0%} of the control period"
    )
    return Criterion(name="latency", outcome="passed" if mine <= limit else "failed", reason=reason)
