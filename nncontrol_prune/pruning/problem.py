"""The coefficient problem of a network, put together as the settings say, and the optimizer that they name."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.coefficients import CoefficientProblem, Optimizer, nearest, uniform
from nncontrol_prune.pruning.costs import Cost, LatencyCost, multiplication_cost, parameter_cost
from nncontrol_prune.pruning.errors import PruningError, in_multiples
from nncontrol_prune.pruning.gradient import gradient
from nncontrol_prune.pruning.groups import Group
from nncontrol_prune.pruning.importance import IMPORTANCES, Evidence, Importance, normalized
from nncontrol_prune.pruning.network import Network, take
from nncontrol_prune.pruning.search import grid, threshold, tpe
from nncontrol_prune.pruning.settings import Method, PruningSettings
from nncontrol_prune.pruning.surgery import Module, remove_channels
from nncontrol_prune.pruning.terms import Term

LATENCY_SHARES = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0)
"""Shares of all channels at which latency is measured."""
LATENCY_TURNS = 9
"""How often at the most."""
LATENCY_SECONDS = 5.0
"""What all turns after the first may take."""

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


def coefficient_problem(
    network: Network[Module],
    calibration: Calibration,
    terms: Sequence[Term],
    settings: PruningSettings,
    progress: Progress,
    *,
    groups: Sequence[Group] | None = None,
    latency: Latency | None = None,
    importance: Importance | None = None,
    teacher: Network[Module] | None = None,
) -> CoefficientProblem[Module]:
    """Find the groups, unless they are given, score their channels, and put the coefficient problem together.

    Args:
        network: The network to be pruned.
        calibration: The data.
        terms: What matters, with their scales.
        settings: The settings.
        progress: Told of each stage.
        groups: Its groups to be pruned; by default all that there are.
        latency: Measures latency, where the budget is one.
        importance: Scores the channels; by default what the settings name.
        teacher: Whose outputs to keep; by default the network's own.

    Raises:
        PruningError: The network cannot be traced, or the budget cannot be reached.
    """
    progress("groups", 0.0)
    groups = network.groups(calibration.fit) if groups is None else groups
    problem = CoefficientProblem(
        network=network,
        groups=groups,
        scores=(),
        calibration=calibration,
        terms=terms,
        cost=_cost(network, groups, calibration, settings, latency),
        sparsity=settings.sparsity,
        tolerance=settings.tolerance,
        channel_multiple=settings.channel_multiple,
        seed=settings.seed,
        teacher=teacher,
    )
    problem.check_reachable()  # before the importance, which may take minutes
    return ranked(problem, importance or IMPORTANCES[settings.importance], settings.component_weights, progress)


def ranked(
    problem: CoefficientProblem[Module],
    importance: Importance,
    component_weights: Mapping[str, float],
    progress: Progress,
) -> CoefficientProblem[Module]:
    """Return a problem with its channels scored by an importance, and the scores weighted by component."""
    progress("importance", 0.0)
    data = problem.calibration
    evidence = Evidence(
        problem.network, problem.groups, data.fit, data.fit_weights, problem.terms, problem.seed, progress
    )
    scores = [score.detach() for score in importance(evidence)]
    return replace(problem, scores=normalized(problem.groups, scores, component_weights))


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
    if not multiplications.dense:
        raise PruningError(
            f"a budget on {settings.cost} goes by the multiplications of linear layers and convolutions, and there are "
            "none in this network; ask for a share of the parameters"
        )
    if settings.cost == "multiplications":
        return multiplications
    if latency is None:
        raise PruningError(
            "a budget on latency needs a way to measure it: pass latency= to prune(), "
            "a function that returns the seconds that a network takes"
        )
    allowed = [group.counts(settings.channel_multiple) for group in groups]
    if all(len(counts) == 1 for counts in allowed):
        raise PruningError(
            "there is nothing to remove for a budget on latency: every group has as few channels"
            f"{in_multiples(settings.channel_multiple)} as may be left"
        )
    choices = [[nearest(counts, share * counts[-1]) for counts in allowed] for share in LATENCY_SHARES]
    modules = [remove_channels(network.module, groups, [torch.arange(count) for count in kept]) for kept in choices]
    shares = [[count / group.channels for count, group in zip(kept, groups, strict=True)] for kept in choices]
    work = [float(multiplications(share)) for share in shares]
    return LatencyCost(multiplications, list(zip(work, _least_seconds(latency, modules), strict=True)))


def latency_removed(latency: Latency, dense: nn.Module, pruned: nn.Module) -> float:
    """Return the share of the dense network's latency that is gone, measured anew and in turns."""
    theirs, ours = _least_seconds(latency, [dense, pruned])
    return 1.0 - ours / theirs


def _least_seconds(latency: Latency, modules: Sequence[nn.Module]) -> list[float]:
    """Return the least seconds that each network took in several turns: other work on a machine only ever adds to it.

    In turns, a while in which the machine is busy falls to all of them.
    """
    least = [_seconds(latency, module) for module in modules]
    end = time.monotonic() + LATENCY_SECONDS
    for _ in range(LATENCY_TURNS - 1):
        for index, module in enumerate(modules):
            if time.monotonic() > end:  # one that takes long, as on a robot, is not asked many times more
                return least
            least[index] = min(least[index], _seconds(latency, module))
    return least


def _seconds(latency: Latency, module: nn.Module) -> float:
    found: Any = latency(module)
    try:
        seconds = float(found)
    except (TypeError, ValueError, RuntimeError):  # the last where it is a tensor of several numbers
        seconds = math.nan
    if not 0 < seconds < math.inf:
        count = sum(parameter.numel() for parameter in module.parameters())
        raise PruningError(
            f"latency= returned {found!r} for a network of {count:,} parameters; "
            "it has to return the seconds that the network takes, a finite number above 0"
        )
    return seconds
