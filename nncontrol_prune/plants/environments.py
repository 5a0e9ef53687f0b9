"""Gymnasium MuJoCo environments as plants: made by id, with the specs a controller must match."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import inspect
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.registration import load_env_creator
from pydantic import ValidationError

from nncontrol_prune.controllers.observations import ObservationSpec, ObservationTerm, term_difference
from nncontrol_prune.controllers.specs import ActionSpec, Manifest, problem_of
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.joints import scalar_joints
from nncontrol_prune.plants.observation_terms import terms_of
from nncontrol_prune.plants.wrappers import opaque_wrapper, wrappers_of

RATE_TOLERANCE = 1e-6

_log = logging.getLogger(__name__)


def _log_mujoco_warning(message: str) -> None:
    """Keep the notes about gymnasium's own models from users, who can do nothing about them."""
    level = logging.DEBUG if "deprecated" in message else logging.WARNING
    _log.log(level, "MuJoCo: %s", message)


mujoco.set_mju_user_warning(_log_mujoco_warning)

if CARTPOLE not in gymnasium.registry:
    gymnasium.register(
        id=CARTPOLE,
        entry_point="nncontrol_prune.plants.cartpole:CartPoleSwingUpEnv",
        max_episode_steps=1000,
    )


class PlantError(Exception):
    """An environment cannot be used as asked, or does not fit the controller; the message says why."""


@dataclass(frozen=True)
class EnvironmentSpecs:
    """What an environment asks of its controller.

    Attributes:
        environment: Its gymnasium id.
        observation: What it gives out.
        action: What it takes.
        period: Seconds of the plant that a step takes.
        states: nq + nv.
        wrapper: Name of a wrapper that may change what the MuJoCo class inside observes or does; None if there is none.
    """

    environment: str
    observation: ObservationSpec
    action: ActionSpec
    period: float
    states: int
    wrapper: str | None

    @property
    def rate(self) -> float:
        """Control rate in Hz."""
        return 1.0 / self.period


@contextlib.contextmanager
def telling(environment: str, when: str = "") -> Iterator[None]:
    """Within the block, turn whatever somebody's environment, or a part of it, raises into a sentence, and say when.

    Raises:
        PlantError: It raised something.
    """
    try:
        yield
    except Exception as error:
        raise PlantError(f"{environment} raised {type(error).__name__}{when and f' {when}'}: {error}") from error


