"""Choosing among candidates in closed loop, on seeds that the gate does not use."""

from __future__ import annotations

from collections.abc import Sequence

from nncontrol_prune.pruning.pipeline import Candidate, Choose
from nncontrol_prune.validation.evaluation import run_episodes, summarize

SELECTION_SEED = 50_000
SELECTION_EPISODES = 10


def best_in_closed_loop(environment: str, episodes: int = SELECTION_EPISODES) -> Choose:
    """Return a function that picks the candidate with the most successes, then the highest mean return."""

    def choose(candidates: Sequence[Candidate]) -> int:
        seeds = range(SELECTION_SEED, SELECTION_SEED + episodes)
        summaries = [
            summarize(candidate.bundle, run_episodes(candidate.bundle, environment, seeds)) for candidate in candidates
        ]
        return max(range(len(summaries)), key=lambda index: (summaries[index].successes, summaries[index].return_mean))

    return choose
