"""Verdicts: what the gate said of a bundle, kept beside the bundle and not in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from nncontrol_prune.controllers.specs import Spec


class EpisodeSummary(Spec):
    """What one controller did in the gate's episodes."""

    controller: str
    """`name@digest`."""
    episodes: int
    successes: int
    return_mean: FiniteFloat
    return_std: FiniteFloat


class ConditionSummary(Spec):
    """What both controllers did under one condition, in pairs of episodes."""

    condition: str
    pairs: int
    dense_successes: int
    pruned_successes: int
    regressions: int
    """Pairs in which the dense controller succeeds and the candidate fails."""
    dense_return: FiniteFloat
    pruned_return: FiniteFloat
    dense_interval: tuple[float, float]
    """95 % interval of the dense controller's probability of success (Clopper and Pearson)."""
    pruned_interval: tuple[float, float]
    """The candidate's."""


Decision = Literal["accept", "reject", "inconclusive"]


class Criterion(Spec):
    """One condition of the gate, with the figure it was decided on."""

    name: str
    outcome: Literal["passed", "failed", "undecided"]
    reason: str
    """The figure, the threshold and what they mean, as a sentence."""


def decision_of(criteria: Sequence[Criterion]) -> Decision:
    """Return what follows from the criteria: all have to be passed, and one that is failed is enough."""
    outcomes = {criterion.outcome for criterion in criteria}
    if "failed" in outcomes:
        return "reject"
    return "accept" if outcomes == {"passed"} else "inconclusive"


class Verdict(Spec):
    """The gate's decision about a candidate."""

    format_version: Literal[2] = 2
    candidate: Annotated[str, Field(pattern=r"@[0-9a-f]{64}$")]
    """`name@digest` of the bundle judged."""
    against: str
    """`name@digest` of the dense controller."""
    decision: Decision
    """What is inconclusive is as good as rejected."""
    criteria: tuple[Criterion, ...]
    notes: tuple[str, ...] = ()
    """What was not looked at, and why, and what else the decision does not say, as sentences."""
    environment: str | None
    """Where both were run in closed loop; None for an off-line check on rollouts alone, which proves much less."""
    thresholds: dict[str, FiniteFloat]
    """What the gate was told to ask for."""
    seed: int | None = None
    """Seed of the first episode; episode i starts from seed + i, for both controllers. None off line."""
    robustness: tuple[ConditionSummary, ...] = ()
    """Under which conditions both were run beside the environment as it is; starts from anywhere are the last."""
    dense: EpisodeSummary | None = None
    pruned: EpisodeSummary | None = None
    created: str
    """Time of the decision, ISO 8601, UTC."""

    @model_validator(mode="after")
    def _decision_follows_the_criteria(self) -> Verdict:
        if self.decision != decision_of(self.criteria):
            raise ValueError(f"the decision is {self.decision}, which its criteria do not say")
        return self

    @model_validator(mode="after")
    def _closed_loop_has_episodes(self) -> Verdict:
        if (self.environment is None) != (self.dense is None) or (self.dense is None) != (self.pruned is None):
            raise ValueError("a verdict in closed loop tells the episodes of both controllers, an off-line one neither")
        return self

    @property
    def offline(self) -> bool:
        """Whether no closed loop was run."""
        return self.environment is None

    @property
    def accepted(self) -> bool:
        """Whether the candidate may be staged."""
        return self.decision == "accept"

    @property
    def reasons(self) -> list[str]:
        """Why, in sentences: what it failed, or what is undecided, or all that it passed."""
        for outcome in ("failed", "undecided"):
            found = [criterion.reason for criterion in self.criteria if criterion.outcome == outcome]
            if found:
                return found
        return [criterion.reason for criterion in self.criteria]


def share_kept(pruned: float, dense: float) -> float:
    """Return the share of a return that is kept; NaN of none."""
    # Where returns are below zero, such as costs, the plain ratio would grow with the loss.
    return 1.0 + (pruned - dense) / abs(dense) if dense else float("nan")
