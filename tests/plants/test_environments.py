from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import gymnasium
import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.observations import ObservationSpec, ObservationTerm
from nncontrol_prune.controllers.specs import ActionSpec
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.environments import (
    PlantError,
    check_controller,
    check_rate,
    environment_digest,
    environment_specs,
)


@pytest.mark.parametrize(
    ("environment", "rate", "observation", "action"),
    [
        (CARTPOLE, 100.0, 5, 1),
        ("Hopper-v5", 125.0, 11, 3),
        ("HalfCheetah-v5", 20.0, 17, 6),
        ("Walker2d-v5", 125.0, 17, 6),
    ],
)
def test_specs_are_the_environments(environment: str, rate: float, observation: int, action: int) -> None:
    specs = environment_specs(environment)
    assert specs.rate == pytest.approx(rate)
    assert (specs.observation.size, specs.action.size) == (observation, action)


def test_joints_are_named_in_observation_and_action_order() -> None:
    specs = environment_specs("Hopper-v5")
    assert specs.action.joints == ("thigh_joint", "leg_joint", "foot_joint")
    assert specs.observation.terms[0].joints == ("rootz", "rooty", "thigh_joint", "leg_joint", "foot_joint")


@pytest.mark.parametrize(
    ("environment", "unit"), [(CARTPOLE, "N or N m"), ("Pusher-v5", "N or N m"), ("Hopper-v5", "")]
)
def test_commands_have_a_unit_where_motors_without_gears_take_them(environment: str, unit: str) -> None:
    assert environment_specs(environment).action.unit == unit


def test_module_that_is_not_there_is_named() -> None:
    with pytest.raises(PlantError, match=r"^there is no module nope\.env for nope\.env:Robot-v0; install"):
        environment_specs("nope.env:Robot-v0")


def test_unknown_environment_suggests_known_ones() -> None:
    with pytest.raises(PlantError, match="did you mean .*Hopper-v5"):
        environment_specs("Hoper-v5")


@pytest.mark.parametrize("environment", ["", "no/such/thing", "nope-v1", "CartPoleSwingUp-v0", "other_ns/Hopper-v5"])
def test_malformed_environment_is_refused(environment: str) -> None:
    with pytest.raises(PlantError, match="no environment"):
        environment_specs(environment)


ROBOT = """
import os

import gymnasium
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv

class MyRobotEnv(InvertedPendulumEnv):
    def __init__(self, **kwargs):
        {first}
        super().__init__(**kwargs)
        {then}

gymnasium.register(id="MyRobot-v0", entry_point=MyRobotEnv, {options})
"""


@pytest.fixture
def write_robot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that writes a module of somebody's own and returns the id of the environment in it."""
    monkeypatch.syspath_prepend(tmp_path)
    count = 0

    def write(first: str = "pass", then: str = "pass", options: str = "max_episode_steps=100") -> str:
        nonlocal count
        count += 1  # Python imports each module once
        gymnasium.registry.pop("MyRobot-v0", None)
        monkeypatch.delitem(sys.modules, f"robot_{count}", raising=False)
        (tmp_path / f"robot_{count}.py").write_text(ROBOT.format(first=first, then=then, options=options))
        importlib.invalidate_caches()
        environment_digest.cache_clear()
        return f"robot_{count}:MyRobot-v0"

    yield write
    gymnasium.registry.pop("MyRobot-v0", None)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("raise ValueError('XML Error')", "robot_1:MyRobot-v0 cannot be made, ValueError: XML Error"),
        ("import not_there", "robot_1:MyRobot-v0 cannot be made, ModuleNotFoundError: No module named 'not_there'"),
    ],
)
def test_environment_that_cannot_be_made_says_why(write_robot: Callable[..., str], first: str, message: str) -> None:
    with pytest.raises(PlantError, match=f"^{message}$"):
        environment_specs(write_robot(first))


def test_digest_is_of_all_that_an_environment_does(
    write_robot: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {
        "then": "self.model.body_mass[1] *= float(os.environ.get('ROBOT_MASS', 1))",
        "options": "max_episode_steps=int(os.environ.get('ROBOT_STEPS', 100)), "
        "kwargs={'frame_skip': int(os.environ.get('ROBOT_FRAMES', 2))}",
    }
    same = environment_digest(write_robot(**told))
    assert environment_digest(write_robot(**told)) == same
    found = {same, environment_digest(write_robot(**told, first="'what it does may be another thing'"))}
    for name, value in (("ROBOT_MASS", "1.1"), ("ROBOT_STEPS", "50"), ("ROBOT_FRAMES", "4")):  # with the same code
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            found.add(environment_digest(write_robot(**told)))
    assert len(found) == 5


def test_digest_is_of_the_wrappers_too(write_robot: Callable[..., str], tmp_path: Path) -> None:
    def digest(share: float) -> str:
        environment = write_robot(options="max_episode_steps=100")
        module = tmp_path / f"{environment.partition(':')[0]}.py"
        wrapper = tmp_path / "halved.py"
        wrapper.write_text(
            "import gymnasium\n\n\nclass Halved(gymnasium.RewardWrapper):\n"
            f"    def reward(self, reward):\n        return {share} * reward\n"
        )
        text = module.read_text().replace("entry_point=MyRobotEnv", "entry_point=lambda **k: Halved(MyRobotEnv(**k))")
        module.write_text(f"from halved import Halved\n{text}")
        sys.modules.pop("halved", None)
        return environment_digest(environment)

    assert digest(0.5) == digest(0.5) != digest(2.0)


def test_environment_without_mujoco_is_refused() -> None:
    with pytest.raises(PlantError, match="not a MuJoCo environment"):
        environment_specs("CartPole-v1")


def test_other_rate_is_refused_naming_both() -> None:
    with pytest.raises(PlantError, match=r"50 Hz .* 100 Hz"):
        check_rate(50.0, environment_specs(CARTPOLE))


def test_first_difference_to_the_controller_is_named(small_bundle: Bundle) -> None:
    manifest, specs = small_bundle.manifest, environment_specs(CARTPOLE)
    check_controller(manifest, specs)
    smaller = manifest.model_copy(update={"observation": ObservationSpec(terms=(ObservationTerm(name="a", size=4),))})
    with pytest.raises(PlantError, match="observes 4 values, the environment gives 5"):
        check_controller(smaller, specs)
    swapped = ObservationSpec(terms=(*manifest.observation.terms[:3], *reversed(manifest.observation.terms[3:])))
    with pytest.raises(PlantError, match="'theta_dot' is the environment's 'x_dot'"):
        check_controller(manifest.model_copy(update={"observation": swapped}), specs)
    other = ActionSpec(joints=("hinge",), lower=(-10.0,), upper=(10.0,))
    with pytest.raises(PlantError, match="hinge"):
        check_controller(manifest.model_copy(update={"action": other}), specs)
    with pytest.raises(PlantError, match="50 Hz"):
        check_controller(manifest.model_copy(update={"rate": 50.0}), specs)
