"""From other libraries' files to bundles, with what only the environment knows."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.bundle import Bundle, make_bundle
from nncontrol_prune.controllers.policy import load_policy
from nncontrol_prune.controllers.specs import LONGEST_NAME, Activation, Squash
from nncontrol_prune.plants.environments import (
    EnvironmentSpecs,
    PlantError,
    environment_specs,
    make_environment,
    telling,
)

if TYPE_CHECKING:
    from nncontrol_prune.controllers.modules import ControllerModule
    from nncontrol_prune.controllers.tdmpc import TdMpc

OBSERVATIONS = 2000
"""Observations met in closed loop that reference pairs are taken from."""
PLANS = 5
"""Plans that are timed; the median counts."""


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
        PlantError: There is no such environment, or it raises or observes what is no number.
    """
    from nncontrol_prune.controllers.stable_baselines3 import import_sb3

    specs = environment_specs(environment)
    module = import_sb3(file, specs.observation.size, specs.action, vecnormalize=vecnormalize, activation=activation)
    return _bundle(module, specs, name, file)


def bundle_from_state_dict(
    file: Path,
    environment: str,
    *,
    activation: Activation,
    squash: Squash = "clip",
    layers: Sequence[str] = (),
    normalizer: str | None = None,
    name: str | None = None,
) -> Bundle:
    """Import the weights of an MLP for an environment.

    Args:
        file: What `torch.save()` or safetensors wrote.
        environment: The gymnasium id it was trained for.
        activation: Of the hidden layers.
        squash: Whether its output is the action, and clipped to the limits, or goes through tanh and is scaled to them.
        layers: Names of its layers, or what comes before their numbers; found out by default.
        normalizer: Name of rsl_rl's normalization of the observations; found out by default.
        name: Of the controller; by default the file's.

    Raises:
        ImportFailedError: The file cannot be imported.
        PlantError: There is no such environment, or it raises or observes what is no number.
    """
    from nncontrol_prune.controllers.state_dicts import import_state_dict

    specs = environment_specs(environment)
    module = import_state_dict(
        file,
        specs.observation.size,
        specs.action,
        activation=activation,
        squash=squash,
        layers=layers,
        normalizer=normalizer,
    )
    return _bundle(module, specs, name, file)


def bundle_from_onnx(
    file: Path,
    environment: str,
    *,
    output: str | None = None,
    name: str | None = None,
    note: Callable[[str], None] | None = None,
) -> Bundle:
    """Import an MLP policy that is an ONNX file for an environment.

    Args:
        file: The ONNX file.
        environment: The gymnasium id of what it was trained for.
        output: Name of the output that is the action; found out by default.
        name: Of the controller; by default the file's.
        note: Called with sentences about what the file says and is not applied.

    Raises:
        ImportFailedError: The file cannot be imported, or acts otherwise than what was made of it.
        PlantError: There is no such environment, or it raises or observes what is no number.
    """
    from nncontrol_prune.controllers.checkpoints import naming
    from nncontrol_prune.controllers.onnx_policies import import_onnx

    specs = environment_specs(environment)
    policy = import_onnx(file, specs.observation.size, specs.action, output=output)
    if note is not None:
        for sentence in policy.notes:
            note(sentence)
    observations = _observations(policy.module, environment)
    with naming(file):
        policy.check(observations)
    return _bundle(policy.module, specs, name, file, observations)


