"""The pruning engine: one network, its data and what matters, made smaller.

Groups, importance, coefficients, surgery, reconstruction, distillation; in one round or in several. Where a closed loop
can be asked, it has the last word on the coefficients.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

import numpy as np
import torch

from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.coefficients import CoefficientProblem
from nncontrol_prune.pruning.distillation import distill
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.group_report import GroupReport
from nncontrol_prune.pruning.groups import Group
from nncontrol_prune.pruning.network import Batch, Network, take
from nncontrol_prune.pruning.problem import Latency, coefficient_problem, optimizer_of, ranked
from nncontrol_prune.pruning.settings import ImportanceName, Method, PruningSettings
from nncontrol_prune.pruning.surgery import Module
from nncontrol_prune.pruning.terms import Term, check_terms, scaled_terms

VARIATION = 0.12
"""Standard deviation by which coefficients are varied."""
OTHER_RANKING: ImportanceName = "fisher"
"""What channels that are to be distilled are ranked by where the settings' importance is not enough: `obs` looks at the
error before a gradient step."""


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
        rebuild: Builds it anew, without gradient steps, from other data.
        vary: Builds another one, with its number and coefficients near these; raises `PruningError` where no whole
            number of channels meets the budget.
        rerank: Builds another one, with these coefficients and channels ranked by another importance.
        groups: What became of each group.
        sparsity: The share of the cost that is gone.
        objective: On the held-out part.
        errors: Mean error by term, on the held-out part.
        exceeded: Names of the terms whose limit it exceeds.
        variation: Its number among those that were varied; 0 for what the method itself found.
        ranking: What its channels were ranked by, if not by what the settings say.
        on_policy: Whether it was rebuilt, or learned, with states that a pruned network gets into itself.
        distilled: Whether gradient steps followed.
    """

    module: Module
    method: Method
    rebuild: Callable[[Calibration], Module]
    vary: Callable[[int, np.random.Generator], Candidate[Module]]
    rerank: Callable[[ImportanceName], Candidate[Module]]
    groups: list[GroupOutcome]
    sparsity: float
    objective: float
    errors: dict[str, float]
    exceeded: list[str]
    variation: int = 0
    ranking: ImportanceName | None = None
    on_policy: bool = False
    distilled: bool = False

    @property
    def name(self) -> str:
        """The method, and what followed."""
        varied = f"_varied_{self.variation}" if self.variation else ""
        ranking = f"_{self.ranking}" if self.ranking else ""
        return self.method + varied + ranking + "_on_policy" * self.on_policy + "_distilled" * self.distilled


@dataclass(frozen=True)
class Pruned(Generic[Module]):
    """What the engine made of a network.

    Attributes:
        candidates: All that there were, by name; of those with varied coefficients only what was for the better.
        chosen: The one that was chosen.
        warnings: What the user should know, as sentences.
        search_seconds: Time that finding the coefficients took, over all rounds.
    """

    candidates: dict[str, Candidate[Module]]
    chosen: Candidate[Module]
    warnings: tuple[str, ...]
    search_seconds: float


Choose = Callable[[Sequence[Candidate[Any]]], int]
"""Takes candidates and returns the index of the best; in closed loop, where there is one."""

Enough = Callable[[Candidate[Any]], bool]
"""Tells whether a candidate does as the dense network does, so that no better one need be looked for."""

MoreData = Callable[[Any], Batch]
"""Runs a pruned network in its environment and returns the rows it met."""


def least_objective(candidates: Sequence[Candidate[Any]]) -> int:
    """Choose by the objective; for when there is no closed loop to ask."""
    return min(range(len(candidates)), key=lambda index: candidates[index].objective)


