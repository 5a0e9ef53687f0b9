"""What pruning asks of the closed loop, on seeds that the gate does not use: which candidate, and which states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.pruning.pipeline import ON_POLICY_ROWS, Choose, Observe
from nncontrol_prune.validation.evaluation import run_episodes, summarize, trajectories

SELECTION_SEED = 50_000
SELECTION_EPISODES = 10
OBSERVATION_SEED = 60_000
OBSERVATION_EPISODES = 10


def best_in_closed_loop(environment: str, episodes: int = SELECTION_EPISODES) -> Choose:
    """Return a function that picks the candidate with the most successes, then the highest mean return."""
    ranks: dict[str, tuple[int, float]] = {}

    def rank(candidate: Bundle) -> tuple[int, float]:
        if candidate.digest not in ranks:
            seeds = range(SELECTION_SEED, SELECTION_SEED + episodes)
            summary = summarize(candidate, run_episodes(candidate, environment, seeds))
            ranks[candidate.digest] = summary.successes, summary.return_mean
        return ranks[candidate.digest]

    def choose(candidates: Sequence[Bundle]) -> int:
        found = [rank(candidate) for candidate in candidates]
        return found.index(max(found))

    return choose


def observations_in(environment: str, episodes: int = OBSERVATION_EPISODES) -> Observe:
    """Return a function that runs a controller and returns the observations (rows, n) it met."""

    def observe(bundle: Bundle) -> NDArray[np.float64]:
        met: list[NDArray[np.float64]] = []
        for trajectory in trajectories(bundle, environment, range(OBSERVATION_SEED, OBSERVATION_SEED + episodes)):
            met.extend(trajectory.observations[:-1])
            if len(met) >= ON_POLICY_ROWS:
                break  # where episodes are long, a few are enough
        return np.array(met)

    return observe
