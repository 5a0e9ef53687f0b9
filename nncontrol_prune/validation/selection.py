"""What pruning asks of the closed loop, on seeds that the gate does not use: which candidate, and which states."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.verdict import EpisodeSummary
from nncontrol_prune.plants.conditions import Conditions
from nncontrol_prune.plants.tasks import task_of
from nncontrol_prune.pruning.calibration import ON_POLICY_ROWS
from nncontrol_prune.validation.episode_cache import EpisodeCache
from nncontrol_prune.validation.evaluation import check_environment, run_episodes, summarize, trajectories
from nncontrol_prune.validation.metrics import Episode
from nncontrol_prune.validation.robustness import Trial, trials_of
from nncontrol_prune.validation.settings import GateSettings

SELECTION_SEED = 50_000
SELECTION_EPISODES = 10
FIRST_EPISODES = 5
"""Episodes after which candidates that succeeded less than half as often as the best in them are given up."""
TRIAL_EPISODES = 40
"""Episodes of each of the gate's trials, shared out among its conditions."""
KEPT = 0.98
"""Share of the dense controller's return that no better candidate is looked for at."""
LOSS_SHARE = 0.5
"""Share of a trial's margin that may be lost: what loses all of it is not shown to pass."""
OBSERVATION_SEED = 60_000
OBSERVATION_EPISODES = 10


class ClosedLoop:
    """An environment that candidates are run in; the same episodes for all, and none twice.

    Args:
        environment: A gymnasium id.
        dense: The controller that the candidates are to replace.
        gate: What will be asked of the one that is chosen.
        jobs: Workers that share the episodes; what is found does not depend on it.
        cache: Where the dense controller's episodes are kept.

    Raises:
        PlantError: The controller does not fit the environment, or the gate's task does not, or there is none such.
    """

    def __init__(
        self,
        environment: str,
        dense: Bundle,
        gate: GateSettings,
        *,
        jobs: int = 1,
        cache: EpisodeCache | None = None,
    ) -> None:
        check_environment(dense.manifest, environment, gate.task)
        self._environment = environment
        self._dense = dense
        self._task = gate.task or task_of(environment)
        self._usual = Conditions(delay=gate.delay)
        # A planner's episodes of all of them take minutes for each candidate.
        self._trials = [] if dense.manifest.plans else trials_of(gate, dense, self._task)
        self._jobs, self._cache = jobs, cache
        self._episodes: dict[tuple[str, Conditions], list[Episode]] = {}

    def best(self, candidates: Sequence[Bundle]) -> int:
        """Return the index of the candidate with the most successes.

        Of several, it is the one that falls least short of the dense controller, and then the one with the highest mean
        return.
        """
        early = [self._summary(candidate, FIRST_EPISODES).successes for candidate in candidates]
        left = [index for index, count in enumerate(early) if 2 * count >= max(early)]
        if len(left) > 1:
            found = {index: self._summary(candidates[index], SELECTION_EPISODES) for index in left}
            most = max(summary.successes for summary in found.values())
            left = [index for index in left if found[index].successes == most]
        if len(left) == 1:
            return left[0]
        left.sort(key=lambda index: -found[index].return_mean)
        short = list[float]()
        for index in left:
            short.append(self._shortfall(candidates[index]))
            if short[-1] == 0.0:
                return index  # what those with a lower return do elsewhere need not be known
        return left[short.index(min(short))]

    def enough(self, candidate: Bundle) -> bool:
        """Return whether a candidate does as the dense controller does."""
        successes = self._summary(candidate, SELECTION_EPISODES).successes
        wanted = self._summary(self._dense, SELECTION_EPISODES).successes
        return successes >= wanted and self._shortfall(candidate) == 0.0

    def observations(self, bundle: Bundle) -> NDArray[np.float64]:
        """Run a controller and return the observations (rows, n) it met."""
        met: list[NDArray[np.float64]] = []
        seeds = range(OBSERVATION_SEED, OBSERVATION_SEED + OBSERVATION_EPISODES)
        for trajectory in trajectories(bundle, self._environment, seeds, self._usual):
            met.extend(trajectory.observations[:-1])
            if len(met) >= ON_POLICY_ROWS:
                break  # where episodes are long, a few are enough
        return np.array(met)

    def _summary(self, bundle: Bundle, episodes: int) -> EpisodeSummary:
        return summarize(bundle, self._first(bundle, self._usual, episodes, SELECTION_EPISODES))

    def _shortfall(self, candidate: Bundle) -> float:
        """Return what is missing of the return and, elsewhere, of successes and return, each as a share; their sum.

        What the gate lets pass is not missed.
        """
        mean = self._summary(candidate, SELECTION_EPISODES).return_mean
        wanted = self._summary(self._dense, SELECTION_EPISODES).return_mean
        scale = abs(wanted) or 1.0
        missing = max(0.0, (wanted - mean) / scale - (1.0 - KEPT))
        for trial in self._trials:
            ours, theirs = (self._elsewhere(bundle, trial) for bundle in (candidate, self._dense))
            lost = (theirs.successes - ours.successes) / theirs.episodes
            missing += max(0.0, lost - LOSS_SHARE * trial.margin)
            if trial.return_margin is not None:
                lost = (theirs.return_mean - ours.return_mean) / scale
                missing += max(0.0, lost - LOSS_SHARE * trial.return_margin)
        return missing

    def _elsewhere(self, bundle: Bundle, trial: Trial) -> EpisodeSummary:
        each = math.ceil(TRIAL_EPISODES / len(trial.conditions))
        run = [self._first(bundle, conditions, each, each) for conditions in trial.conditions.values()]
        return summarize(bundle, list(itertools.chain.from_iterable(run)))

    def _first(self, bundle: Bundle, conditions: Conditions, episodes: int, at_once: int) -> list[Episode]:
        """Return the first episodes of a controller, run where they are not known.

        Args:
            bundle: The controller.
            conditions: What it is run under.
            episodes: How many.
            at_once: How many to run where several workers share them.
        """
        known = self._episodes.setdefault((bundle.digest, conditions), [])
        if len(known) < episodes:
            # The first episodes of a planner are one batch, and a second worker has nothing to do but the others.
            count = episodes if self._jobs == 1 else at_once
            seeds = range(SELECTION_SEED + len(known), SELECTION_SEED + count)
            cache = self._cache if bundle.digest == self._dense.digest else None
            known += run_episodes(
                bundle, self._environment, seeds, conditions, task=self._task, jobs=self._jobs, cache=cache
            )
        return known[:episodes]
