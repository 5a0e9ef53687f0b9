"""Robustness: both controllers under pushes, noise, more delay, and other masses and friction, in pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.verdict import ConditionSummary, Criterion
from nncontrol_prune.plants.conditions import Conditions
from nncontrol_prune.validation.criteria import MeanCriterion, Pairs
from nncontrol_prune.validation.metrics import Episode
from nncontrol_prune.validation.settings import GateSettings

ROUNDS = 10
"""Rounds between two looks."""

Run = Callable[[Conditions, Sequence[int]], list[tuple[Episode, Episode]]]
"""Runs pairs of the candidate's and the dense controller's episodes under conditions, from seeds."""


def conditions_of(settings: GateSettings, dense: Bundle) -> dict[str, Conditions]:
    """Return the conditions that settings ask for, by a name for people; those of no size are left out."""
    levels, delay = settings.robustness, settings.delay
    spread = dense.reference_observations.astype(np.float64).std(axis=0)
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


class RobustnessTest:
    """Runs rounds of one pair under each condition until the mean difference of success is known well enough.

    A round's value is its mean over the conditions: rounds are alike, and conditions are not.

    Args:
        conditions: By name.
        settings: The margin, and how many rounds at the most.
        run: Runs pairs.
    """

    def __init__(self, conditions: Mapping[str, Conditions], settings: GateSettings, run: Run) -> None:
        self._conditions, self._run = conditions, run
        self._margin = settings.robustness.margin
        self._pairs: dict[str, list[tuple[Episode, Episode]]] = {name: [] for name in conditions}
        self._mean = MeanCriterion("robustness", -self._margin)
        self.rounds = 0
        """How many there were."""

    def run_rounds(self, seeds: Sequence[int]) -> None:
        """Run a round for each seed."""
        differences = np.zeros(len(seeds))
        for name, conditions in self._conditions.items():
            pairs = self._run(conditions, seeds)
            self._pairs[name] += pairs
            differences += [float(ours.success) - float(theirs.success) for ours, theirs in pairs]
        self._mean.add((differences / len(self._conditions)).tolist())
        self.rounds += len(seeds)

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
            )
            for name, pairs in self._pairs.items()
        )

    @property
    def share(self) -> float:
        """How far it is on the way to being passed, 0..1."""
        return self._mean.share

    @property
    def decided(self) -> bool:
        """Whether the verdict on it is certain."""
        return self._mean.outcome != "undecided"

    def criterion(self) -> Criterion:
        """Return what a verdict says of it."""
        worst = max(self._pairs, key=lambda name: _regressions(self._pairs[name]))
        everything = [pair for pairs in self._pairs.values() for pair in pairs]
        found = (
            f": under {len(self._pairs)} conditions, {self.rounds} pairs each, success in "
            f"{sum(ours.success for ours, _ in everything)} of {len(everything)} episodes, dense "
            f"{sum(theirs.success for _, theirs in everything)}; most regressions, {_regressions(self._pairs[worst])}, "
            f"with {worst}; a loss of less than {self._margin:.0%} is allowed"
        )
        return self._mean.criterion(found, "rounds")


def _regressions(pairs: Pairs) -> int:
    return sum(theirs.success and not ours.success for ours, theirs in pairs)
