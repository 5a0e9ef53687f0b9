"""The pruning engine: one network, its data and what matters, made smaller.

Groups, importance, coefficients, surgery, reconstruction, distillation; in one round or in several.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

import torch

from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.coefficients import CoefficientProblem, CostModel, Optimizer, held_out_errors, uniform
from nncontrol_prune.pruning.costs import Cost, LatencyCost, multiplication_cost, parameter_cost
from nncontrol_prune.pruning.distillation import distill
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.gradient import gradient
from nncontrol_prune.pruning.groups import Group
from nncontrol_prune.pruning.importance import IMPORTANCES, Evidence, normalized
from nncontrol_prune.pruning.network import Batch, Network, take
from nncontrol_prune.pruning.search import grid, threshold, tpe
from nncontrol_prune.pruning.settings import Method, PruningSettings
from nncontrol_prune.pruning.surgery import Module, remove_channels
from nncontrol_prune.pruning.terms import Term, check_terms, scaled_terms

LATENCY_SHARES = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0)
"""Shares of all channels at which latency is measured."""

Latency = Callable[[Any], float]
"""Measures the seconds that one run of a network takes where it is deployed."""


def optimizer_of(settings: PruningSettings) -> Optimizer[Any]:
    """Return the optimizer that the settings name."""
    optimizers: dict[Method, Optimizer[Any]] = {
        "uniform": uniform,
        "threshold": threshold,
        "grid": functools.partial(grid, jobs=settings.jobs),
        "gradient": gradient,
        "tpe": tpe,
    }
    return optimizers[settings.method]


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


@dataclass(frozen=True)
class Pruned(Generic[Module]):
    """What the engine made of a network.

    Attributes:
        modules: The candidates: `reconstructed` and, where asked for, `distilled`.
        errors: Each candidate's mean error by term, on the held-out part.
        objectives: Each candidate's objective on the held-out part.
        groups: What became of each group.
        sparsity: The share of the cost that is gone.
        warnings: What the user should know, as sentences.
        search_seconds: Time that finding the coefficients took, over all rounds.
    """

    modules: dict[str, Module]
    errors: dict[str, dict[str, float]]
    objectives: dict[str, float]
    groups: list[GroupOutcome]
    sparsity: float
    warnings: tuple[str, ...]
    search_seconds: float

    @property
    def best(self) -> Module:
        """The candidate with the least objective."""
        return self.modules[min(self.objectives, key=self.objectives.__getitem__)]


MoreData = Callable[[Any], Batch]
"""Runs a pruned network in its environment and returns the rows it met."""


def prune_network(
    network: Network[Module],
    calibration: Calibration,
    terms: Sequence[Term],
    settings: PruningSettings,
    *,
    progress: Progress | None = None,
    latency: Latency | None = None,
    more_data: MoreData | None = None,
) -> Pruned[Module]:
    """Prune a network.

    Args:
        network: The dense network.
        calibration: The data.
        terms: What matters of its outputs.
        settings: How much to remove and how. What concerns rollouts and terms is done with by now.
        progress: Told of every stage, and asked whether to stop.
        latency: Measures latency, where the budget is one.
        more_data: For distillation in several rounds on states that the pruned network gets into.

    Raises:
        PruningError: The network cannot be traced, the components or terms do not fit it, or the budget cannot be
            reached.
        Cancelled: `progress` said so.
    """
    progress = progress or Progress()
    progress("groups", 0.0)
    with torch.no_grad():
        few = take(calibration.fit, torch.arange(2))
        check_terms(terms, network.run(network.module, few), few)
        terms = scaled_terms(terms, network.run(network.module, calibration.fit), calibration.fit_weights)
    groups = network.groups(calibration.fit)
    prices = [group.parameters_per_channel(network.module) for group in groups]
    module, warnings, search_seconds = network.module, list[str](), 0.0
    left = [group.channels for group in groups]
    dense_cost = _cost(network, groups, calibration, settings, latency)
    for number in range(1, settings.rounds + 1):
        wanted = 1.0 - (1.0 - settings.sparsity) ** (number / settings.rounds)
        gone = float(dense_cost.removed([count / group.channels for count, group in zip(left, groups, strict=True)]))
        problem = coefficient_problem(
            replace(network, module=module),
            calibration,
            terms,
            settings.model_copy(update={"sparsity": max(0.0, 1.0 - (1.0 - wanted) / (1.0 - gone))}),
            progress,
            cost=dense_cost if number == 1 else None,
            latency=latency,
            teacher=network,
        )
        started = time.monotonic()
        kept = optimizer_of(settings)(problem, progress)
        search_seconds += time.monotonic() - started
        progress("reconstruction", 0.0)
        module = problem.build(kept)
        warnings += problem.warnings
        left = problem.kept_of(kept)
        if number == settings.rounds:
            exceeded = problem.violated(module)
            if exceeded:
                warnings.append(f"the limit on {', '.join(exceeded)} is exceeded by every choice that was tried")
    modules = {"reconstructed": module}
    if settings.distill_steps:
        data = calibration
        student = module
        for number in range(settings.on_policy_rounds + 1 if more_data is not None else 1):
            if number:
                assert more_data is not None
                progress("distillation", number / (settings.on_policy_rounds + 1))
                data = data.with_more(more_data(student))
            student = distill(
                student,
                network,
                data,
                terms,
                steps=settings.distill_steps,
                seed=settings.seed + number,
                progress=progress,
            )
        modules["distilled"] = student
    with torch.no_grad():
        dense = network.run(network.module, calibration.held_out)
    judged = {name: held_out_errors(network, found, calibration, terms, dense) for name, found in modules.items()}
    return Pruned(
        modules=modules,
        errors={name: by_term for name, (_, by_term) in judged.items()},
        objectives={name: total for name, (total, _) in judged.items()},
        groups=[GroupOutcome(group, count, price) for group, count, price in zip(groups, left, prices, strict=True)],
        sparsity=float(dense_cost.removed([count / group.channels for count, group in zip(left, groups, strict=True)])),
        warnings=tuple(dict.fromkeys(warnings)),
        search_seconds=search_seconds,
    )


def coefficient_problem(
    network: Network[Module],
    calibration: Calibration,
    terms: Sequence[Term],
    settings: PruningSettings,
    progress: Progress,
    *,
    cost: CostModel | None = None,
    latency: Latency | None = None,
    teacher: Network[Module] | None = None,
) -> CoefficientProblem[Module]:
    """Find the groups, score their channels, and put the coefficient problem together.

    Args:
        network: The network to be pruned.
        calibration: The data.
        terms: What matters, with their scales.
        settings: The settings.
        progress: Told of each stage.
        cost: What the budget is about, where it is known already.
        latency: Measures latency, where the budget is one.
        teacher: Whose outputs to keep; by default the network's own.
    """
    progress("groups", 0.0)
    groups = network.groups(calibration.fit)
    progress("importance", 0.0)
    evidence = Evidence(network, groups, calibration.fit, calibration.fit_weights, terms, settings.seed)
    scores = [score.detach() for score in IMPORTANCES[settings.importance](evidence)]
    return CoefficientProblem(
        network=network,
        groups=groups,
        scores=normalized(groups, scores, settings.component_weights),
        calibration=calibration,
        terms=terms,
        cost=cost or _cost(network, groups, calibration, settings, latency),
        sparsity=settings.sparsity,
        tolerance=settings.tolerance,
        seed=settings.seed,
        teacher=teacher,
    )


def _cost(
    network: Network[Module],
    groups: Sequence[Group],
    calibration: Calibration,
    settings: PruningSettings,
    latency: Latency | None,
) -> Cost | LatencyCost:
    if settings.cost == "parameters":
        return parameter_cost(network.module, groups)
    few = take(calibration.fit, torch.arange(2))
    multiplications = multiplication_cost(network.module, groups, lambda module: network.run(module, few))
    if settings.cost == "multiplications":
        return multiplications
    if latency is None:
        raise PruningError("a budget on latency needs a way to measure it; there is one for controllers in bundles")
    measured = []
    for share in LATENCY_SHARES:
        kept = [max(1, round(share * group.channels)) for group in groups]
        module = remove_channels(network.module, groups, [torch.arange(count) for count in kept])
        shares = [count / group.channels for count, group in zip(kept, groups, strict=True)]
        measured.append((float(multiplications(shares)), latency(module)))
    return LatencyCost(multiplications, measured)
