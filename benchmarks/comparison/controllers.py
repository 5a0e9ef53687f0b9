"""Tasks in closed loop: a controller in its environment, scored by the return."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from comparison.recording import record
from comparison.tasks import Made, Subject, Task
from nncontrol_prune.controllers.bundle import Bundle, load_bundle, make_bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.architectures import recipe_for
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.network import Batch
from nncontrol_prune.pruning.pipeline import controller_calibration, latency_of, rows_like
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.pruning.terms import chosen_terms, scaled_terms
from nncontrol_prune.resources import share_directory
from nncontrol_prune.rollouts.reader import Rollouts
from nncontrol_prune.service import work
from nncontrol_prune.validation.evaluation import run_episodes
from nncontrol_prune.validation.selection import OBSERVATION_EPISODES
from nncontrol_prune.validation.settings import GateSettings

TRAINED = Path(__file__).resolve().parents[1] / "controllers"
CALIBRATION_EPISODES = 20
CALIBRATION_SEED = 2_000_000
EVALUATION_SEED = 1_000_000
ON_POLICY_SEED = 3_000_000
"""Evaluation takes the seeds from here on, calibration and on-policy rounds those from their own; they never meet,
nor those of the pipeline's choices (validation/selection.py)."""


@dataclass(frozen=True)
class DeployedController:
    """A controller in its environment; the score is an episode's return."""

    bundle: Bundle
    environment: str

    def scores(self, numbers: Sequence[int]) -> list[float]:
        """Run an episode for each number."""
        episodes = run_episodes(self.bundle, self.environment, [EVALUATION_SEED + number for number in numbers])
        return [episode.episode_return for episode in episodes]

    def latency(self) -> float:
        """Return the median seconds for an action."""
        return latency_of(self.bundle)

    def figures(self) -> Mapping[str, float]:
        """There are none."""
        return {}


_bundle = functools.lru_cache(maxsize=2)(load_bundle)


@dataclass(frozen=True)
class ControllerTask(Task):
    """A trained controller and its environment.

    Attributes:
        environment: The environment.
        directory: Of the controller's bundle.
    """

    environment: str
    directory: Path

    score = "return"
    evaluations = "episodes"

    @property
    def pipeline_helps(self) -> Sequence[str]:
        """It refits on policy wherever that is possible."""
        return ("on_policy" if "on_policy" in self.helps else "ls", "both")

    @property
    def setting(self) -> str:
        """The environment."""
        return self.environment

    def why_not(self) -> str | None:
        """Say if there is no such bundle, or it cannot be pruned."""
        if not self.directory.is_dir():
            return f"there is no {self.directory}; benchmarks/train_actors.py trains the actors"
        try:
            recipe_for(_bundle(self.directory).module())
        except PruningError as error:
            return str(error)
        return None

    def make_dense(self) -> DeployedController:
        """Return the trained controller."""
        return DeployedController(_bundle(self.directory), self.environment)

    def make_subject(self, seed: int) -> Subject:
        """Record rollouts with the trained controller, and make the data of them."""
        dense = _bundle(self.directory)
        recipe = recipe_for(dense.module())
        chosen = chosen_terms(recipe.terms, None, {})
        calibration = controller_calibration(dense, self._rollouts(seed), recipe, chosen, PruningSettings(seed=seed))
        network = recipe.network
        with torch.no_grad():
            terms = scaled_terms(chosen, network.run(network.module, calibration.fit), calibration.fit_weights)
        return Subject(network, terms, calibration, network.groups(calibration.fit), seed)

    def deploy(self, subject: Subject, module: Any) -> DeployedController:
        """Make a bundle of a pruned network."""
        manifest = _bundle(self.directory).manifest
        bundle = make_bundle(
            module,
            name="pruned",
            observation=manifest.observation,
            action=manifest.action,
            rate=manifest.rate,
            reference_observations=subject.calibration.fit["observation"].numpy(),
        )
        return DeployedController(bundle, self.environment)

    def met_by(self, subject: Subject, module: Any) -> Batch:
        """Return rows with the states that a network meets, in as many episodes as the pipeline runs at the most."""
        first = ON_POLICY_SEED + subject.seed * OBSERVATION_EPISODES
        seeds = range(first, first + OBSERVATION_EPISODES)
        met = record(self.deploy(subject, module).bundle, self.environment, seeds).observation
        return rows_like(subject.calibration.fit, met)

    def pipeline(self, subject: Subject, settings: PruningSettings) -> Made:
        """Prune the bundle as the command line does; its episodes are the same for all calibration seeds."""
        bundle, report = work.prune(
            _bundle(self.directory),
            self._rollouts(subject.seed),
            settings,
            gate=GateSettings(),
            environment=self.environment,
            progress=Progress(),
        )
        return Made(DeployedController(bundle, self.environment), report.sparsity, report.seconds)

    def _rollouts(self, seed: int) -> Rollouts:
        first = CALIBRATION_SEED + seed * CALIBRATION_EPISODES
        return record(_bundle(self.directory), self.environment, range(first, first + CALIBRATION_EPISODES))


def _shipped(name: str) -> Path:
    return share_directory() / "sim" / "controllers" / name


CONTROLLER_TASKS = (
    ControllerTask("cartpole_swingup_sac", CARTPOLE, _shipped("cartpole_swingup_sac")),
    ControllerTask(
        "cartpole_swingup_tdmpc",
        CARTPOLE,
        _shipped("cartpole_swingup_tdmpc"),
        helps=("none", "ls", "distill", "both"),  # a planner is not refitted on policy
        max_evaluations=100,
    ),
    ControllerTask("double_pendulum_sac", "InvertedDoublePendulum-v5", TRAINED / "double_pendulum_sac"),
    ControllerTask("hopper_td3", "Hopper-v5", TRAINED / "hopper_td3"),
    ControllerTask("halfcheetah_sac", "HalfCheetah-v5", TRAINED / "halfcheetah_sac"),
    ControllerTask("walker2d_ppo", "Walker2d-v5", TRAINED / "walker2d_ppo"),
)
