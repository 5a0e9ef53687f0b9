"""The gate: decides in closed loop whether a pruned controller may take the dense one's place.

Both controllers start each pair of episodes from the same seed. Every criterion may be looked at after each pair
(betting.py), so the gate stops as soon as the verdict is certain: a criterion that is failed rejects at once, and once
all are passed and the least number of pairs is done, both are put through the conditions of robustness.py, and started
from anywhere; who passes that too is accepted. What is still undecided after the
largest number of pairs is inconclusive, which no controller is staged on.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

import numpy as np

from nncontrol_prune.controllers.bundle import Bundle, short
from nncontrol_prune.controllers.specs import layout_difference
from nncontrol_prune.controllers.verdict import ConditionSummary, Criterion, Verdict, decision_of, share_kept
from nncontrol_prune.plants.conditions import Conditions
from nncontrol_prune.plants.environments import PlantError
from nncontrol_prune.plants.tasks import task_of
from nncontrol_prune.progress import Progress
from nncontrol_prune.validation.criteria import Reference, closed_loop_criteria
from nncontrol_prune.validation.episode_cache import EpisodeCache
from nncontrol_prune.validation.evaluation import check_environment, run_episodes, summarize
from nncontrol_prune.validation.latency_criterion import latency_criterion
from nncontrol_prune.validation.metrics import Episode
from nncontrol_prune.validation.robustness import ROUNDS, RobustnessTest, Trial, trials_of
from nncontrol_prune.validation.settings import GateSettings
from nncontrol_prune.validation.stability import NoEquilibriumError, margin_criterion

LOOK = 25
"""Pairs run between two looks."""
REFERENCE_EPISODES = 20
"""Episodes that the dense controller's own return and action rate are taken from."""
LEAST_SUCCESS = 0.5
"""Share of its episodes in which a dense controller should succeed, or a note says what the verdict is worth; and
share of its usual return that it should keep under a condition."""


class GateError(Exception):
    """The gate cannot judge what it was given; the message says why."""


def judge(
    candidate: Bundle,
    dense: Bundle,
    environment: str,
    settings: GateSettings,
    progress: Progress | None = None,
    *,
    cache: EpisodeCache | None = None,
) -> Verdict:
    """Run the gate.

    Args:
        candidate: The controller to be judged.
        dense: The controller it is to replace.
        environment: A gymnasium id.
        settings: Criteria and number of episodes.
        progress: Told of every batch, and asked whether to stop.
        cache: Where the dense controller's episodes are kept from one time to the next.

    Raises:
        GateError: The candidate was pruned from another controller or has another layout or rate, or the dense one's
            mean return is zero.
        PlantError: The environment does not exist, raises, or does not fit one of the controllers.
        Cancelled: `progress` said so.
    """
    check_replaceable(candidate, dense)
    check_environment(dense.manifest, environment, settings.task)
    return _Gate(candidate, dense, environment, settings, progress or Progress(), cache).verdict()


def check_replaceable(candidate: Bundle, dense: Bundle) -> None:
    """Check that a candidate may be judged against a controller.

    Raises:
        GateError: It was pruned from another one, or has another layout or rate.
    """
    if candidate.manifest.parent not in (None, dense.reference):
        raise GateError(
            f"{short(candidate.reference)} was pruned from {short(str(candidate.manifest.parent))}, "
            f"so it is judged against that and not against {short(dense.reference)}"
        )
    difference = layout_difference(candidate.manifest, dense.manifest)
    if difference is not None:
        raise GateError(f"{candidate.manifest.name} cannot take the place of {dense.manifest.name}: {difference}")


def _hard_conditions(found: Sequence[ConditionSummary], reference: Reference) -> list[str]:
    """Return a note, if there are any, on the conditions that the dense controller itself cannot cope with."""
    hard = [
        each.condition
        for each in found
        if each.dense_successes < LEAST_SUCCESS * each.pairs
        or share_kept(each.dense_return, reference.episode_return) < LEAST_SUCCESS
    ]
    if not hard:
        return []
    return [
        f"robustness: with {', '.join(hard)} the dense controller itself succeeds in less than half of its episodes "
        "or keeps less than half of its usual return, and to be as good as that says little; ask for smaller changes"
    ]