def make_environment(environment: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    """Make a gymnasium MuJoCo environment.

    Args:
        environment: Its gymnasium id.
        kwargs: Passed on to it, such as `render_mode`.

    Raises:
        PlantError: There is no such environment, it cannot be made, or it is not a MuJoCo one.
    """
    try:
        env = gymnasium.make(environment, **kwargs)
    except Exception as error:  # whatever somebody's environment raises
        module = _missing_module(environment, error)
        if module is not None:
            raise PlantError(
                f"there is no module {module} for {environment}; install its package, or put its directory into "
                "PYTHONPATH"
            ) from error
        if not _is_unknown(error):
            raise PlantError(f"{environment} cannot be made, {type(error).__name__}: {error}") from error
        known = sorted(gymnasium.registry)
        near = difflib.get_close_matches(environment, known, n=3, cutoff=0.5) or [CARTPOLE, "Hopper-v5"]
        raise PlantError(f"there is no environment {environment!r}; did you mean {' or '.join(near)}?") from error
    if not isinstance(env.unwrapped, MujocoEnv):
        env.close()
        raise PlantError(f"{environment} is not a MuJoCo environment; only those can be run as a plant")
    return env


def _missing_module(environment: str, error: Exception) -> str | None:
    """Return an environment's own module if an error says that it is missing, and not one that it imports."""
    module = environment.partition(":")[0]
    cause = error.__cause__ or error  # gymnasium raises another one of it
    missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
    return module if missing is not None and (module == missing or module.startswith(f"{missing}.")) else None


def _is_unknown(error: Exception) -> bool:
    """Return whether an error says that there is no such environment."""
    # Unknown ids, namespaces and versions have errors of their own, malformed ids gymnasium's general one.
    return isinstance(error, gymnasium.error.UnregisteredEnv) or type(error) is gymnasium.error.Error


@functools.cache
def environment_digest(environment: str) -> str:
    """Return a digest of what an environment does: its registration, its compiled model and the code of its classes.

    Raises:
        PlantError: There is no such environment, it cannot be made, or it is not a MuJoCo one.
    """
    env = make_environment(environment)
    try:
        base: Any = env.unwrapped
        spec = env.spec
        assert spec is not None
        registered = (gymnasium.__version__, spec.max_episode_steps, spec.kwargs, spec.additional_wrappers)
        digest = hashlib.sha256(repr(registered).encode())
        model = np.empty(mujoco.mj_sizeModel(base.model), np.uint8)
        mujoco.mj_saveModel(base.model, None, model)
        digest.update(model.tobytes())
        assert spec.entry_point is not None
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
        for part in (creator, *(kind for layer in (*wrappers_of(env), base) for kind in type(layer).__mro__)):
            with contextlib.suppress(TypeError, OSError):  # built in, or typed at a prompt: it has no file
                digest.update(Path(inspect.getfile(part)).read_bytes())
        return digest.hexdigest()
    finally:
        env.close()


def environment_specs(environment: str) -> EnvironmentSpecs:
    """Return the observation, action and control rate of an environment.

    Raises:
        PlantError: There is no such environment, it is not a MuJoCo one, raises, observes or takes something else
            than a vector, or observes something else than it says in `observation_terms`, or says in `action_term` what
            is no conversion of its actions.
    """
    env = make_environment(environment)
    try:
        base: Any = env.unwrapped
        wrapper = opaque_wrapper(env)
        return EnvironmentSpecs(
            environment=environment,
            observation=_observation_spec(environment, env, opaque=wrapper is not None),
            action=_action_spec(environment, env, opaque=wrapper is not None),
            period=_period(environment, env),
            states=base.model.nq + base.model.nv,
            wrapper=wrapper,
        )
    finally:
        env.close()


def _period(environment: str, env: gymnasium.Env[Any, Any]) -> float:
    """Return the seconds that a step takes, as measured: a wrapper, or the class itself, may repeat an action."""
    base: Any = env.unwrapped
    space: Any = env.action_space
    with telling(environment, "in its first step"):
        env.reset(seed=0)
        begin = base.data.time
        env.step(np.zeros_like(space.low).clip(space.low, space.high))
    timestep: float = base.model.opt.timestep
    steps = round((base.data.time - begin) / timestep)
    if steps < 1:
        raise PlantError(f"a step of {environment} takes no time, so it has no control rate")
    return timestep * steps


def _vector_of(environment: str, space: Any, what: str) -> gymnasium.spaces.Box:
    """Return a space that is one of vectors.

    Raises:
        PlantError: It is not.
    """
    if not (isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1):
        raise PlantError(
            f"{environment} {what} {type(space).__name__}{space.shape or ''}, and a controller has one vector; "
            "a wrapper such as gymnasium.wrappers.FlattenObservation, where the environment is registered, makes it one"
        )
    return space


def _action_spec(environment: str, env: gymnasium.Env[Any, Any], *, opaque: bool) -> ActionSpec:
    base: Any = env.unwrapped
    box = _vector_of(environment, env.action_space, "takes actions in a")
    if not (np.isfinite(box.low).all() and np.isfinite(box.high).all()):
        raise PlantError(f"the actions of {environment} have no limits, and a command has to have some")
    joints = _actuated_joints(base.model)
    if len(joints) != len(box.low):
        joints = tuple(f"action_{index}" for index in range(len(box.low)))
    limits = {"lower": tuple(map(float, box.low)), "upper": tuple(map(float, box.high))}
    said = None if opaque else _said(environment, base, "action_term")
    if said is not None:
        return _action_as_said(environment, said, joints=joints, **limits)
    unit = "" if opaque or not _are_forces(base.model, box) else "N or N m"
    return ActionSpec(joints=joints, unit=unit, **limits)


def _said(environment: str, base: Any, name: str) -> Any:
    """Return an attribute by which an environment says something; None if it has none."""
    with telling(f"{name} of {environment}"):
        return getattr(base, name, None)


def _action_as_said(environment: str, said: Any, **others: Any) -> ActionSpec:
    """Return the spec of an action, with what an environment says in `action_term` of the commands it stands for."""
    allowed = ("scale", "offset", "unit")
    if not isinstance(said, Mapping) or not set(said) <= set(allowed):
        raise PlantError(f"action_term of {environment} is {said!r}; it needs to be a mapping of {', '.join(allowed)}")
    try:
        return ActionSpec(**others, **said)
    except ValidationError as error:
        raise PlantError(f"action_term of {environment}: {problem_of(error)}") from error


def _are_forces(model: mujoco.MjModel, box: gymnasium.spaces.Box) -> bool:
    """Return whether actions are the forces or torques of actuators: motors without a gear, given them as they are."""
    return (
        np.array_equal(box.low, model.actuator_ctrlrange[:, 0])
        and np.array_equal(box.high, model.actuator_ctrlrange[:, 1])
        and bool((model.actuator_dyntype == mujoco.mjtDyn.mjDYN_NONE).all())
        and bool((model.actuator_gaintype == mujoco.mjtGain.mjGAIN_FIXED).all())
        and bool((model.actuator_biastype == mujoco.mjtBias.mjBIAS_NONE).all())
        and bool((model.actuator_gainprm[:, 0] == 1.0).all() and (model.actuator_gear[:, 0] == 1.0).all())
    )


def check_controller(manifest: Manifest, specs: EnvironmentSpecs) -> None:
    """Check that a controller fits an environment.

    Raises:
        PlantError: It does not; the message names the first thing that differs.
    """
    who = f"controller {manifest.name} does not fit {specs.environment}"
    if manifest.observation.size != specs.observation.size:
        raise PlantError(
            f"{who}: it observes {manifest.observation.size} values, the environment gives {specs.observation.size}"
        )
    for ours, theirs in zip(manifest.observation.terms, specs.observation.terms, strict=False):
        if (ours.quantity, ours.joints, ours.size) != (theirs.quantity, theirs.joints, theirs.size):
            raise PlantError(f"{who}: its observation term {ours.name!r} is the environment's {theirs.name!r}")
        if (ours.scale, ours.offset, ours.history) != (theirs.scale, theirs.offset, theirs.history):
            as_theirs = theirs.model_copy(update={"name": ours.name, "unit": ours.unit})
            raise PlantError(f"{who}: its observation term {ours.name!r} has {term_difference(ours, as_theirs)}")
    if manifest.action.joints != specs.action.joints:
        raise PlantError(
            f"{who}: it commands joints {manifest.action.joints}, the environment has {specs.action.joints}"
        )
    if (manifest.action.scale, manifest.action.offset) != (specs.action.scale, specs.action.offset):
        raise PlantError(f"{who}: its {manifest.action.conversion}, the environment's {specs.action.conversion}")
    check_rate(manifest.rate, specs)


def check_rate(rate: float, specs: EnvironmentSpecs) -> None:
    """Check that a rate is the environment's control rate.

    Raises:
        PlantError: It is not.
    """
    if abs(rate - specs.rate) > RATE_TOLERANCE * specs.rate:
        raise PlantError(f"rate {rate:g} Hz is not the control rate of {specs.environment}, which is {specs.rate:g} Hz")


def _actuated_joints(model: mujoco.MjModel) -> tuple[str, ...]:
    """Return the joint of each actuator, or the actuator's own name where it drives no single joint."""
    names = []
    for index in range(model.nu):
        if model.actuator_trntype[index] == mujoco.mjtTrn.mjTRN_JOINT:
            names.append(model.joint(model.actuator_trnid[index, 0]).name)
        else:
            names.append(model.actuator(index).name or f"actuator_{index}")
    return tuple(names)


def _observation_terms(environment: str, env: gymnasium.Env[Any, Any], size: int) -> tuple[ObservationTerm, ...] | None:
    """Return what an environment says that it observes; None if it says nothing."""
    base: Any = env.unwrapped
    try:
        given = _said(environment, base, "observation_terms")
        if given is None:
            return None
        joints = [joint.name for joint in scalar_joints(base.model)]
        action_size = len(_vector_of(environment, env.action_space, "takes actions in a").low)
        return terms_of(given, size=size, joints=joints, action_size=action_size)
    except ValueError as error:
        raise PlantError(f"observation_terms of {environment}: {error}") from error


def _observation_spec(environment: str, env: gymnasium.Env[Any, Any], *, opaque: bool) -> ObservationSpec:
    base: Any = env.unwrapped
    size = int(_vector_of(environment, env.observation_space, "observes a").shape[0])
    said = None if opaque else _observation_terms(environment, env, size)
    if said is not None:
        return ObservationSpec(terms=said)
    structure: dict[str, int] = {} if opaque else getattr(base, "observation_structure", None) or {}
    positions, velocities = structure.get("qpos", 0), structure.get("qvel", 0)
    model = base.model
    all_scalar = model.nq == model.nv == model.njnt
    if not (all_scalar and positions and velocities and positions + velocities == size):
        return ObservationSpec(terms=(ObservationTerm(name="observation", size=size),))
    joints = tuple(model.joint(index).name for index in range(model.njnt))
    return ObservationSpec(
        terms=(
            ObservationTerm(
                name="joint_positions", size=positions, quantity="position", joints=joints[-positions:], unit="rad or m"
            ),
            ObservationTerm(
                name="joint_velocities",
                size=velocities,
                quantity="velocity",
                joints=joints[-velocities:],
                unit="rad/s or m/s",
            ),
        )
    )
