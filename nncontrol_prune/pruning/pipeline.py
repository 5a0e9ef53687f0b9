"""The pruning pipeline: groups, importance, coefficients, surgery, reconstruction, distillation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nncontrol_prune.controllers.bundle import Bundle, make_bundle
from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.controllers.specs import Provenance, Spec
from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.calibration import Calibration, calibration_from
from nncontrol_prune.pruning.coefficients import CoefficientProblem, Optimizer, grid, uniform
from nncontrol_prune.pruning.distillation import distill
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.gradient import gradient
from nncontrol_prune.pruning.groups import find_groups
from nncontrol_prune.pruning.importance import IMPORTANCES
from nncontrol_prune.pruning.settings import Method, PruningSettings
from nncontrol_prune.rollouts.reader import Rollouts

METHODS: dict[Method, Optimizer[Mlp]] = {"uniform": uniform, "grid": grid, "gradient": gradient}
"""Optimizers of the coefficients by the name users give."""


class GroupReport(Spec):
    """What became of one group."""

    name: str
    components: tuple[str, ...]
    kind: str
    channels: int
    kept: int
    coefficient: float
    parameters_per_channel: int


class PruningReport(Spec):
    """What the pipeline did."""

    dense_parameters: int
    pruned_parameters: int
    sparsity: float
    groups: tuple[GroupReport, ...]
    errors: dict[str, float]
    """Mean squared action error on held-out rollouts, in squared action ranges, by candidate."""
    chosen: str
    """The candidate that became the controller."""
    rollouts: str
    rows: int
    """Transitions in the rollouts."""
    warnings: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Candidate:
    """A pruned network: `reconstructed`, or `distilled` in addition."""

    name: str
    bundle: Bundle
    error: float


Choose = Callable[[Sequence[Candidate]], int]
"""Takes the candidates and returns the index of the best; in closed loop, where there is one."""


def least_error(candidates: Sequence[Candidate]) -> int:
    """Choose by the held-out action error; for when there is no closed loop to ask."""
    return min(range(len(candidates)), key=lambda index: candidates[index].error)


def prune_bundle(
    dense: Bundle,
    rollouts: Rollouts,
    settings: PruningSettings,
    *,
    name: str | None = None,
    choose: Choose = least_error,
    progress: Progress | None = None,
) -> tuple[Bundle, PruningReport]:
    """Prune a controller from its rollouts.

    Args:
        dense: The controller.
        rollouts: What the loop logged, with the controller's observation size.
        settings: How much to remove and how.
        name: Of the new controller; by default the dense one's with the sparsity.
        choose: Picks among the candidates before and after distillation.
        progress: Told of every stage, and asked whether to stop.

    Raises:
        PruningError: The rollouts do not fit or are too few, or the sparsity cannot be reached.
        Cancelled: `progress` said so.
    """
    progress = progress or Progress()
    started = time.monotonic()
    manifest = dense.manifest
    if rollouts.observation.shape[1] != manifest.observation.size:
        raise PruningError(
            f"the rollouts have {rollouts.observation.shape[1]} observation values, "
            f"{manifest.name} observes {manifest.observation.size}; record rollouts of this controller"
        )
    module = dense.module()
    calibration = calibration_from(
        rollouts, max_rows=settings.max_rows, perturbation=settings.perturbation, seed=settings.seed
    )
    problem = coefficient_problem(module, calibration, settings, progress)
    kept = METHODS[settings.method](problem, progress)
    progress("reconstruction", 0.0)
    modules = {"reconstructed": problem.build(kept)}
    if settings.distill_steps:
        modules["distilled"] = distill(
            modules["reconstructed"],
            module,
            calibration,
            problem.action_range,
            steps=settings.distill_steps,
            seed=settings.seed,
            progress=progress,
        )
    sparsity = problem.sparsity_of(kept)
    coefficients = problem.coefficients_of(kept)
    candidates = [
        Candidate(
            name=label,
            error=problem.objective(candidate),
            bundle=make_bundle(
                candidate,
                name=name or f"{manifest.name}_{round(100 * sparsity)}",
                observation=manifest.observation,
                action=manifest.action,
                rate=manifest.rate,
                environment=manifest.environment,
                reference_observations=calibration.fit.numpy(),
                parent=dense.reference,
                provenance=Provenance(
                    rollouts=rollouts.digest,
                    method=settings.method,
                    importance=settings.importance,
                    coefficients={group.name: c for group, c in zip(problem.groups, coefficients, strict=True)},
                    sparsity=sparsity,
                    distill_steps=settings.distill_steps if label == "distilled" else 0,
                    seed=settings.seed,
                ),
            ),
        )
        for label, candidate in modules.items()
    ]
    progress("choice", 0.0)
    chosen = candidates[choose(candidates) if len(candidates) > 1 else 0]
    report = PruningReport(
        dense_parameters=manifest.parameters,
        pruned_parameters=chosen.bundle.manifest.parameters,
        sparsity=sparsity,
        groups=tuple(
            GroupReport(
                name=group.name,
                components=group.components,
                kind=group.kind,
                channels=group.channels,
                kept=count,
                coefficient=coefficient,
                parameters_per_channel=group.parameters_per_channel(module),
            )
            for group, count, coefficient in zip(problem.groups, kept, coefficients, strict=True)
        ),
        errors={candidate.name: candidate.error for candidate in candidates},
        chosen=chosen.name,
        rollouts=rollouts.digest,
        rows=len(rollouts.stamp),
        warnings=(*rollouts.warnings, *calibration.warnings),
        seconds=time.monotonic() - started,
    )
    return chosen.bundle, report


def coefficient_problem(
    module: Mlp, calibration: Calibration, settings: PruningSettings, progress: Progress
) -> CoefficientProblem[Mlp]:
    """Find the groups, score their channels, and put the coefficient problem together."""
    progress("groups", 0.0)
    groups = find_groups(module, module.components(), calibration.fit[:8])
    progress("importance", 0.0)
    scores = IMPORTANCES[settings.importance](module, groups, calibration.fit, calibration.fit_weights)
    return CoefficientProblem(
        module=module,
        groups=groups,
        scores=[score.detach() for score in scores],
        calibration=calibration,
        action_range=2 * module.output.half_range,
        sparsity=settings.sparsity,
        tolerance=settings.tolerance,
    )
