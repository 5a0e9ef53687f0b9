"""Many copies of one environment, stepped together."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import mujoco
import numpy as np
from gymnasium.wrappers import TimeLimit
from mujoco import rollout
from numpy.typing import NDArray

from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.cartpole import observations_of, rewards_of
from nncontrol_prune.plants.conditions import Conditions, change_model, pushed
from nncontrol_prune.plants.environments import PlantError, make_environment, telling
from nncontrol_prune.plants.wrappers import wrappers_of


@dataclass(frozen=True)
class Steps:
    """What came of one step of k plants.

    Attributes:
        observations: (k, n).
        rewards: (k,).
        terminated: Whether each plant's episode ended for good, (k,).
        truncated: Whether its time was over, (k,).
    """

    observations: NDArray[np.float64]
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]


class PlantBatch(Protocol):
    """Plants numbered from 0 on, each in an episode of its own."""

    def reset(self, plant: int, seed: int, state: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Start an episode of one plant, with positions and velocities if they are given; returns the observation."""
        ...

    def step(self, plants: NDArray[np.intp], actions: NDArray[np.float64]) -> Steps:
        """Step the plants of these numbers (k,) with actions (k, m) for one control period."""
        ...

    def push(self, plant: int, speed: float, rng: np.random.Generator) -> None:
        """Push one plant, by an impulse that would give its whole mass that speed in m/s."""
        ...

    def close(self) -> None:
        """Give back what the plants hold."""
        ...


def make_batch(environment: str, plants: int, conditions: Conditions | None = None, *, threads: int = 1) -> PlantBatch:
    """Make a batch of an environment.

    The plants of a batch do what single ones do, bit by bit, whatever the number of plants and threads.

    Args:
        environment: A gymnasium MuJoCo id.
        plants: How many.
        conditions: What is different from the environment as it is. Here only masses and friction: the rest is
            done by the loop.
        threads: Threads that step them, where the environment's equations are our own; others are stepped in Python,
            one after the other.

    Raises:
        PlantError: There is no such environment, it is not a MuJoCo one, or its episodes have no limit of time.
    """
    conditions = conditions or Conditions()
    if environment == CARTPOLE:
        return CartPoleBatch(plants, conditions, threads=threads)
    return GymnasiumBatch(environment, plants, conditions)


class GymnasiumBatch:
    """Plants that gymnasium steps: reward and termination are Python, so they take turns.

    Args:
        environment: A gymnasium MuJoCo id.
        plants: How many.
        conditions: What is different.
    """

    def __init__(self, environment: str, plants: int, conditions: Conditions) -> None:
        self._environment, self._conditions = environment, conditions
        # Made when they are first needed: there may be more plants than episodes.
        self._envs: list[Any] = [self._made(), *[None] * (plants - 1)]
        self._seeds = [0] * plants

    def reset(self, plant: int, seed: int, state: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Start an episode of one plant.

        Raises:
            PlantError: The environment raised something.
        """
        self._seeds[plant] = seed
        if self._envs[plant] is None:
            self._envs[plant] = self._made()
        with self._told(plant):
            return _started(self._envs[plant], seed, state)

    def step(self, plants: NDArray[np.intp], actions: NDArray[np.float64]) -> Steps:
        """Step the plants, one after the other.

        Raises:
            PlantError: The environment raised something.
        """
        found = [self._step(plant, action) for plant, action in zip(plants.tolist(), actions, strict=True)]
        observations, rewards, terminated, truncated = zip(*found, strict=True)
        return Steps(np.array(observations), np.array(rewards, dtype=float), np.array(terminated), np.array(truncated))

    def push(self, plant: int, speed: float, rng: np.random.Generator) -> None:
        """Push one plant, by an impulse that would give its whole mass that speed in m/s."""
        base = self._envs[plant].unwrapped
        base.data.qvel[:] = pushed(base.model, base.data, speed, rng)

    def _made(self) -> Any:
        env = make_environment(self._environment)
        if not any(isinstance(wrapper, TimeLimit) for wrapper in wrappers_of(env)):
            env.close()
            raise PlantError(
                f"an episode of {self._environment} need not end; register it with max_episode_steps, the steps after "
                "which it is over"
            )
        base: Any = env.unwrapped
        change_model(base.model, base.data, self._conditions)
        return env

    def _step(self, plant: int, action: NDArray[np.float64]) -> tuple[Any, ...]:
        with self._told(plant):
            return tuple(self._envs[plant].step(action)[:4])

    def _told(self, plant: int) -> AbstractContextManager[None]:
        return telling(self._environment, f"in the episode with seed {self._seeds[plant]}")

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            if env is not None:
                env.close()


class CartPoleBatch:
    """Cart-poles that MuJoCo steps in threads, without Python in between.

    Args:
        plants: How many.
        conditions: What is different.
        threads: Threads that step them.
    """

    def __init__(self, plants: int, conditions: Conditions, *, threads: int = 1) -> None:
        self._env = make_environment(CARTPOLE)
        base: Any = self._env.unwrapped
        change_model(base.model, base.data, conditions)
        assert self._env.spec is not None
        self._limit = self._env.spec.max_episode_steps
        self._frames: int = base.frame_skip
        self._base, self._model = base, base.model
        size = mujoco.mj_stateSize(self._model, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        self._states = np.zeros((plants, size))
        self._elapsed = np.zeros(plants, dtype=int)
        self._data = [mujoco.MjData(self._model) for _ in range(threads)]
        self._rollout = rollout.Rollout(nthread=threads if threads > 1 else 0)

    def reset(self, plant: int, seed: int, state: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Start an episode of one plant."""
        observation = _started(self._env, seed, state)
        mujoco.mj_getState(self._model, self._base.data, self._states[plant], mujoco.mjtState.mjSTATE_FULLPHYSICS)
        self._elapsed[plant] = 0
        return observation

    def step(self, plants: NDArray[np.intp], actions: NDArray[np.float64]) -> Steps:
        """Step the plants."""
        # A state is all there is to carry on: the model starts its constraint solver cold (see cartpole.xml).
        controls = np.repeat(actions[:, None], self._frames, axis=1)
        states, _ = self._rollout.rollout(self._model, self._data, self._states[plants], controls, nstep=self._frames)
        after = states[:, -1]
        self._states[plants] = after
        self._elapsed[plants] += 1
        observations = observations_of(after[:, 1:3], after[:, 3:5])
        return Steps(
            observations,
            rewards_of(observations, actions[:, 0]),
            np.zeros(len(plants), dtype=bool),
            self._elapsed[plants] == self._limit,
        )

    def push(self, plant: int, speed: float, rng: np.random.Generator) -> None:
        """Push one plant, by an impulse that would give its whole mass that speed in m/s."""
        data, state = self._base.data, self._states[plant]
        mujoco.mj_setState(self._model, data, state, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        state[3:5] = pushed(self._model, data, speed, rng)

    def close(self) -> None:
        """End the threads."""
        self._rollout.close()
        self._env.close()


def _started(env: Any, seed: int, state: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Start an episode of an environment and return its first observation (n,)."""
    observation, _ = env.reset(seed=seed)
    if state is not None:
        base = env.unwrapped
        base.set_state(state[: base.model.nq], state[base.model.nq :])
        observation = base._get_obs()
    return np.asarray(observation, dtype=np.float64)
