"""The pruning engine: one network, its data and what matters, made smaller.

Groups, importance, coefficients, surgery, reconstruction, distillation; in one round or in several. Where a closed loop
can be asked, it has the last word on the coefficients.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

import numpy as np
import torch

from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.candidates import Candidate, judged
from nncontrol_prune.pruning.coefficients import CoefficientProblem
from nncontrol_prune.pruning.distillation import distill
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.network import Batch, Network, take
from nncontrol_prune.pruning.problem import Latency, coefficient_problem
from nncontrol_prune.pruning.rounds import shrunk, sparsity_by
from nncontrol_prune.pruning.settings import ImportanceName, Method, PruningSettings
from nncontrol_prune.pruning.surgery import Module
from nncontrol_prune.pruning.terms import Term, check_errors, check_terms, scaled_terms

OTHER_RANKING: ImportanceName = "fisher"
"""What channels that are to be distilled are ranked by where the settings' importance is not enough: `obs` looks at the
error before a gradient step."""


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
        dense = network.run(network.module, calibration.fit)
        terms = scaled_terms(terms, dense, calibration.fit_weights)
        check_errors(terms, dense, calibration.fit)
    problem = coefficient_problem(network, calibration, terms, settings, progress, latency=latency)
    problem = replace(problem, sparsity=sparsity_by(1, settings))
    methods: list[Method] = [settings.method]
    if choose is not None and settings.method != "uniform":
        methods.append("uniform")
    candidates, warnings, search_seconds = list[Candidate[Module]](), list[str](), 0.0
    for method in methods:
        candidate, notes, seconds = shrunk(problem, settings.model_copy(update={"method": method}), progress, latency)
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
        candidates.append(judged(problem, replace(chosen, module=module, on_policy=True)))
        chosen = _chosen([chosen, candidates[-1]], choose, progress)

    refit = chosen.on_policy

    def finished(candidate: Candidate[Module], progress: Progress) -> Candidate[Module]:
        """Do to a candidate, as it is after surgery and reconstruction, what is done to the others."""
        if refit and not candidate.on_policy:
            candidate = judged(problem, replace(candidate, module=candidate.rebuild(data), on_policy=True))
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
    if not math.isfinite(chosen.objective):
        broken = ", ".join(name for name, error in chosen.errors.items() if not math.isfinite(error))
        raise PruningError(
            f"the pruned network gives out NaN or infinity on held-out rows, so {broken} cannot be judged; "
            "ask for less sparsity"
        )
    if chosen.exceeded:
        warnings.append(f"the limit on {', '.join(chosen.exceeded)} is exceeded by every choice that was tried")
    return Pruned(
        candidates={candidate.name: candidate for candidate in candidates},
        chosen=chosen,
        warnings=tuple(dict.fromkeys(warnings)),
        search_seconds=search_seconds,
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
        if not other.exceeded and (candidate.exceeded or index_of_best(choose, [candidate, other]) == 1):
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
    return judged(problem, replace(candidate, module=student, on_policy=on_policy, distilled=True))


def _chosen(candidates: Sequence[Candidate[Module]], choose: Choose | None, progress: Progress) -> Candidate[Module]:
    """Choose, if any candidate keeps all limits, among those that do."""
    progress("choice", 0.0)
    candidates = [candidate for candidate in candidates if not candidate.exceeded] or candidates
    return candidates[index_of_best(choose or least_objective, candidates) if len(candidates) > 1 else 0]


def _is_enough(candidate: Candidate[Any], enough: Enough | None) -> bool:
    """Return whether no better one need be looked for: it keeps all limits, and does as the dense network does."""
    return enough is not None and not candidate.exceeded and enough(candidate)