class _Gate:
    """One candidate at the gate; see `judge`."""

    def __init__(
        self,
        candidate: Bundle,
        dense: Bundle,
        environment: str,
        settings: GateSettings,
        progress: Progress,
        cache: EpisodeCache | None,
    ) -> None:
        self._candidate, self._dense, self._environment = candidate, dense, environment
        self._settings, self._progress, self._cache = settings, progress, cache
        self._task = settings.task or task_of(environment)
        self._usual = Conditions(delay=settings.delay)
        self._pairs: list[tuple[Episode, Episode]] = []
        self._notes: list[str] = []

    def verdict(self) -> Verdict:
        self._progress("validation", 0.0)
        reference = self._reference()
        criteria = self._as_it_is(reference)
        robustness: tuple[ConditionSummary, ...] = ()
        if self._task.starts is None and self._settings.attraction_starts:
            self._notes.append("region of attraction: not looked at, the task knows no box of starts")
        for trial in trials_of(self._settings, self._dense, self._task):
            if decision_of(criteria) == "accept":
                test = self._tried(trial, reference)
                criteria += test.criteria()
                robustness += test.summaries()
        self._notes += _hard_conditions(robustness, reference)
        settings, dense = self._settings, summarize(self._dense, [theirs for _, theirs in self._pairs])
        if dense.successes < LEAST_SUCCESS * dense.episodes:
            self._notes.append(
                f"success: the dense controller itself succeeds in only {dense.successes} of {dense.episodes} "
                "episodes, and to be as good as that says little; begin with one that can do its task, or check that "
                "the task's success is the one that you mean"
            )
        return Verdict(
            candidate=self._candidate.reference,
            against=self._dense.reference,
            decision=decision_of(criteria),
            criteria=tuple(criteria),
            notes=tuple(self._notes),
            environment=self._environment,
            thresholds={
                "success_margin": settings.success_margin,
                "return_ratio": settings.return_ratio,
                "action_rate_ratio": settings.action_rate_ratio,
                "latency_share": settings.latency_share,
                "margin_share": settings.margin_share,
                "robustness_margin": settings.robustness.margin,
                "robustness_return_ratio": settings.robustness.return_ratio,
                "attraction_margin": settings.attraction_margin,
                "delay": settings.delay,
            },
            robustness=robustness,
            seed=settings.first_seed,
            dense=dense,
            pruned=summarize(self._candidate, [ours for ours, _ in self._pairs]),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def _as_it_is(self, reference: Reference) -> list[Criterion]:
        """Run pairs in the environment as it is until the verdict is certain, or there were as many as there may be."""
        settings = self._settings
        deciding = closed_loop_criteria(settings, reference, self._task.success)
        known = [latency_criterion(self._candidate, self._dense, settings.latency_share)]
        while True:
            done = len(self._pairs)
            self._progress("validation", self._share(min(criterion.share for criterion in deciding)))
            new = self._run(self._usual, done, min(LOOK, settings.max_episodes - done))
            self._pairs += new
            for criterion in deciding:
                criterion.add(new)
            criteria = [*(criterion.criterion(self._pairs) for criterion in deciding), *known]
            if done == 0 and decision_of(criteria) != "reject":
                margins = self._margins()
                known += margins
                criteria += margins
            decision = decision_of(criteria)
            finished = decision == "accept" and len(self._pairs) >= settings.min_episodes
            if decision == "reject" or finished or len(self._pairs) >= settings.max_episodes:
                return criteria

    def _reference(self) -> Reference:
        first = self._settings.first_seed + self._settings.max_episodes
        own = self._episodes(self._dense, range(first, first + REFERENCE_EPISODES), self._usual)
        mean = float(np.mean([episode.episode_return for episode in own]))
        if mean == 0.0:
            raise GateError(f"the mean return of {short(self._dense.reference)} is zero, of which no share can be kept")
        return Reference(episode_return=mean, action_rate=float(np.median([episode.action_rate for episode in own])))

    def _margins(self) -> list[Criterion]:
        try:
            return [margin_criterion(self._candidate, self._dense, self._environment, self._settings)]
        except (NoEquilibriumError, PlantError) as error:
            self._notes.append(f"local stability: not applicable, {error}")
            return []

    def _tried(self, trial: Trial, reference: Reference) -> RobustnessTest:
        """Run rounds until what they show is certain, or there were as many as there may be."""
        test = RobustnessTest(trial, reference.episode_return)
        while not test.decided and test.rounds < trial.rounds:
            self._progress("robustness", max(test.share, test.rounds / trial.rounds))
            number = min(ROUNDS, trial.rounds - test.rounds)
            test.add({name: self._run(given, test.rounds, number) for name, given in trial.conditions.items()})
        return test

    def _run(self, conditions: Conditions, done: int, number: int) -> list[tuple[Episode, Episode]]:
        """Run so many pairs, the candidate's episode and the dense one's, after those that are done."""
        first = self._settings.first_seed + done
        seeds = range(first, first + number)
        theirs = self._episodes(self._dense, seeds, conditions)
        return list(zip(self._episodes(self._candidate, seeds, conditions), theirs, strict=True))

    def _episodes(self, bundle: Bundle, seeds: Sequence[int], conditions: Conditions) -> list[Episode]:
        cache = self._cache if bundle.digest == self._dense.digest else None
        return run_episodes(
            bundle, self._environment, seeds, conditions, task=self._task, jobs=self._settings.jobs, cache=cache
        )

    def _share(self, evidence: float) -> float:
        """Return how much of the way is behind, judged by what is nearest to ending it."""
        done = len(self._pairs)
        return max(done / self._settings.max_episodes, min(done / self._settings.min_episodes, evidence, 0.99))
