"""Pruning a controller: from a bundle and its rollouts to a smaller bundle."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nncontrol_prune.controllers.bundle import Bundle, make_bundle
from nncontrol_prune.controllers.errors import BundleError
from nncontrol_prune.controllers.latency import latencies
from nncontrol_prune.controllers.mlp import parameter_count
from nncontrol_prune.controllers.specs import LONGEST_NAME, Provenance, Spec
from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.architectures import Recipe, recipe_for, sample_batch
from nncontrol_prune.pruning.calibration import Calibration, calibration_from
from nncontrol_prune.pruning.candidates import Candidate
from nncontrol_prune.pruning.costs import parameter_cost
from nncontrol_prune.pruning.engine import ON_POLICY_ROUNDS, index_of_best, prune_network
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.group_report import GroupReport
from nncontrol_prune.pruning.network import Batch
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.pruning.terms import Term, chosen_terms
from nncontrol_prune.rollouts.reader import Rollouts

VARIATIONS = 12
"""Where the user names no number."""
LATENCY_RUNS = 400
"""Runs of a policy that its latency is the median of, at the most."""
FEWEST_LATENCY_RUNS = 20
LATENCY_TIME = 0.03
"""Seconds that these runs may take: a planner's many would leave no time to measure it often."""


class PruningReport(Spec):
    """What the pipeline did."""

    dense_parameters: int
    pruned_parameters: int
    cost: str
    """What the sparsity is a share of."""
    sparsity: float
    """Share of it that is gone."""
    groups: tuple[GroupReport, ...]
    errors: dict[str, float]
    """Objective on held-out rollouts by candidate: the weighted sum of the terms."""
    terms: dict[str, dict[str, float]]
    """Mean error of each term, by candidate."""
    chosen: str
    """The candidate that became the controller."""
    rollouts: str
    rows: int
    """Transitions in the rollouts."""
    warnings: tuple[str, ...]
    search_seconds: float
    """Time that finding the coefficients took."""
    seconds: float


Choose = Callable[[Sequence[Bundle]], int]
"""Takes pruned controllers and returns the index of the best in closed loop."""

Enough = Callable[[Bundle], bool]
"""Tells whether a pruned controller does in closed loop as the dense one does."""

Observe = Callable[[Bundle], NDArray[np.float64]]
"""Runs a controller in its environment and returns the observations (rows, n) it met."""


