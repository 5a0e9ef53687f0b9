"""The pruning engine: one network, its data and what matters, made smaller.

Groups, importance, coefficients, surgery, reconstruction, distillation; in one round or in several. Where a closed loop
can be asked, it has the last word on the coefficients.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

import numpy as np
import torch

from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.candidates import Candidate, judged
from nncontrol_prune.pruning.coefficients import CoefficientProblem
from nncontrol_prune.pruning.distillation import check_gradients, distill
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.importance import Importance
from nncontrol_prune.pruning.network import Batch, Network, take
from nncontrol_prune.pruning.problem import Latency, coefficient_problem, latency_removed
from nncontrol_prune.pruning.rounds import shrunk, sparsity_by
from nncontrol_prune.pruning.settings import ImportanceName, Method, PruningSettings
from nncontrol_prune.pruning.surgery import Module
from nncontrol_prune.pruning.terms import Term, check_errors, check_terms, scaled_terms

OTHER_RANKING: ImportanceName = "fisher"
"""What channels that are to be distilled are ranked by where the settings' importance is not enough: `obs` looks at the
error before a gradient step."""

ON_POLICY_ROUNDS = 3
"""Where nothing else is said."""


@dataclass(frozen=True)
class Pruned(Generic[Module]):
    """What the engine made of a network.

    Attributes:
        candidates: All that there were, by name; of those with varied coefficients only what was for the better.
        chosen: The one that was chosen.
        warnings: What the user should know of the chosen one, as sentences.
        search_seconds: Time that finding the coefficients took, over all rounds.
    """

    candidates: dict[str, Candidate[Module]]
    chosen: Candidate[Module]
    warnings: tuple[str, ...]
    search_seconds: float

    def __repr__(self) -> str:
        """Return the outcome in a line."""
        notes = f", with {len(self.warnings)} warnings" if self.warnings else ""
        return f"<Pruned {self.chosen!r}, of {len(self.candidates)} candidates{notes}>"


Choose = Callable[[Sequence[Candidate[Any]]], int]
"""Takes candidates and returns the index of the best; in closed loop, where there is one."""

Enough = Callable[[Candidate[Any]], bool]
"""Tells whether a candidate does as the dense network does, so that no better one need be looked for."""

MoreData = Callable[[Any], Batch]
"""Runs a pruned network in its environment and returns the rows it met."""


def index_of_best(choose: Callable[[Sequence[Any]], int], candidates: Sequence[Any]) -> int:
    """Return the index that `choose` gives.

    Raises:
        PruningError: There is none like that.
    """
    found: Any = choose(candidates)
    try:
        index = operator.index(found)
    except TypeError:
        index = -1
    if not 0 <= index < len(candidates):
        raise PruningError(
            f"choose returned {found!r} for {len(candidates)} candidates; it has to return the index of the best, "
            f"0 to {len(candidates) - 1}"
        )
    return index


def least_objective(candidates: Sequence[Candidate[Any]]) -> int:
    """Choose by the objective; for when there is no closed loop to ask."""
    objectives = [c.objective if math.isfinite(c.objective) else math.inf for c in candidates]
    return objectives.index(min(objectives))


def prune_network(
    network: Network[Module],
    calibration: Calibration,
    terms: Sequence[Term],
    settings: PruningSettings,
    *,
    progress: Progress | None = None,
    latency: Latency | None = None,
    importance: Importance | None = None,
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
        importance: Scores the channels; by default what the settings name.
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
        dense = network.run(network.module, calibration.fit)
        terms = scaled_terms(terms, dense, calibration.fit_weights)
        check_errors(terms, dense, calibration.fit)
    if settings.distill_steps:
        check_gradients(network, few, terms)  # before the search, which may take minutes
    problem = coefficient_problem(
        network, calibration, terms, settings, progress, latency=latency, importance=importance
    )
    problem = replace(problem, sparsity=sparsity_by(1, settings))
    methods: list[Method] = [settings.method]
    if choose is not None and settings.method != "uniform":
        methods.append("uniform")
    candidates, search_seconds = list[Candidate[Module]](), 0.0
    for method in methods:
        by_method = settings.model_copy(update={"method": method})
        candidate, seconds = shrunk(problem, by_method, progress, latency, importance)
        if all(candidate.groups != other.groups for other in candidates):
            candidates.append(candidate)
        search_seconds += seconds
    contest = _Contest(problem, candidates, settings, progress, more_data=more_data, choose=choose, enough=enough)
    if settings.on_policy_rounds:
        contest.refit_on_policy()
    if settings.distill_steps:
        contest.distil()
    if settings.variations:
        contest.vary()
    chosen = contest.best
    if not math.isfinite(chosen.objective):
        broken = ", ".join(name for name, error in chosen.errors.items() if not math.isfinite(error))
        raise PruningError(
            f"the pruned network gives out NaN or infinity on held-out rows, so {broken} cannot be judged; "
            "ask for less sparsity"
        )
    warnings = list(chosen.warnings)
    if settings.cost == "latency" and latency is not None:
        warnings += _latency_missed(latency_removed(latency, network.module, chosen.module), settings)
    if chosen.exceeded:
        warnings.append(f"the limit on {', '.join(chosen.exceeded)} is exceeded by every choice that was tried")
    return Pruned(
        candidates={candidate.name: candidate for candidate in contest.candidates},
        chosen=chosen,
        warnings=tuple(dict.fromkeys(warnings)),
        search_seconds=search_seconds,
    )


def _latency_missed(removed: float, settings: PruningSettings) -> list[str]:
    """Return a warning if so large a share of the latency is not what was asked for."""
    if abs(removed - settings.sparsity) <= settings.tolerance:
        return []
    return [
        f"measured again, the result takes {removed:.0%} less time than the dense network, where "
        f"{settings.sparsity:.0%} ± {settings.tolerance:.0%} were asked for; measure on a quieter machine, or allow a "
        "larger tolerance"
    ]


class _Contest(Generic[Module]):
    """The candidates of a run as they come, and the best of them so far.

    Args:
        problem: What they are judged by.
        candidates: Those that there are after surgery and reconstruction.
        settings: What further ones are made by.
        progress: Told of every stage.
        more_data: See `prune_network`, as for the rest.
        choose: Without, the objective chooses.
        enough: Without, none is good enough.
    """

    def __init__(
        self,
        problem: CoefficientProblem[Module],
        candidates: Sequence[Candidate[Module]],
        settings: PruningSettings,
        progress: Progress,
        *,
        more_data: MoreData | None,
        choose: Choose | None,
        enough: Enough | None,
    ) -> None:
        self._problem = problem
        self._settings = settings
        self._progress = progress
        self._more_data = more_data
        self._choose = choose or least_objective
        self._enough = enough
        self._closed_loop = choose is not None
        self._met: Calibration | None = None  # with what the best one met, if it is built on that
        self.candidates = list(candidates)
        self.best = self._best_of(candidates)

    def refit_on_policy(self) -> None:
        """Let the best, rebuilt on what it meets, contend; if that wins, later ones are built on it too."""
        if self._more_data is None:
            return
        best, rounds = self.best, self._settings.on_policy_rounds or 0
        warnings = best.warnings

        def rebuild(data: Calibration) -> Module:
            nonlocal warnings
            module, warnings = best.rebuild(data)
            return module

        module, data = refitted_on_policy(
            best.module, self._problem.calibration, rebuild, self._more_data, rounds, self._progress
        )
        self._contend(judged(self._problem, replace(best, module=module, on_policy=True, warnings=warnings)))
        self._met = data if self.best.on_policy else None

    def distil(self) -> None:
        """Let the best, distilled, contend, and until one is good enough two more."""
        # What is best without a gradient step need not be best after some.
        lowest = self.candidates[least_objective(self.candidates)]
        self._contend(self._finished(self.best, self._progress))
        if self._open_to_others and lowest.groups != self.best.groups:
            self._contend(self._finished(lowest, self._progress))
        # In several rounds, most channels have left by the first ranking.
        if self._open_to_others and self._settings.importance != OTHER_RANKING and self._settings.rounds == 1:
            self._contend(self._finished(self.best.rerank(OTHER_RANKING, self._progress), self._progress))

    def vary(self) -> None:
        """Vary the best one's coefficients, one choice after the other, and keep each that is better.

        A (1+1) evolution strategy (Rechenberg 1973) whose fitness is the closed loop. No error on logged states tells
        which of two networks gets by with the states that it leads itself into.
        """
        wanted = self._settings.variations or 0
        rng = np.random.default_rng(self._settings.seed)
        seen = [self.best.groups]
        for number in range(1, wanted + 1):
            part = (number - 1) / wanted, number / wanted
            self._progress("closed-loop search", part[0])
            if self._is_enough:
                return
            try:
                other = self.best.vary(number, rng)
            except PruningError:
                continue  # near some coefficients no whole number of channels meets the budget
            if other.groups in seen:
                continue
            seen.append(other.groups)
            other = self._finished(other, self._progress.part("closed-loop search", *part))
            if other.exceeded:
                continue
            if self.best.exceeded or index_of_best(self._choose, [self.best, other]) == 1:
                self.candidates.append(other)
                self.best = other

    def _finished(self, candidate: Candidate[Module], progress: Progress) -> Candidate[Module]:
        """Do to a candidate, as it is after surgery and reconstruction, what is done to the others."""
        problem, settings = self._problem, self._settings
        if self._met is not None and not candidate.on_policy:
            module, warnings = candidate.rebuild(self._met)
            candidate = judged(problem, replace(candidate, module=module, on_policy=True, warnings=warnings))
        if not settings.distill_steps:
            return candidate
        rounds = settings.on_policy_rounds or 0 if self._more_data is not None else 0
        student = distill(
            candidate.module,
            problem.network,
            problem.calibration,
            problem.terms,
            steps=settings.distill_steps,
            seed=settings.seed,
            progress=progress,
            more_data=self._more_data,
            rounds=rounds,
        )
        on_policy = candidate.on_policy or rounds > 0
        return judged(problem, replace(candidate, module=student, on_policy=on_policy, distilled=True))

    def _contend(self, candidate: Candidate[Module]) -> None:
        self.candidates.append(candidate)
        self.best = self._best_of([self.best, candidate])

    def _best_of(self, candidates: Sequence[Candidate[Module]]) -> Candidate[Module]:
        """Choose, if any candidate keeps all limits, among those that do."""
        self._progress("choice", 0.0)
        candidates = [candidate for candidate in candidates if not candidate.exceeded] or candidates
        return candidates[index_of_best(self._choose, candidates) if len(candidates) > 1 else 0]

    @property
    def _is_enough(self) -> bool:
        """Whether no better one need be looked for: the best keeps all limits, and does as the dense network does."""
        return self._enough is not None and not self.best.exceeded and self._enough(self.best)

    @property
    def _open_to_others(self) -> bool:
        return self._closed_loop and not self._is_enough


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