def prune_network(
    network: Network[Module],
    calibration: Calibration,
    terms: Sequence[Term],
    settings: PruningSettings,
    *,
    progress: Progress | None = None,
    latency: Latency | None = None,
    more_data: MoreData | None = None,
    choose: Choose | None = None,
    enough: Enough | None = None,
) -> Pruned[Module]:
    """Prune a network.

    Args:
        network: The dense network.
        calibration: The data.
        terms: What matters of its outputs.
        settings: How much to remove and how. What concerns rollouts and terms is done with by now.
        progress: Told of every stage, and asked whether to stop.
        latency: Measures latency, where the budget is one.
        more_data: For on-policy rounds, of reconstruction and of distillation.
        choose: Picks among candidates better than the objective can. With it, uniform coefficients are a candidate
            beside those of the method. What it picks is rebuilt on policy and distilled, and it is asked each time
            whether that was for the better. So it is of two more that are distilled: the one with the least objective,
            and (in one round) the best with its channels ranked by `fisher`. In the end the best one has its
            coefficients varied as often as the settings say.
        enough: Ends the varying, and spares what else would be distilled; without, all of it is done.

    Raises:
        PruningError: The network cannot be traced, the components or terms do not fit it, or the budget cannot be
            reached.
        Cancelled: `progress` said so.
    """
    progress = progress or Progress()
    if settings.variations and choose is None:
        raise PruningError("variations of the coefficients need an environment, or `choose`, to be judged by")
    progress("groups", 0.0)
    with torch.no_grad():
        few = take(calibration.fit, torch.arange(2))
        check_terms(terms, network.run(network.module, few), few)
        terms = scaled_terms(terms, network.run(network.module, calibration.fit), calibration.fit_weights)
    problem = coefficient_problem(network, calibration, terms, settings, progress, latency=latency)
    problem = replace(problem, sparsity=_sparsity_by(1, settings))
    methods: list[Method] = [settings.method]
    if choose is not None and settings.method != "uniform":
        methods.append("uniform")
    candidates, warnings, search_seconds = list[Candidate[Module]](), list[str](), 0.0
    for method in methods:
        candidate, notes, seconds = _shrunk(problem, settings.model_copy(update={"method": method}), progress, latency)
        if all(candidate.groups != other.groups for other in candidates):
            candidates.append(candidate)
        warnings += notes
        search_seconds += seconds
    chosen = _chosen(candidates, choose, progress)
    data = calibration
    if more_data is not None and settings.on_policy_rounds:
        module, data = refitted_on_policy(
            chosen.module, calibration, chosen.rebuild, more_data, settings.on_policy_rounds, progress
        )
        candidates.append(_judged(problem, replace(chosen, module=module, on_policy=True)))
        chosen = _chosen([chosen, candidates[-1]], choose, progress)

    refit = chosen.on_policy

    def finished(candidate: Candidate[Module], progress: Progress) -> Candidate[Module]:
        """Do to a candidate, as it is after surgery and reconstruction, what is done to the others."""
        if refit and not candidate.on_policy:
            candidate = _judged(problem, replace(candidate, module=candidate.rebuild(data), on_policy=True))
        return _distilled(problem, candidate, settings, progress, more_data) if settings.distill_steps else candidate

    if settings.distill_steps:

        def contend(candidate: Candidate[Module]) -> Candidate[Module]:
            """Distil a candidate, and return the better one of that and the best so far."""
            candidates.append(finished(candidate, progress))
            return _chosen([chosen, candidates[-1]], choose, progress)

        def open_to_others() -> bool:
            return choose is not None and not _is_enough(chosen, enough)

        # What is best without a gradient step need not be best after some.
        lowest = candidates[least_objective(candidates)]
        chosen = contend(chosen)
        if open_to_others() and lowest.groups != chosen.groups:
            chosen = contend(lowest)
        # In several rounds, most channels have left by the first ranking.
        if open_to_others() and settings.importance != OTHER_RANKING and settings.rounds == 1:
            progress("importance", 0.0)
            chosen = contend(chosen.rerank(OTHER_RANKING))
    if choose is not None:
        for better in _varied(chosen, finished, choose, enough, settings, progress):
            candidates.append(better)
            chosen = better
    if chosen.exceeded:
        warnings.append(f"the limit on {', '.join(chosen.exceeded)} is exceeded by every choice that was tried")
    return Pruned(
        candidates={candidate.name: candidate for candidate in candidates},
        chosen=chosen,
        warnings=tuple(dict.fromkeys(warnings)),
        search_seconds=search_seconds,
    )


