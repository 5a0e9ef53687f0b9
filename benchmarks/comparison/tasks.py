"""The tasks: a dense controller, its environment, and the calibration data that all methods share."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from comparison.recording import record
from nncontrol_prune.controllers.bundle import Bundle, load_bundle, make_bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.pruning.architectures import Recipe, recipe_for
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.groups import Group
from nncontrol_prune.pruning.network import Batch
from nncontrol_prune.pruning.pipeline import controller_calibration, rows_like
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.pruning.terms import Term, chosen_terms, scaled_terms
from nncontrol_prune.resources import share_directory
from nncontrol_prune.validation.selection import OBSERVATION_EPISODES

TRAINED = Path(__file__).resolve().parents[1] / "controllers"
CALIBRATION_EPISODES = 20
CALIBRATION_SEED = 2_000_000
EVALUATION_SEED = 1_000_000
ON_POLICY_SEED = 3_000_000
"""Evaluation takes the seeds from here on, calibration and on-policy rounds those from their own; they never meet."""


@dataclass(frozen=True)
class Task:
    """A task of the comparison."""

    name: str
    environment: str
    bundle: Path


def _shipped(name: str) -> Path:
    return share_directory() / "sim" / "controllers" / name


TASKS = {
    task.name: task
    for task in (
        Task("cartpole_swingup_sac", CARTPOLE, _shipped("cartpole_swingup_sac")),
        Task("cartpole_swingup_tdmpc", CARTPOLE, _shipped("cartpole_swingup_tdmpc")),
        Task("double_pendulum_sac", "InvertedDoublePendulum-v5", TRAINED / "double_pendulum_sac"),
        Task("hopper_td3", "Hopper-v5", TRAINED / "hopper_td3"),
        Task("halfcheetah_sac", "HalfCheetah-v5", TRAINED / "halfcheetah_sac"),
        Task("walker2d_ppo", "Walker2d-v5", TRAINED / "walker2d_ppo"),
    )
}


@functools.lru_cache(maxsize=2)
def dense_controller(task: Task) -> Bundle:
    """Return a task's dense controller."""
    return load_bundle(task.bundle)


@dataclass(frozen=True)
class Subject:
    """What all methods start from, for one calibration seed.

    Attributes:
        dense: The dense controller.
        environment: Where it is to act.
        recipe: How its network is pruned.
        terms: What matters.
        calibration: The data.
        groups: The groups.
        seed: The calibration seed.
    """

    dense: Bundle
    environment: str
    recipe: Recipe
    terms: Sequence[Term]
    calibration: Calibration
    groups: Sequence[Group]
    seed: int

    def bundle(self, module: Any) -> Bundle:
        """Return a network as it is deployed."""
        manifest = self.dense.manifest
        return make_bundle(
            module,
            name="pruned",
            observation=manifest.observation,
            action=manifest.action,
            rate=manifest.rate,
            reference_observations=self.calibration.fit["observation"].numpy(),
        )

    def met_by(self, module: Any) -> Batch:
        """Return rows with the states that a network meets, in as many episodes as the pipeline runs at the most."""
        first = ON_POLICY_SEED + self.seed * OBSERVATION_EPISODES
        met = record(self.bundle(module), self.environment, range(first, first + OBSERVATION_EPISODES)).observation
        return rows_like(self.calibration.fit, met)


@functools.lru_cache(maxsize=16)
def subject_of(task: Task, seed: int) -> Subject:
    """Record the rollouts of a calibration seed with the deployed policy, and make the data of them.

    Raises:
        PruningError: There is no recipe for the architecture.
    """
    dense = dense_controller(task)
    recipe = recipe_for(dense.module())
    chosen = chosen_terms(recipe.terms, None, {})
    first = CALIBRATION_SEED + seed * CALIBRATION_EPISODES
    rollouts = record(dense, task.environment, range(first, first + CALIBRATION_EPISODES))
    calibration = controller_calibration(dense, rollouts, recipe, chosen, PruningSettings(seed=seed))
    with torch.no_grad():
        terms = scaled_terms(
            chosen, recipe.network.run(recipe.network.module, calibration.fit), calibration.fit_weights
        )
    return Subject(dense, task.environment, recipe, terms, calibration, recipe.network.groups(calibration.fit), seed)
