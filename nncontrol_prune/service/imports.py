"""From other libraries' files to bundles, with what only the environment knows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.bundle import Bundle, make_bundle
from nncontrol_prune.controllers.specs import Activation
from nncontrol_prune.plants.environments import environment_specs, make_environment

if TYPE_CHECKING:
    from nncontrol_prune.controllers.modules import ControllerModule

OBSERVATIONS = 2000
"""Observations met in closed loop that reference pairs are taken from."""


def bundle_from_sb3(
    file: Path,
    environment: str,
    *,
    name: str | None = None,
    vecnormalize: Path | None = None,
    activation: Activation | None = None,
) -> Bundle:
    """Import a Stable-Baselines3 zip for an environment.

    Args:
        file: The zip.
        environment: The gymnasium id it was trained for.
        name: Of the controller; by default the file's.
        vecnormalize: File of the VecNormalize statistics it was trained with.
        activation: Of the hidden layers, where the file does not say.

    Raises:
        ImportFailedError: The file cannot be imported.
        PlantError: There is no such environment.
    """
    from nncontrol_prune.controllers.stable_baselines3 import import_sb3

    specs = environment_specs(environment)
    actor = import_sb3(file, specs.observation.size, specs.action, vecnormalize=vecnormalize, activation=activation)
    return make_bundle(
        actor.module,
        name=name or re.sub(r"[^A-Za-z0-9_.-]", "_", file.stem),
        observation=specs.observation,
        action=specs.action,
        rate=specs.rate,
        environment=environment,
        reference_observations=_observations(actor.module, environment),
    )


def _observations(module: ControllerModule, environment: str) -> NDArray[np.float64]:
    """Collect the observations that a controller meets in its environment."""
    import torch

    from nncontrol_prune.controllers.modules import first_actions

    env = make_environment(environment)
    found = []
    observation, _ = env.reset(seed=0)
    for _ in range(OBSERVATIONS):
        found.append(observation)
        action = first_actions(module, torch.from_numpy(observation[None].astype(np.float32)))[0].numpy()
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
    env.close()
    return np.array(found)
