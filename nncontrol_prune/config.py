"""Configuration: one YAML file a setup, in ROS 2 parameter-file form, read by nodes and by the command line alike."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from nncontrol_prune.controllers.specs import Manifest, Seed, Spec, problem_of
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.resources import share_directory
from nncontrol_prune.runtime.scheduling import DEFAULT_PRIORITY
from nncontrol_prune.validation.settings import GateSettings

RATE_TOLERANCE = 1e-6
"""Relative."""

Section = Literal["mujoco_sim", "nn_controller", "pruning_service"]
Model = TypeVar("Model", bound=Spec)


class ConfigError(Exception):
    """A configuration is wrong; the message names the key, the value and what is allowed."""


class PlantConfig(Spec):
    """Section `mujoco_sim`: the simulated plant."""

    env: str = "nncontrol_prune/CartPoleSwingUp-v0"
    """Gymnasium MuJoCo id."""
    headless: bool = True
    """Whether to do without a window."""
    real_time_factor: Annotated[FiniteFloat, Field(ge=0.01, le=100.0)] = 1.0
    """Plant seconds per second."""
    lockstep: bool = False
    """Whether to wait for each state's command: runs with the same seed are then the same."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the first episode."""
    realtime_priority: Annotated[int, Field(ge=0, le=99)] = DEFAULT_PRIORITY
    """SCHED_FIFO priority of the plant, where the operating system grants it; 0 for none."""


class ControllerConfig(Spec):
    """Section `nn_controller`: the control loop."""

    controller: str = ""
    """A path, `name@digest`, or the name of a shipped controller; empty for what the store has as current."""
    default_controller: str = ""
    """Likewise: what runs where `controller` is empty and the store has no current one; `sim` always begins with it."""
    rate: Annotated[FiniteFloat, Field(gt=0.0, le=10_000.0)] | None = None
    """Control rate in Hz; it is the controller's, so another value is an error."""
    record: bool = True
    """Whether to record rollouts."""
    bags: str = ""
    """Directory that recordings go to, each in one of its own; empty for `bags` in the store (ROS 2)."""
    store: str = ""
    """The bundle store; empty for $NNCONTROL_PRUNE_STORE or, without that, ~/.ros/nncontrol_prune (ROS 2)."""
    autostart: bool = True
    """Whether to configure and activate at once, without waiting for a lifecycle manager (ROS 2)."""
    drive: Literal["joint_states", "timer"] = "joint_states"
    """What starts a tick: each new joint state, or a timer at the controller's rate, for a robot whose joint states
    come at another one (ROS 2)."""
    safe_command: tuple[FiniteFloat, ...] = ()
    """The action that is taken where the controller's cannot be, a value a joint; empty for zero."""
    observation_limit: Annotated[FiniteFloat, Field(gt=0.0, le=1e12)] = 1e6
    """Magnitude past which an entry of the observation is as wrong as NaN."""
    command_controller: str = ""
    """Node of the ros2_control controller that takes the commands, whose `joints` have to be the bundle's; empty not to
    check (ROS 2)."""
    simulator: str = "mujoco_sim"
    """Node of the simulator whose steps are recorded too; empty on a robot (ROS 2)."""
    pruning_service: str = "pruning_service"
    """Node of the pruning service that may send bundles; empty for none (ROS 2)."""
    publish_transitions: bool = True
    """Whether to publish ~/transition, for `ros2 bag record` (ROS 2)."""
    probation: Annotated[FiniteFloat, Field(ge=0.0, le=600.0)] = 2.0
    """Seconds that a new controller must run without a fault before it is committed."""
    allow_offline: bool = False
    """Whether a pruned controller may run that was accepted on rollouts alone, without a closed loop."""
    realtime_priority: Annotated[int, Field(ge=0, le=99)] = DEFAULT_PRIORITY
    """SCHED_FIFO priority of the loop, where the operating system grants it; 0 for none."""
    observation_timeout: Annotated[FiniteFloat, Field(gt=0.0, le=60.0)] = 0.25
    """Age of an observation in seconds past which the safe command is sent."""

    def check_rate(self, manifest: Manifest) -> None:
        """Check that a controller runs at the rate that is asked for, if one is.

        Raises:
            ConfigError: It does not.
        """
        if self.rate is not None and abs(self.rate - manifest.rate) > RATE_TOLERANCE * manifest.rate:
            raise ConfigError(f"rate = {self.rate:g} Hz: controller {manifest.name} runs at {manifest.rate:g} Hz")


class PruningServiceConfig(PruningSettings, GateSettings):
    """Section `pruning_service`: what to prune to, and what the gate asks."""

    seed: Seed = 0
    """Of everything in pruning that is left to chance."""
    auto_deploy: bool = False
    """Whether an accepted controller is deployed at once."""
    controller_node: str = "nn_controller"
    """Node whose controller is pruned, and that accepted controllers are deployed to (ROS 2)."""
    rollouts: str = ""
    """Bags to prune from, separated by colons: directories, MCAP files or folders of bags; empty for those that the
    controller node records (ROS 2)."""
    env: str = ""
    """Gymnasium MuJoCo id that candidates are validated in; empty for what the controller was made for (ROS 2 and
    the commands `prune` and `validate`)."""
    candidate: str = ""
    """`name@digest` of what ~/validate validates; empty for the last job's (ROS 2)."""
    store: str = ""
    """The bundle store; empty for $NNCONTROL_PRUNE_STORE or, without that, ~/.ros/nncontrol_prune (ROS 2)."""

    @property
    def gate(self) -> GateSettings:
        """What the gate asks."""
        return GateSettings(**{name: getattr(self, name) for name in GateSettings.model_fields})

    @property
    def pruning(self) -> PruningSettings:
        """What to prune to."""
        return PruningSettings(**{name: getattr(self, name) for name in PruningSettings.model_fields})


