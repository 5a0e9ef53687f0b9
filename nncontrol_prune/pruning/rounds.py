"""Pruning in rounds: coefficients, surgery and reconstruction in each, of what the one before left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.candidates import Candidate, candidate_of, share_removed
from nncontrol_prune.pruning.coefficients import CoefficientProblem
from nncontrol_prune.pruning.errors import NoChoice, PruningError, in_multiples
from nncontrol_prune.pruning.groups import NothingToPrune
from nncontrol_prune.pruning.importance import Importance
from nncontrol_prune.pruning.problem import Latency, coefficient_problem, optimizer_of
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.pruning.surgery import Module


def sparsity_by(number: int, settings: PruningSettings) -> float:
    """Return the share of the dense network's cost that is gone after so many rounds."""
    return 1.0 - (1.0 - settings.sparsity) ** (number / settings.rounds)


def shrunk(
    first: CoefficientProblem[Module],
    settings: PruningSettings,
    progress: Progress,
    latency: Latency | None,
    importance: Importance | None,
) -> tuple[Candidate[Module], float]:
    """Prune and reconstruct in as many rounds as the settings say.

    Args:
        first: The problem of the first round, which the dense network is pruned by.
        settings: The settings.
        progress: Told of every stage.
        latency: Measures latency, where the budget is one.
        importance: Scores the channels, in each round anew; None for what the settings name.

    Returns:
        The candidate, and the seconds that finding coefficients took.
    """
    problem, module, left = first, first.network.module, [group.channels for group in first.groups]
    candidate: Candidate[Module] | None = None
    warnings: tuple[str, ...] = ()
    seconds = 0.0
    for number in range(1, settings.rounds + 1):
        try:
            if number > 1:
                sparsity = sparsity_by(number, settings)
                problem = _next_problem(first, module, left, sparsity, settings, progress, latency, importance)
                problem = replace(problem, warnings=warnings)
            started = time.monotonic()
            kept = optimizer_of(settings)(problem, progress)
            seconds += time.monotonic() - started
            progress("reconstruction", 0.0)
            candidate = candidate_of(first, problem, kept, left, settings)
        except (NoChoice, NothingToPrune) as error:
            if number < settings.rounds:
                continue  # only the last round has to meet the budget
            if candidate is None:
                raise
            if abs(candidate.sparsity - settings.sparsity) > settings.tolerance:
                raise PruningError(
                    f"the rounds before the last removed {candidate.sparsity:.4g}, and from there no whole number of "
                    f"channels{in_multiples(settings.channel_multiple)} comes within {settings.tolerance:g} of "
                    f"sparsity {settings.sparsity:g}; take fewer rounds, or allow a larger tolerance"
                ) from error
        else:
            module, left = candidate.module, [outcome.kept for outcome in candidate.groups]
            warnings = candidate.warnings
    assert candidate is not None
    return candidate, seconds


def _next_problem(
    first: CoefficientProblem[Module],
    module: Module,
    left: Sequence[int],
    sparsity: float,
    settings: PruningSettings,
    progress: Progress,
    latency: Latency | None,
    importance: Importance | None,
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
        importance: Scores the channels; None for what the settings name.
    """
    rest = 1.0 - share_removed(first, left)
    network = replace(first.network, module=module, keep=())  # what is kept is not in the first problem's groups
    # A group of one channel may be gone from the trace, since a dimension of one entry tells nothing of what it holds,
    # or in parts: the last of a GroupNorm's groups is one of all channels, which can leave one by one.
    known = {group.places for group in first.groups}
    groups = [group for group in network.groups(first.calibration.fit) if group.places in known]
    if not groups:
        raise NothingToPrune("every group is down to one channel")
    names = {group.places: group.name for group in groups}
    tied = [[names.get(first.groups[member].places) for member in members] for members in first.ties]
    ties = [present for members in tied if (present := [name for name in members if name is not None])]
    components = {component for group in groups for component in group.components}
    component_weights = {name: weight for name, weight in settings.component_weights.items() if name in components}
    return coefficient_problem(
        replace(network, ties=ties),
        first.calibration,
        first.terms,
        settings.model_copy(
            update={
                "sparsity": max(0.0, 1.0 - (1.0 - sparsity) / rest),
                "tolerance": settings.tolerance / rest,
                "component_weights": component_weights,
            }
        ),
        progress,
        groups=groups,
        latency=latency,
        importance=importance,
        teacher=first.network,
    )