def _sparsity_by(number: int, settings: PruningSettings) -> float:
    """Return the share of the dense network's cost that is gone after so many rounds."""
    return 1.0 - (1.0 - settings.sparsity) ** (number / settings.rounds)


def _shrunk(
    first: CoefficientProblem[Module], settings: PruningSettings, progress: Progress, latency: Latency | None
) -> tuple[Candidate[Module], list[str], float]:
    """Prune and reconstruct in as many rounds as the settings say.

    Args:
        first: The problem of the first round, which the dense network is pruned by.
        settings: The settings.
        progress: Told of every stage.
        latency: Measures latency, where the budget is one.

    Returns:
        The candidate, what the user should know, and the seconds that finding coefficients took.
    """
    problem, module, left = first, first.network.module, [group.channels for group in first.groups]
    candidate: Candidate[Module] | None = None
    warnings, seconds = list[str](), 0.0
    for number in range(1, settings.rounds + 1):
        try:
            if number > 1:
                problem = _next_problem(
                    first, module, left, _sparsity_by(number, settings), settings, progress, latency
                )
            started = time.monotonic()
            kept = optimizer_of(settings)(problem, progress)
            seconds += time.monotonic() - started
            progress("reconstruction", 0.0)
            candidate = _candidate(first, problem, kept, left, settings)
        except PruningError as error:
            if number < settings.rounds:
                continue  # only the last round has to meet the budget
            if candidate is None:
                raise
            if abs(candidate.sparsity - settings.sparsity) > settings.tolerance:
                raise PruningError(
                    f"the rounds before the last removed {candidate.sparsity:.4g}, and from there no whole number of "
                    f"channels comes within {settings.tolerance:g} of sparsity {settings.sparsity:g}; "
                    "take fewer rounds, or allow a larger tolerance"
                ) from error
        else:
            module, left = candidate.module, [outcome.kept for outcome in candidate.groups]
            warnings += problem.warnings
    assert candidate is not None
    return candidate, warnings, seconds


def _next_problem(
    first: CoefficientProblem[Module],
    module: Module,
    left: Sequence[int],
    sparsity: float,
    settings: PruningSettings,
    progress: Progress,
    latency: Latency | None,
) -> CoefficientProblem[Module]:
    """Return the problem of a later round.

    Args:
        first: The problem of the first round.
        module: What the rounds so far left of its network.
        left: How many channels they left of each of its groups.
        sparsity: The share of the dense network's cost that is to be gone after the round.
        settings: The settings.
        progress: Told of every stage.
        latency: Measures latency, where the budget is one.
    """
    rest = 1.0 - _removed(first, left)
    network = replace(first.network, module=module)
    # A group of one channel may be gone from the trace: a dimension of one entry tells nothing of what it holds.
    names = {group.places: group.name for group in network.groups(first.calibration.fit)}
    tied = [[names.get(first.groups[member].places) for member in members] for members in first.ties]
    ties = [present for members in tied if (present := [name for name in members if name is not None])]
    return coefficient_problem(
        replace(network, ties=ties),
        first.calibration,
        first.terms,
        settings.model_copy(
            update={"sparsity": max(0.0, 1.0 - (1.0 - sparsity) / rest), "tolerance": settings.tolerance / rest}
        ),
        progress,
        latency=latency,
        teacher=first.network,
    )


