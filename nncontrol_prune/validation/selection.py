"""What pruning asks of the closed loop, on seeds that the gate does not use: which candidate, and which states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.pruning.pipeline import ON_POLICY_ROWS
from nncontrol_prune.validation.evaluation import run_episodes, summarize, trajectories
from nncontrol_prune.validation.metrics import Episode

SELECTION_SEED = 50_000
SELECTION_EPISODES = 10
FIRST_EPISODES = 5
"""Episodes after which candidates that succeeded less than half as often as the best in them are given up."""
KEPT = 0.98
"""Share of the dense controller's return that no better candidate is looked for at."""
OBSERVATION_SEED = 60_000
OBSERVATION_EPISODES = 10

Rank = tuple[int, float]
"""Successes, then the mean return."""


class ClosedLoop:
    """An environment that candidates are run in; the same episodes for all, and none twice.

    Args:
        environment: A gymnasium id.
        dense: The controller that the candidates are to replace.
        jobs: Workers that share the episodes; what is found does not depend on it.
    """

    def __init__(self, environment: str, dense: Bundle, *, jobs: int = 1) -> None:
        self._environment = environment
        self._dense = dense
        self._jobs = jobs
        self._episodes: dict[str, list[Episode]] = {}

    def best(self, candidates: Sequence[Bundle]) -> int:
        """Return the index of the candidate with the most successes, then the highest mean return."""
        successes = [self._rank(candidate, FIRST_EPISODES)[0] for candidate in candidates]
        left = [index for index, count in enumerate(successes) if 2 * count >= max(successes)]
        if len(left) == 1:
            return left[0]
        return max(left, key=lambda index: self._rank(candidates[index], SELECTION_EPISODES))

    def enough(self, candidate: Bundle) -> bool:
        """Return whether a candidate does as the dense controller does."""
        successes, mean = self._rank(candidate, SELECTION_EPISODES)
        wanted, dense_mean = self._rank(self._dense, SELECTION_EPISODES)
        return successes >= wanted and mean >= dense_mean - (1 - KEPT) * abs(dense_mean)

    def observations(self, bundle: Bundle) -> NDArray[np.float64]:
        """Run a controller and return the observations (rows, n) it met."""
        met: list[NDArray[np.float64]] = []
        seeds = range(OBSERVATION_SEED, OBSERVATION_SEED + OBSERVATION_EPISODES)
        for trajectory in trajectories(bundle, self._environment, seeds):
            met.extend(trajectory.observations[:-1])
            if len(met) >= ON_POLICY_ROWS:
                break  # where episodes are long, a few are enough
        return np.array(met)

    def _rank(self, bundle: Bundle, episodes: int) -> Rank:
        known = self._episodes.setdefault(bundle.digest, [])
        if len(known) < episodes:
            # The first episodes of a planner are one batch, and a second worker has nothing to do but the others.
            count = episodes if self._jobs == 1 else SELECTION_EPISODES
            seeds = range(SELECTION_SEED + len(known), SELECTION_SEED + count)
            known.extend(run_episodes(bundle, self._environment, seeds, jobs=self._jobs))
        summary = summarize(bundle, known[:episodes])
        return summary.successes, summary.return_mean