def prune_bundle(
    dense: Bundle,
    rollouts: Rollouts,
    settings: PruningSettings,
    *,
    name: str | None = None,
    choose: Choose | None = None,
    enough: Enough | None = None,
    observe: Observe | None = None,
    progress: Progress | None = None,
) -> tuple[Bundle, PruningReport]:
    """Prune a controller from its rollouts.

    Args:
        dense: The controller.
        rollouts: What the loop logged, with the controller's observation size.
        settings: How much to remove and how.
        name: Of the new controller; by default the dense one's with the sparsity.
        choose: Picks among the candidates: the method's coefficients, uniform ones or those near the better of them,
            before or after distillation, and with another ranking of the channels. By default the held-out error does.
        enough: Tells when coefficients need not be varied any more, nor anything else be distilled.
        observe: Runs a candidate in its environment, for on-policy rounds.
        progress: Told of every stage, and asked whether to stop.

    Raises:
        PruningError: The rollouts do not fit or are too few, or the sparsity cannot be reached.
        Cancelled: `progress` said so.
    """
    progress = progress or Progress()
    started = time.monotonic()
    manifest = dense.manifest
    recipe = recipe_for(dense.module())
    terms = chosen_terms(recipe.terms, settings.terms, settings.limits)
    calibration = controller_calibration(dense, rollouts, recipe, terms, settings)
    if settings.on_policy_rounds is None:
        rounds = 0 if observe is None or recipe.horizon else ON_POLICY_ROUNDS
        settings = settings.model_copy(update={"on_policy_rounds": rounds})
    elif settings.on_policy_rounds and (observe is None or recipe.horizon):
        raise PruningError(
            "on-policy rounds need an environment to run in"
            if observe is None
            else f"on-policy rounds are not possible for {manifest.architecture.kind} controllers"
        )

    if settings.variations is None:
        settings = settings.model_copy(update={"variations": 0 if enough is None else VARIATIONS})

    deployment = _Deployment(dense, rollouts, settings, calibration, name)
    exported = functools.cache(deployment.bundle_of)  # each network is measured several times
    pruned = prune_network(
        recipe.network,
        calibration,
        terms,
        settings,
        progress=progress,
        latency=lambda module: latency_of(exported(module)),
        more_data=None if observe is None else functools.partial(deployment.met_by, observe),
        choose=None if choose is None else functools.partial(deployment.best_of, choose),
        enough=None if enough is None else functools.partial(deployment.is_enough, enough),
    )
    chosen = pruned.chosen
    bundle = deployment.of(chosen)
    if isinstance(bundle, PruningError):
        raise bundle
    report = PruningReport(
        dense_parameters=manifest.parameters,
        pruned_parameters=bundle.manifest.parameters,
        cost=settings.cost,
        sparsity=chosen.sparsity,
        groups=tuple(outcome.report() for outcome in chosen.groups),
        errors={found.name: found.objective for found in pruned.candidates.values()},
        terms={found.name: found.errors for found in pruned.candidates.values()},
        chosen=chosen.name,
        rollouts=rollouts.digest,
        rows=len(rollouts.stamp),
        warnings=(*rollouts.warnings, *calibration.warnings, *pruned.warnings),
        search_seconds=pruned.search_seconds,
        seconds=time.monotonic() - started,
    )
    return bundle, report


class _Deployment:
    """Networks of a run as bundles.

    Args:
        dense: The controller that is pruned.
        rollouts: What it is pruned from.
        settings: By which.
        calibration: Has the observations that bundles are checked on.
        name: Of the bundles; None for the dense one's with the sparsity.
    """

    def __init__(
        self,
        dense: Bundle,
        rollouts: Rollouts,
        settings: PruningSettings,
        calibration: Calibration,
        name: str | None,
    ) -> None:
        self._dense = dense
        self._rollouts = rollouts
        self._settings = settings
        self._rows = calibration.fit
        self._name = name
        self._bundles: dict[str, Bundle | PruningError] = {}

    def bundle_of(self, module: Any, provenance: Provenance | None = None) -> Bundle:
        """Make a bundle of a network.

        Raises:
            PruningError: Its outputs are of no use.
        """
        manifest = self._dense.manifest
        try:
            return make_bundle(
                module,
                name=self._name or _name_after(manifest.name, provenance.sparsity if provenance else 0.0),
                observation=manifest.observation,
                action=manifest.action,
                rate=manifest.rate,
                environment=manifest.environment,
                reference_observations=self._rows["observation"].numpy(),
                parent=self._dense.reference if provenance else None,
                provenance=provenance,
            )
        except BundleError as error:
            raise PruningError(
                f"what is left of {manifest.name} is of no use: {error}; ask for less sparsity"
            ) from error

    def of(self, candidate: Candidate[Any]) -> Bundle | PruningError:
        """Return a candidate's bundle, made once, or why there is none."""
        if candidate.name not in self._bundles:
            provenance = _provenance(self._dense, self._rollouts, self._settings, candidate)
            try:
                self._bundles[candidate.name] = self.bundle_of(candidate.module, provenance)
            except PruningError as error:
                self._bundles[candidate.name] = error
        return self._bundles[candidate.name]

    def best_of(self, choose: Choose, candidates: Sequence[Candidate[Any]]) -> int:
        """Return the index of the best candidate of those that are of use."""
        found = [self.of(candidate) for candidate in candidates]
        usable = [bundle for bundle in found if isinstance(bundle, Bundle)]
        return found.index(usable[index_of_best(choose, usable) if len(usable) > 1 else 0]) if usable else 0

    def is_enough(self, enough: Enough, candidate: Candidate[Any]) -> bool:
        """Return whether a candidate does in closed loop as the dense controller does."""
        bundle = self.of(candidate)
        return isinstance(bundle, Bundle) and enough(bundle)

    def met_by(self, observe: Observe, module: Any) -> Batch:
        """Return rows with the observations that a network meets in its environment."""
        try:
            bundle = self.bundle_of(module)
        except PruningError:  # what cannot be deployed meets nothing; in the middle of distillation it passes
            return rows_like(self._rows, np.empty((0, self._dense.manifest.observation.size)))
        return rows_like(self._rows, observe(bundle))