def _candidate(
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
    module = problem.build(kept)
    found = {group.places: count for group, count in zip(problem.groups, problem.kept_of(kept), strict=True)}
    left = [found.get(group.places, count) for group, count in zip(first.groups, before, strict=True)]
    prices = [group.parameters_per_channel(first.network.module) for group in first.groups]
    objective, errors = first.errors(module)

    def rebuild(data: Calibration) -> Module:
        return replace(problem, calibration=data, warnings=[]).build(kept)

    def vary(number: int, rng: np.random.Generator) -> Candidate[Module]:
        return _candidate(first, problem, problem.near(kept, VARIATION, rng), before, settings, number, ranking)

    def rerank(importance: ImportanceName) -> Candidate[Module]:
        other = ranked(problem, settings.model_copy(update={"importance": importance}))
        return _candidate(first, other, kept, before, settings, variation, importance)

    return Candidate(
        module=module,
        method=settings.method,
        rebuild=rebuild,
        vary=vary,
        rerank=rerank,
        groups=[GroupOutcome(*outcome) for outcome in zip(first.groups, left, prices, strict=True)],
        sparsity=_removed(first, left),
        objective=objective,
        errors=errors,
        exceeded=first.violated(errors),
        variation=variation,
        ranking=ranking,
    )


def _varied(
    candidate: Candidate[Module],
    finish: Callable[[Candidate[Module], Progress], Candidate[Module]],
    choose: Choose,
    enough: Enough | None,
    settings: PruningSettings,
    progress: Progress,
) -> Iterator[Candidate[Module]]:
    """Vary coefficients, one choice after the other, and yield each that is better than the best so far.

    A (1+1) evolution strategy (Rechenberg 1973) whose fitness is the closed loop. No error on logged states tells which
    of two networks gets by with the states that it leads itself into.
    """
    wanted = settings.variations or 0
    rng = np.random.default_rng(settings.seed)
    seen = [candidate.groups]
    for number in range(1, wanted + 1):
        part = (number - 1) / wanted, number / wanted
        progress("closed-loop search", part[0])
        if _is_enough(candidate, enough):
            return
        try:
            other = candidate.vary(number, rng)
        except PruningError:
            continue  # near some coefficients no whole number of channels meets the budget
        if other.groups in seen:
            continue
        seen.append(other.groups)
        other = finish(other, progress.part("closed-loop search", *part))
        if not other.exceeded and (candidate.exceeded or choose([candidate, other]) == 1):
            candidate = other
            yield candidate


def refitted_on_policy(
    module: Module,
    calibration: Calibration,
    rebuild: Callable[[Calibration], Module],
    more_data: MoreData,
    rounds: int,
    progress: Progress,
) -> tuple[Module, Calibration]:
    """Rebuild a pruned network with the states that it gets into, in rounds; return it and all the data there is then.

    What was fitted to the dense network's states knows nothing of those that its own errors lead to (Ross et al. 2011).
    """
    for number in range(rounds):
        progress("on-policy rounds", number / rounds)
        calibration = calibration.with_more(more_data(module))
        module = rebuild(calibration)
    return module, calibration


def _distilled(
    problem: CoefficientProblem[Module],
    candidate: Candidate[Module],
    settings: PruningSettings,
    progress: Progress,
    more_data: MoreData | None,
) -> Candidate[Module]:
    rounds = settings.on_policy_rounds or 0 if more_data is not None else 0
    student = distill(
        candidate.module,
        problem.network,
        problem.calibration,
        problem.terms,
        steps=settings.distill_steps,
        seed=settings.seed,
        progress=progress,
        more_data=more_data,
        rounds=rounds,
    )
    on_policy = candidate.on_policy or rounds > 0
    return _judged(problem, replace(candidate, module=student, on_policy=on_policy, distilled=True))


def _judged(problem: CoefficientProblem[Module], candidate: Candidate[Module]) -> Candidate[Module]:
    objective, errors = problem.errors(candidate.module)
    return replace(candidate, objective=objective, errors=errors, exceeded=problem.violated(errors))


def _chosen(candidates: Sequence[Candidate[Module]], choose: Choose | None, progress: Progress) -> Candidate[Module]:
    """Choose, if any candidate keeps all limits, among those that do."""
    progress("choice", 0.0)
    candidates = [candidate for candidate in candidates if not candidate.exceeded] or candidates
    return candidates[(choose or least_objective)(candidates) if len(candidates) > 1 else 0]


def _is_enough(candidate: Candidate[Any], enough: Enough | None) -> bool:
    """Return whether no better one need be looked for: it keeps all limits, and does as the dense network does."""
    return enough is not None and not candidate.exceeded and enough(candidate)


def _removed(problem: CoefficientProblem[Module], left: Sequence[int]) -> float:
    """Return the share of the cost that is gone with so many channels left in each group."""
    shares = [count / group.channels for count, group in zip(left, problem.groups, strict=True)]
    return float(problem.cost.removed(shares))
