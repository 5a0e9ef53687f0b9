"""Candidates: pruned networks that there are to choose from, and how each is built anew or otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic

import numpy as np

from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.coefficients import CoefficientProblem
from nncontrol_prune.pruning.group_report import GroupReport
from nncontrol_prune.pruning.groups import Group
from nncontrol_prune.pruning.importance import IMPORTANCES
from nncontrol_prune.pruning.problem import ranked
from nncontrol_prune.pruning.settings import ImportanceName, Method, PruningSettings
from nncontrol_prune.pruning.surgery import Module

VARIATION = 0.12
"""Standard deviation by which coefficients are varied."""


@dataclass(frozen=True)
class GroupOutcome:
    """What became of one group.

    Attributes:
        group: The group in the dense network.
        kept: How many of its channels are left.
        parameters_per_channel: What one of them costs in the dense network.
    """

    group: Group
    kept: int
    parameters_per_channel: int

    @property
    def coefficient(self) -> float:
        """The pruning coefficient: the share of the channels that left."""
        return 1.0 - self.kept / self.group.channels

    def report(self) -> GroupReport:
        """Return what a report says of it."""
        return GroupReport(
            name=self.group.name,
            components=self.group.components,
            kind=self.group.kind,
            channels=self.group.channels,
            kept=self.kept,
            coefficient=self.coefficient,
            parameters_per_channel=self.parameters_per_channel,
        )


@dataclass(frozen=True)
class Candidate(Generic[Module]):
    """One pruned network of those there are to choose from.

    Attributes:
        module: The network.
        method: How the coefficients were found.
        rebuild: Builds it anew, without gradient steps, from other data; returns the network and its warnings.
        vary: Builds another one, with its number and coefficients near these; raises `PruningError` where no whole
            number of channels meets the budget.
        rerank: Builds another one, with these coefficients and channels ranked by another importance, which tells how
            far it is.
        groups: What became of each group.
        sparsity: The share of the cost that is gone.
        objective: On the held-out part.
        errors: Mean error by term, on the held-out part.
        exceeded: Names of the terms whose limit it exceeds.
        variation: Its number among those that were varied; 0 for what the method itself found.
        ranking: What its channels were ranked by, if not by what the settings say.
        on_policy: Whether it was rebuilt, or learned, with states that a pruned network gets into itself.
        distilled: Whether gradient steps followed.
        warnings: What the user should know of how it was built, as sentences.
    """

    module: Module
    method: Method
    rebuild: Callable[[Calibration], tuple[Module, tuple[str, ...]]]
    vary: Callable[[int, np.random.Generator], Candidate[Module]]
    rerank: Callable[[ImportanceName, Progress], Candidate[Module]]
    groups: list[GroupOutcome]
    sparsity: float
    objective: float
    errors: dict[str, float]
    exceeded: list[str]
    variation: int = 0
    ranking: ImportanceName | None = None
    on_policy: bool = False
    distilled: bool = False
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return what one would look for; the module, as torch writes it, is `module`."""
        left = ", ".join(f"{outcome.group.name} {outcome.kept} of {outcome.group.channels}" for outcome in self.groups)
        return f"<{self.name}: {self.sparsity:.1%} removed, objective {self.objective:.3g}, channels left: {left}>"

    @property
    def name(self) -> str:
        """The method, and what followed."""
        varied = f"_varied_{self.variation}" if self.variation else ""
        ranking = f"_{self.ranking}" if self.ranking else ""
        return self.method + varied + ranking + "_on_policy" * self.on_policy + "_distilled" * self.distilled


def candidate_of(
    first: CoefficientProblem[Module],
    problem: CoefficientProblem[Module],
    kept: Sequence[int],
    before: Sequence[int],
    settings: PruningSettings,
    variation: int = 0,
    ranking: ImportanceName | None = None,
) -> Candidate[Module]:
    """Build the network that keeps these channels in the last round's problem, and judge it by the first one's.

    Args:
        first: The problem of the first round.
        problem: That of the last.
        kept: Channels to keep of each of its variables' groups.
        before: Channels of each of the first problem's groups before that round.
        settings: The settings.
        variation: Number of the variation of the coefficients.
        ranking: Importance by which the channels were ranked anew.
    """
    module, warnings = problem.built(kept)
    found = {group.places: count for group, count in zip(problem.groups, problem.by_group(kept), strict=True)}
    left = [found.get(group.places, count) for group, count in zip(first.groups, before, strict=True)]
    prices = [group.parameters_per_channel(first.network.module) for group in first.groups]
    objective, errors = first.errors(module)

    def rebuild(data: Calibration) -> tuple[Module, tuple[str, ...]]:
        return replace(problem, calibration=data).built(kept)

    def vary(number: int, rng: np.random.Generator) -> Candidate[Module]:
        return candidate_of(first, problem, problem.near(kept, VARIATION, rng), before, settings, number, ranking)

    def rerank(importance: ImportanceName, progress: Progress) -> Candidate[Module]:
        other = ranked(problem, IMPORTANCES[importance], settings.component_weights, progress)
        return candidate_of(first, other, kept, before, settings, variation, importance)

    return Candidate(
        module=module,
        method=settings.method,
        rebuild=rebuild,
        vary=vary,
        rerank=rerank,
        groups=[GroupOutcome(*outcome) for outcome in zip(first.groups, left, prices, strict=True)],
        sparsity=share_removed(first, left),
        objective=objective,
        errors=errors,
        exceeded=first.violated(errors),
        variation=variation,
        ranking=ranking,
        warnings=warnings,
    )


def judged(problem: CoefficientProblem[Module], candidate: Candidate[Module]) -> Candidate[Module]:
    """Return a candidate whose network has changed, with what the held-out part says of it now."""
    objective, errors = problem.errors(candidate.module)
    return replace(candidate, objective=objective, errors=errors, exceeded=problem.violated(errors))


def share_removed(problem: CoefficientProblem[Module], left: Sequence[int]) -> float:
    """Return the share of the cost that is gone with so many channels left in each group."""
    shares = [count / group.channels for count, group in zip(left, problem.groups, strict=True)]
    return float(problem.cost.removed(shares))