def controller_calibration(
    dense: Bundle, rollouts: Rollouts, recipe: Recipe, terms: Sequence[Term], settings: PruningSettings
) -> Calibration:
    """Make the calibration data of a controller from its rollouts.

    Raises:
        PruningError: The rollouts do not fit or are too few.
    """
    manifest = dense.manifest
    if rollouts.observation.shape[1] != manifest.observation.size:
        raise PruningError(
            f"the rollouts have {rollouts.observation.shape[1]} observation values, "
            f"{manifest.name} observes {manifest.observation.size}; record rollouts of this controller"
        )
    return calibration_from(
        rollouts,
        horizon=recipe.horizon,
        directions=any(term.output == "jacobian" for term in terms),
        rewards=any(term.target == "reward" for term in terms),
        max_rows=settings.max_rows,
        perturbation=settings.perturbation,
        seed=settings.seed,
    )


def largest_sparsity(dense: Bundle, channel_multiple: int = 1) -> float:
    """Return the share of a controller's parameters that is gone with as few channels as may be left in every group.

    Args:
        dense: The controller.
        channel_multiple: Groups keep a multiple of so many channels, or all of theirs.

    Raises:
        PruningError: It has nothing to prune.
    """
    recipe = recipe_for(dense.module())
    groups = recipe.network.groups(sample_batch(recipe, dense.reference_observations, dense.manifest.action.size))
    cost = parameter_cost(recipe.network.module, groups)
    return float(cost.removed([group.counts(channel_multiple)[0] / group.channels for group in groups]))


def latency_of(bundle: Bundle) -> float:
    """Return the median seconds that the deployed policy takes for an observation, on this machine."""
    few = float(np.median(latencies(bundle, FEWEST_LATENCY_RUNS)))
    runs = min(LATENCY_RUNS, int(LATENCY_TIME / few))
    return few if runs <= FEWEST_LATENCY_RUNS else float(np.median(latencies(bundle, runs)))


def _name_after(name: str, sparsity: float) -> str:
    """Return the dense controller's name, cut where it has to be, with the sparsity in percent."""
    percent = f"_{round(100 * sparsity)}"
    return name[: LONGEST_NAME - len(percent)] + percent


def _provenance(dense: Bundle, rollouts: Rollouts, settings: PruningSettings, candidate: Candidate[Any]) -> Provenance:
    return Provenance(
        rollouts=rollouts.digest,
        bags=tuple(rollouts.bags),
        transitions=len(rollouts),
        method=candidate.method,
        importance=candidate.ranking or settings.importance,
        coefficients={outcome.group.name: outcome.coefficient for outcome in candidate.groups},
        # Of the parameters, whatever the budget is of.
        sparsity=1.0 - parameter_count(candidate.module) / dense.manifest.parameters,
        on_policy_rounds=settings.on_policy_rounds or 0 if candidate.on_policy else 0,
        distill_steps=settings.distill_steps if candidate.distilled else 0,
        seed=settings.seed,
    )


def rows_like(batch: Batch, observations: NDArray[np.float64]) -> Batch:
    """Return rows with these observations, and with other entries as the batch has them."""
    rows = torch.from_numpy(observations.astype(np.float32))
    again = torch.arange(len(rows)) % len(batch["observation"])
    return {name: rows if name == "observation" else values[again] for name, values in batch.items()}