class Config(Spec):
    """A whole setup."""

    mujoco_sim: PlantConfig = PlantConfig()
    nn_controller: ControllerConfig = ControllerConfig()
    pruning_service: PruningServiceConfig = PruningServiceConfig()

    def override(self, section: Section, **values: Any) -> Config:
        """Return a copy with values of one section replaced; those that are None are left alone.

        Raises:
            ConfigError: A value is not allowed.
        """
        given = {key: value for key, value in values.items() if value is not None}
        current: Spec = getattr(self, section)
        model = validated(type(current), {**current.model_dump(), **given}, section)
        return self.model_copy(update={section: model})


def load_config(path: Path | None = None) -> Config:
    """Read a configuration file; by default the one that ships.

    Sections of nodes that are not ours are left to their nodes; what a section says to all nodes (`/**`) holds for ours
    unless their own say otherwise.

    Raises:
        ConfigError: The file is missing, malformed or without a section of ours, or a key or value in it is not
            allowed.
    """
    path = path or share_directory() / "config" / "sim.yaml"
    try:
        raw = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the others as of a date that there is not
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw or {}, dict):
        raise ConfigError(f"{path} is not a ROS 2 parameter file: it holds no sections")
    everybodys, given = _parameters(path, raw or {})
    sections: dict[str, Spec] = {}
    for section, field in Config.model_fields.items():
        model: Any = field.annotation
        # What is said to all nodes may be for others alone: each takes the keys that it knows.
        common = {key: value for key, value in everybodys.items() if key in model.model_fields}
        if common or section in given:
            sections[section] = validated(model, {**common, **given.get(section, {})}, f"{path}: {section}")
    return Config.model_validate(sections)


def _parameters(path: Path, raw: dict[Any, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return what a file says to all nodes, and what it says to ours by section.

    Raises:
        ConfigError: It says nothing to ours, or a section is malformed or mistyped.
    """
    everybodys: dict[str, Any] = {}
    given: dict[str, dict[str, Any]] = {}
    for key, value in raw.items():
        section = str(key).rpartition("/")[2]
        everybody = section in ("*", "**")
        if section not in Config.model_fields and not everybody:
            _check_not_mistyped(path, str(key), section)
            continue
        if not isinstance(value, dict) or set(value) != {"ros__parameters"}:
            raise ConfigError(f"{path}: section {key} must hold ros__parameters and nothing else")
        parameters = value["ros__parameters"] or {}
        if not isinstance(parameters, dict):
            raise ConfigError(f"{path}: ros__parameters of section {key} must hold keys with values")
        if everybody:
            everybodys |= parameters
        else:
            given[section] = parameters
    if not given and not everybodys:
        allowed = ", ".join(f"/**/{section}" for section in Config.model_fields)
        raise ConfigError(
            f"{path} holds none of our sections; write what you set below ros__parameters of one of {allowed}"
        )
    return everybodys, given


def _check_not_mistyped(path: Path, key: str, section: str) -> None:
    """Check that a section which is not ours is not meant to be.

    Raises:
        ConfigError: Its name is all but one of ours.
    """
    # Close enough for a slip of the pen and too far for another node's name, such as my_controller.
    near = difflib.get_close_matches(section.lower(), Config.model_fields, n=1, cutoff=0.88)
    if near and section.rstrip("_0123456789") != near[0]:
        raise ConfigError(f"{path}: there is no section {key}; did you mean {key.removesuffix(section)}{near[0]}?")


def validated(model: type[Model], values: dict[str, Any], where: str) -> Model:
    """Validate values against a model.

    Raises:
        ConfigError: The first thing wrong, as a sentence that names the key, the value and what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] == "extra_forbidden":
            *above, last = problem["loc"]
            allowed = sorted(_keys(model, above))
            near = difflib.get_close_matches(str(last), allowed, n=1)
            hint = (
                f"did you mean {'.'.join(map(str, [*above, *near]))}?" if near else f"allowed are {', '.join(allowed)}"
            )
            key = ".".join(map(str, problem["loc"]))
            raise ConfigError(f"{where}: there is no key {key!r}; {hint}") from error
        raise ConfigError(f"{where}: {problem_of(error)}") from error


def is_model(annotation: Any) -> bool:
    """Return whether an annotation is a class of values with names, as a `Spec` is."""
    # In Python 3.10 dict[str, int] is a type, and no class.
    return get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _keys(annotation: Any, above: Sequence[int | str]) -> set[str]:
    """Return the keys that are allowed below those above them; in a type, or in what it is a container of."""
    if not is_model(annotation):
        # Of a container, what holds its elements takes an index or a key; all else (unions, notes on a type) does not.
        rest = above[1:] if get_origin(annotation) in (dict, list, tuple) else above
        return set().union(*(_keys(inner, rest) for inner in get_args(annotation)))
    if not above:
        return {*annotation.model_fields}
    field = annotation.model_fields.get(str(above[0]))
    return set() if field is None else _keys(field.annotation, above[1:])
