"""What the gate asks of a candidate, each criterion with the statistics it is decided by.

Those about means take one bounded value from each pair of episodes and bet in both directions: that the mean is above
the criterion's bound, and that it is below. Each is right but for 5 %, at whatever number of pairs one stops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nncontrol_prune.controllers.verdict import Criterion
from nncontrol_prune.validation.betting import ERROR_RATE, MeanTest
from nncontrol_prune.validation.metrics import Episode
from nncontrol_prune.validation.settings import GateSettings

STILL = 0.01
"""Change of the commands, as a share of their ranges a second, below which none is a nuisance."""

Pairs = Sequence[tuple[Episode, Episode]]
"""The candidate's episode and the dense controller's, from the same start."""
Outcome = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True)
class Reference:
    """What the dense controller does in episodes of its own, apart from those that it is compared in.

    Attributes:
        episode_return: Mean return; not zero.
        action_rate: Median over episodes of the mean change of its commands.
    """

    episode_return: float
    action_rate: float


class MeanCriterion:
    """The mean of values in ±1 is above a bound.

    Args:
        name: What it is called.
        bound: The bound.
    """

    def __init__(self, name: str, bound: float) -> None:
        self.name = name
        self._above, self._below = MeanTest(bound, -1.0), MeanTest(-bound, -1.0)

    def add(self, values: Sequence[float]) -> None:
        """Take in values, in their order; what is outside of ±1 counts as that."""
        bounded = np.clip(values, -1.0, 1.0)
        self._above.add(bounded.tolist())
        self._below.add((-bounded).tolist())

    @property
    def outcome(self) -> Outcome:
        """What is known by now."""
        if self._below.shown:
            return "failed"
        return "passed" if self._above.shown else "undecided"

    @property
    def share(self) -> float:
        """How far it is on the way to being passed, 0..1."""
        return self._above.share

    def criterion(self, found: str, values: str = "pairs") -> Criterion:
        """Return what a verdict says of it.

        Args:
            found: What the values show, as half a sentence.
            values: What there would have to be more of.
        """
        if self.outcome == "undecided":
            more = self._above.more_needed()
            known = (
                f"not decided: about {round(more):,} more {values} would likely show it"
                if np.isfinite(more)
                else f"not decided, and as it looks no number of {values} would show it"
            )
        else:
            known = f"{1 - ERROR_RATE:.0%} sure that it is {'kept' if self.outcome == 'passed' else 'missed'}"
        return Criterion(name=self.name, outcome=self.outcome, reason=f"{self.name}{found}; {known}")


class PairCriterion:
    """A criterion about the mean of one value of each pair.

    Args:
        name: What it is called.
        bound: Of the mean.
        value: Takes the candidate's episode and the dense one's and returns the value.
        describe: Takes all pairs and returns what they show, as half a sentence that goes on after the name.
    """

    def __init__(
        self, name: str, bound: float, value: Callable[[Episode, Episode], float], describe: Callable[[Pairs], str]
    ) -> None:
        self.name = name
        self._mean, self._value, self._describe = MeanCriterion(name, bound), value, describe

    def add(self, pairs: Pairs) -> None:
        """Take in pairs, in their order."""
        self._mean.add([self._value(ours, theirs) for ours, theirs in pairs])

    @property
    def share(self) -> float:
        """How far it is on the way to being passed, 0..1."""
        return self._mean.share

    def criterion(self, pairs: Pairs) -> Criterion:
        """Return what a verdict says of it."""
        return self._mean.criterion(self._describe(pairs))


class HealthCriterion:
    """No action of the candidate holds NaN or infinity; one is enough to fail."""

    name = "health"

    def __init__(self) -> None:
        self._faults = 0

    def add(self, pairs: Pairs) -> None:
        """Take in pairs."""
        self._faults += sum(ours.faults for ours, _ in pairs)

    share = 1.0

    def criterion(self, pairs: Pairs) -> Criterion:
        """Return what a verdict says of it."""
        actions = sum(ours.steps for ours, _ in pairs)
        found = f"{self._faults:,}" if self._faults else "none"
        reason = f"health: {found} of {actions:,} actions held NaN or infinity, and none may"
        return Criterion(name=self.name, outcome="failed" if self._faults else "passed", reason=reason)


def closed_loop_criteria(
    settings: GateSettings, reference: Reference, task: str
) -> tuple[HealthCriterion | PairCriterion, ...]:
    """Return the criteria that are decided in closed loop.

    Args:
        settings: The thresholds.
        reference: What the dense controller does.
        task: Success in words.
    """
    rate_limit = settings.action_rate_ratio * max(reference.action_rate, STILL)

    def success(pairs: Pairs) -> str:
        lost = sum(theirs.success and not ours.success for ours, theirs in pairs)
        won = sum(ours.success and not theirs.success for ours, theirs in pairs)
        return (
            f" ({task}): {sum(ours.success for ours, _ in pairs)} of {len(pairs)} episodes, dense "
            f"{sum(theirs.success for _, theirs in pairs)}; failed {lost} times where the dense controller succeeded, "
            f"the reverse {won} times; a loss of less than {settings.success_margin:.0%} is allowed"
        )

    def returns(pairs: Pairs) -> str:
        mine, their = (np.mean([pair[which].episode_return for pair in pairs]) for which in (0, 1))
        difference = (mine - their) / abs(reference.episode_return)
        return (
            f": {mine:.4g} against {their:.4g}, a difference of {difference:+.1%} of the dense controller's; "
            f"above {settings.return_ratio - 1:+.1%} is allowed"
        )

    def action_rate(pairs: Pairs) -> str:
        # In the few episodes that fail it may be a hundred times what it is otherwise.
        mine, their = (np.median([pair[which].action_rate for pair in pairs]) for which in (0, 1))
        return (
            f": in the median episode commands change by {mine:.3g} of their range a second, dense {their:.3g}; "
            f"up to {rate_limit:.3g} is allowed, {settings.action_rate_ratio:g} times that of the reference episodes"
        )

    return (
        HealthCriterion(),
        PairCriterion(
            "success",
            -settings.success_margin,
            lambda ours, theirs: float(ours.success) - float(theirs.success),
            success,
        ),
        # Of differences larger than the dense controller's whole return, no more than that is counted.
        PairCriterion(
            "return",
            settings.return_ratio - 1.0,
            lambda ours, theirs: (ours.episode_return - theirs.episode_return) / abs(reference.episode_return),
            returns,
        ),
        PairCriterion("action rate", 0.0, lambda ours, theirs: 1.0 - ours.action_rate / rate_limit, action_rate),
    )
