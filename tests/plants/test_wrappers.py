"""Environments with wrappers inside, as people register their own: what is said of them has to be of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from gymnasium.spaces import Box, Dict

from nncontrol_prune.plants.environments import PlantError, environment_specs, make_environment
from nncontrol_prune.plants.live import LivePlant
from nncontrol_prune.plants.state_space import StateSpacePlant
from nncontrol_prune.plants.tasks import StartBox, Task
from nncontrol_prune.plants.wrappers import opaque_wrapper
from nncontrol_prune.validation.evaluation import check_environment


class Flip(gymnasium.ObservationWrapper[Any, Any, Any]):
    def observation(self, observation: Any) -> Any:
        return -observation


class FewerEntries(gymnasium.ObservationWrapper[Any, Any, Any]):
    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.observation_space = Box(-np.inf, np.inf, (3,), np.float64)

    def observation(self, observation: Any) -> Any:
        return observation[[0, 1, 3]]


class Halved(gymnasium.RewardWrapper[Any, Any]):
    def reward(self, reward: Any) -> Any:
        return reward / 2


class HalvedAtStep(Halved):
    def step(self, action: Any) -> Any:
        return self.env.step(action / 2)


class Repeated(gymnasium.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        for _ in range(3):
            self.env.step(action)
        return self.env.step(action)


class Twice(InvertedPendulumEnv):
    def step(self, action: Any) -> Any:
        super().step(action)
        return super().step(action)


class Frozen(InvertedPendulumEnv):
    def do_simulation(self, ctrl: Any, n_frames: int) -> None:
        pass


class HalfAsStrong(InvertedPendulumEnv):
    def step(self, action: Any) -> Any:
        return super().step(action / 2)


class Broken(InvertedPendulumEnv):
    def step(self, action: Any) -> Any:
        raise ValueError("no torque")


class Commanded(InvertedPendulumEnv):
    """Observes a command that each episode draws anew."""

    def reset_model(self) -> Any:
        self.command = self.np_random.normal()
        return super().reset_model()

    def _get_obs(self) -> Any:
        return super()._get_obs() + getattr(self, "command", 0.0)


class Delayed(InvertedPendulumEnv):
    """Does what it was told a step before."""

    before = np.zeros(1)

    def step(self, action: Any) -> Any:
        self.before, delayed = np.array(action), self.before
        return super().step(delayed)


class InADict(InvertedPendulumEnv):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.observation_space = Dict(state=Box(-np.inf, np.inf, (4,), np.float64))


class Unlimited(InvertedPendulumEnv):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.action_space = Box(-np.inf, np.inf, (1,), np.float32)


@pytest.fixture
def registered() -> Iterator[Callable[[Callable[..., Any]], str]]:
    """Return a function that registers what makes an environment, and returns its id."""

    def register(creator: Callable[..., Any]) -> str:
        gymnasium.registry.pop("Wrapped-v0", None)
        gymnasium.register(id="Wrapped-v0", entry_point=creator, max_episode_steps=100)
        return "Wrapped-v0"

    yield register
    gymnasium.registry.pop("Wrapped-v0", None)


@pytest.mark.parametrize(
    ("creator", "name"),
    [
        (InvertedPendulumEnv, None),
        (lambda **k: Halved(InvertedPendulumEnv(**k)), None),
        (lambda **k: gymnasium.wrappers.RecordEpisodeStatistics(InvertedPendulumEnv(**k)), None),
        (lambda **k: HalvedAtStep(InvertedPendulumEnv(**k)), "HalvedAtStep"),
        (lambda **k: Halved(Flip(InvertedPendulumEnv(**k))), "Flip"),
        (lambda **k: gymnasium.wrappers.RescaleAction(InvertedPendulumEnv(**k), -1.0, 1.0), "RescaleAction"),
    ],
)
def test_wrapper_that_may_change_what_is_observed_or_done_is_named(
    registered: Callable[..., str], creator: Callable[..., Any], name: str | None
) -> None:
    environment = registered(creator)
    assert opaque_wrapper(make_environment(environment)) == name
    assert environment_specs(environment).wrapper == name


def test_specs_are_those_of_the_outermost_wrapper(registered: Callable[..., str]) -> None:
    rescaled = environment_specs(
        registered(lambda **k: gymnasium.wrappers.RescaleAction(InvertedPendulumEnv(**k), -1.0, 1.0))
    )
    assert (rescaled.action.lower, rescaled.action.upper, rescaled.action.unit) == ((-1.0,), (1.0,), "")
    fewer = environment_specs(registered(lambda **k: FewerEntries(InvertedPendulumEnv(**k))))
    assert [(term.name, term.size) for term in fewer.observation.terms] == [("observation", 3)]


@pytest.mark.parametrize(("creator", "times"), [(lambda **k: Repeated(InvertedPendulumEnv(**k)), 4), (Twice, 2)])
def test_control_period_is_what_a_step_takes(
    registered: Callable[..., str], creator: Callable[..., Any], times: int
) -> None:
    environment = registered(creator)
    specs = environment_specs(environment)
    assert specs.period == pytest.approx(times * 0.04)
    assert specs.rate == pytest.approx(25.0 / times)
    assert LivePlant(environment)._dt == specs.period


@pytest.mark.parametrize(
    ("creator", "message"),
    [
        (
            InADict,
            "Wrapped-v0 observes a Dict, and a controller has one vector; .*FlattenObservation",
        ),
        (Unlimited, "the actions of Wrapped-v0 have no limits"),
        (Frozen, "a step of Wrapped-v0 takes no time, so it has no control rate"),
        (Broken, "Wrapped-v0 raised ValueError in its first step: no torque"),
    ],
)
def test_environment_that_no_controller_can_have_is_refused(
    registered: Callable[..., str], creator: Callable[..., Any], message: str
) -> None:
    with pytest.raises(PlantError, match=f"^{message}"):
        environment_specs(registered(creator))


def test_states_are_not_looked_at_through_a_wrapper(registered: Callable[..., str], make_cartpole_bundle: Any) -> None:
    environment = registered(lambda **k: Flip(InvertedPendulumEnv(**k)))
    with pytest.raises(PlantError, match="what the wrapper Flip within Wrapped-v0 makes of a state is not known"):
        StateSpacePlant(environment)
    specs = environment_specs(environment)
    manifest = make_cartpole_bundle().manifest.model_copy(
        update={"observation": specs.observation, "action": specs.action, "rate": specs.rate}
    )
    starts = StartBox(low=(0.0,) * 4, high=(1.0,) * 4, names=("a", "b", "c", "d"))
    check_environment(manifest, environment, Task())
    with pytest.raises(PlantError, match="the task does not fit Wrapped-v0: it has a box of starts, and what the wrap"):
        check_environment(manifest, environment, Task(starts=starts))


@pytest.mark.parametrize(("creator", "what"), [(Commanded, "observes"), (Delayed, "does")])
def test_states_of_an_environment_that_remembers_more_are_not_looked_at(
    registered: Callable[..., str], creator: Callable[..., Any], what: str
) -> None:
    with pytest.raises(PlantError, match=f"what Wrapped-v0 {what} does not follow from positions and velocities alone"):
        StateSpacePlant(registered(creator))


def test_states_are_stepped_as_the_class_steps_them(registered: Callable[..., str]) -> None:
    plants = [StateSpacePlant(registered(creator)) for creator in (HalfAsStrong, InvertedPendulumEnv)]
    states = [plant.start(3) for plant in plants]
    half, whole = plants[0].step(states[0], np.array([2.0])), plants[1].step(states[1], np.array([1.0]))
    np.testing.assert_allclose(half, whole)
