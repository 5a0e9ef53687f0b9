"""Robustness: both controllers under pushes, noise, more delay, and other masses and friction, in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.verdict import ConditionSummary, Criterion
from nncontrol_prune.plants.conditions import Conditions
from nncontrol_prune.plants.tasks import Task
from nncontrol_prune.validation.criteria import MeanCriterion, Pairs
from nncontrol_prune.validation.metrics import Episode
from nncontrol_prune.validation.settings import GateSettings

ROUNDS = 10
"""Rounds between two looks."""


def conditions_of(settings: GateSettings, dense: Bundle) -> dict[str, Conditions]:
    """Return the conditions that settings ask for, by a name for people; those of no size are left out."""
    levels, delay = settings.robustness, settings.delay
    spread = dense.reference_observations.astype(np.float64).std(axis=0) * dense.manifest.observation.measured
    found: dict[str, Conditions] = {}
    if levels.push:
        found[f"pushes of {levels.push:g} m/s"] = Conditions(delay=delay, push=levels.push)
    if levels.noise:
        noise = tuple((levels.noise * spread).tolist())
        found[f"noise of {levels.noise:.0%}"] = Conditions(delay=delay, noise=noise)
    for more in range(1, levels.more_delay + 1):
        found[f"{more} more tick{'s' * (more > 1)} of delay"] = Conditions(delay=delay + more)
    for sign in (-1, 1):
        if levels.mass:
            found[f"mass {sign * levels.mass:+.0%}"] = Conditions(delay=delay, mass=1.0 + sign * levels.mass)
        if levels.friction:
            factor = 1.0 + sign * levels.friction
            found[f"friction {sign * levels.friction:+.0%}"] = Conditions(delay=delay, friction=factor)
    return found


@dataclass(frozen=True)
class Trial:
    """What a candidate is put through beside the environment as it is.

    Attributes:
        name: What the criterion about it is called.
        conditions: What it is run under, by a name for people.
        margin: How much less often than the dense controller it may succeed, averaged over the conditions.
        rounds: Of one pair under each condition, after which it is inconclusive.
        return_margin: How much less its return may be than the dense controller's under the same conditions, averaged
            over them, as a share of the dense controller's usual one; None where the return is not looked at.
    """

    name: str
    conditions: Mapping[str, Conditions]
    margin: float
    rounds: int
    return_margin: float | None = None


def trials_of(settings: GateSettings, dense: Bundle, task: Task) -> list[Trial]:
    """Return the trials that settings ask for; starts from anywhere are one where the task knows a box of them."""
    trials, levels = [], settings.robustness
    conditions = conditions_of(settings, dense) if levels.enabled else {}
    if conditions:
        trials.append(
            Trial("robustness", conditions, levels.margin, levels.max_rounds, return_margin=1.0 - levels.return_ratio)
        )
    if task.starts is not None and settings.attraction_starts:
        anywhere = {"starts from anywhere": Conditions(delay=settings.delay, starts=task.starts.bounds)}
        trial = Trial("region of attraction", anywhere, settings.attraction_margin, settings.attraction_starts)
        trials.append(trial)
    return trials


class RobustnessTest:
    """Whether mean differences, over rounds of one pair under each condition, are above a trial's margins.

    A round's value is its mean over the conditions: rounds are alike, and conditions are not.

    Args:
        trial: The conditions, and how much may be lost.
        usual_return: The dense controller's mean return in the environment as it is; not zero.
    """

    def __init__(self, trial: Trial, usual_return: float) -> None:
        self._trial, self._usual_return = trial, usual_return
        self._pairs: dict[str, list[tuple[Episode, Episode]]] = {name: [] for name in trial.conditions}
        self._success = MeanCriterion(trial.name, -trial.margin)
        self._return: MeanCriterion | None = None
        if trial.return_margin is not None:
            self._return = MeanCriterion(f"{trial.name} of the return", -trial.return_margin)
        self.rounds = 0
        """How many there were."""

    def add(self, rounds: Mapping[str, Pairs]) -> None:
        """Take in rounds: as many pairs under each condition, the candidate's episode first."""
        for name, pairs in rounds.items():
            self._pairs[name] += pairs
        each = np.array([[_differences(*pair) for pair in pairs] for pairs in rounds.values()])
        success, returned = each.mean(axis=0).T
        self._success.add(success.tolist())
        if self._return is not None:
            self._return.add((returned / abs(self._usual_return)).tolist())
        self.rounds += len(success)

    def summaries(self) -> tuple[ConditionSummary, ...]:
        """Return what happened under each condition."""
        return tuple(
            ConditionSummary(
                condition=name,
                pairs=len(pairs),
                dense_successes=sum(theirs.success for _, theirs in pairs),
                pruned_successes=sum(ours.success for ours, _ in pairs),
                regressions=_regressions(pairs),
                dense_return=float(np.mean([theirs.episode_return for _, theirs in pairs])),
                pruned_return=float(np.mean([ours.episode_return for ours, _ in pairs])),
                dense_interval=_interval(sum(theirs.success for _, theirs in pairs), len(pairs)),
                pruned_interval=_interval(sum(ours.success for ours, _ in pairs), len(pairs)),
            )
            for name, pairs in self._pairs.items()
        )

    @property
    def share(self) -> float:
        """How far it is on the way to being passed, 0..1."""
        return min(mean.share for mean in self._means)

    @property
    def decided(self) -> bool:
        """Whether the verdict on it is certain."""
        outcomes = {mean.outcome for mean in self._means}
        return "failed" in outcomes or "undecided" not in outcomes

    @property
    def _means(self) -> list[MeanCriterion]:
        return [self._success] if self._return is None else [self._success, self._return]

    def criteria(self) -> list[Criterion]:
        """Return what a verdict says of it."""
        found = [self._success.criterion(self._successes(), "rounds")]
        if self._return is not None:
            found.append(self._return.criterion(self._returns(), "rounds"))
        return found

    def _successes(self) -> str:
        everything = [pair for pairs in self._pairs.values() for pair in pairs]
        where = f"{self.rounds} {' and '.join(self._pairs)}"
        regressions = f"failed {_regressions(everything)} times where the dense controller succeeded"
        if len(self._pairs) > 1:
            where = f"{self.rounds} pairs under each of {len(self._pairs)} conditions"
        if len(self._pairs) > 1 and _regressions(everything):
            worst = max(self._pairs, key=lambda name: _regressions(self._pairs[name]))
            regressions += f", most often, {_regressions(self._pairs[worst])} times, with {worst}"
        return (
            f": {where}, success in {sum(ours.success for ours, _ in everything)} of {len(everything)} episodes, dense "
            f"{sum(theirs.success for _, theirs in everything)}; {regressions}; "
            f"a loss of less than {self._trial.margin:.0%} is allowed"
        )

    def _returns(self) -> str:
        gained = {
            name: float(np.mean([_differences(*pair)[1] for pair in pairs])) / abs(self._usual_return)
            for name, pairs in self._pairs.items()
        }
        worst = min(gained, key=lambda name: gained[name])
        return (
            f": compared with the dense controller under the same conditions, {np.mean(list(gained.values())):+.1%} of "
            f"its usual return on the mean, and {gained[worst]:+.1%} with {worst}; "
            f"a loss of less than {self._trial.return_margin:.0%} is allowed"
        )


def _differences(ours: Episode, theirs: Episode) -> tuple[float, float]:
    """Return by how much a pair's episodes differ: in success, and in the return."""
    return float(ours.success) - float(theirs.success), ours.episode_return - theirs.episode_return


def _interval(count: int, number: int) -> tuple[float, float]:
    found = stats.binomtest(count, number).proportion_ci(confidence_level=0.95, method="exact")
    return float(found.low), float(found.high)


def _regressions(pairs: Pairs) -> int:
    return sum(theirs.success and not ours.success for ours, theirs in pairs)