def bundle_from_tdmpc2(
    file: Path,
    environment: str,
    *,
    name: str | None = None,
    planner: Mapping[str, float] | None = None,
    simplex: int = 8,
    v_min: float = -10.0,
    v_max: float = 10.0,
    log_std_min: float = -10.0,
    log_std_max: float = 2.0,
    discount: float = 0.99,
    note: Callable[[str], None] | None = None,
) -> Bundle:
    """Import a checkpoint of the official TD-MPC2 code for an environment.

    Args:
        file: The checkpoint.
        environment: The gymnasium id of what it was trained for.
        name: Of the controller; by default the file's.
        planner: Settings in which the planner differs from the official one.
        simplex: Entries of one simplex of the latent.
        v_min: First bin of reward and value, in symlog space.
        v_max: Last bin.
        log_std_min: Least logarithm of the policy's spread, where the file does not tell it.
        log_std_max: The greatest, likewise.
        discount: Of the rewards that are planned for.
        note: Called, before the work that takes long, with a sentence about a planner too slow for the environment.

    Raises:
        ImportFailedError: The file cannot be imported.
        PlantError: There is no such environment, or it raises or observes what is no number.
    """
    from nncontrol_prune.controllers.tdmpc2 import import_tdmpc2, official_planner

    specs = environment_specs(environment)
    module = import_tdmpc2(
        file,
        specs.observation.size,
        specs.action,
        planner=official_planner(specs.action.size, **(planner or {})),
        simplex=simplex,
        v_min=v_min,
        v_max=v_max,
        log_std_min=log_std_min,
        log_std_max=log_std_max,
        discount=discount,
    )
    slow = _slow_planner(module, specs)
    if slow is not None and note is not None:
        note(slow)
    return _bundle(module, specs, name, file)


def _slow_planner(module: TdMpc, specs: EnvironmentSpecs) -> str | None:
    """Return a sentence about a planner that takes longer here than the control period; None if it keeps it."""
    from nncontrol_prune.controllers.modules import export_onnx

    sizes = specs.observation.size, specs.action.size
    policy = load_policy(export_onnx(module, sizes[0]), module.architecture, *sizes)
    observation, action = np.zeros(sizes[0]), np.zeros(sizes[1])
    seconds = []
    for _ in range(PLANS):
        start = time.perf_counter()
        policy.act(observation, action)
        seconds.append(time.perf_counter() - start)
    median, period = statistics.median(seconds), 1.0 / specs.rate
    if median <= period:
        return None
    planner = module.architecture.planner
    return (
        f"a plan takes {1e3 * median:.3g} ms on this machine, the control period is {1e3 * period:.3g} ms, and the "
        f"import makes hundreds of plans; have a smaller planner with --samples (now {planner.samples}), "
        f"--iterations ({planner.iterations}), --policy-samples ({planner.policy_samples}) or "
        f"--horizon ({planner.horizon})"
    )


def _bundle(
    module: ControllerModule,
    specs: EnvironmentSpecs,
    name: str | None,
    file: Path,
    observations: NDArray[np.float64] | None = None,
) -> Bundle:
    """Make the bundle, with reference pairs of the observations that the controller meets in its environment."""
    return make_bundle(
        module,
        name=name or _name_of(file),
        observation=specs.observation,
        action=specs.action,
        rate=specs.rate,
        environment=specs.environment,
        reference_observations=_observations(module, specs.environment) if observations is None else observations,
    )


def _name_of(file: Path) -> str:
    """Return a name for what a file holds; files may be called by numbers alone, bundles may not."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", file.stem)
    return (name if name[0].isalpha() else f"controller_{name}")[:LONGEST_NAME]


def _observations(module: ControllerModule, environment: str) -> NDArray[np.float64]:
    """Collect the observations that a controller meets in its environment; a planner's policy acts in its stead."""
    import torch

    from nncontrol_prune.controllers.tdmpc import TdMpc

    env = make_environment(environment)
    found = list[NDArray[np.float64]]()
    try:
        with telling(environment, "where an episode starts"):
            observation, _ = env.reset(seed=0)
        for number in range(OBSERVATIONS):
            if not np.isfinite(observation).all():
                raise PlantError(f"{environment} observes NaN or infinity after {number} steps of this controller")
            found.append(observation)
            row = torch.from_numpy(observation[None].astype(np.float32))
            with torch.no_grad():
                # A plan may take a second.
                action = module.output(module.act(module.encode(row))) if isinstance(module, TdMpc) else module(row)
            with telling(environment, f"after {number} steps of this controller"):
                observation, _, terminated, truncated, _ = env.step(action[0].numpy())
                if terminated or truncated:
                    observation, _ = env.reset()
    finally:
        env.close()
    return np.array(found)
