"""An environment as a function: from state and action to the state one control period later, and to its observation.

A state is positions and velocities. Differences of states are in the tangent space, (2 nv,): those of hinges modulo 2π,
those of quaternions as rotations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.plants.environments import PlantError, environment_specs, make_environment, telling

STEP = 1e-6
"""Of the central differences."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Linearization:
    """The plant near a state, held for one control period.

    Attributes:
        a: Effect of the state on the next one, (2 nv, 2 nv).
        b: Effect of the action on the next state, (2 nv, m).
        c: Effect of the state on the observation, (n, 2 nv).
    """

    a: Array
    b: Array
    c: Array


class StateSpacePlant:
    """A gymnasium MuJoCo environment whose state can be set.

    Args:
        environment: Its gymnasium id.

    Raises:
        PlantError: There is no such environment, or it observes or does more than follows from its state.
    """

    def __init__(self, environment: str) -> None:
        specs = environment_specs(environment)
        if specs.wrapper is not None:
            raise PlantError(f"what the wrapper {specs.wrapper} within {environment} makes of a state is not known")
        self._environment, self._env = environment, make_environment(environment)
        base: Any = self._env.unwrapped
        if not hasattr(base, "_get_obs"):
            self._env.close()
            raise PlantError(f"{environment} has no `_get_obs`, which its observations would be had from")
        if base.model.na:
            self._env.close()
            raise PlantError(f"the actuators of {environment} have a state beside its positions and velocities")
        self._base, self._model, self._data = base, base.model, base.data
        self._hinges = np.array(
            [
                self._model.jnt_dofadr[joint]
                for joint in range(self._model.njnt)
                if self._model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_HINGE and not self._model.jnt_limited[joint]
            ],
            dtype=int,
        )
        self.period = specs.period
        """Seconds of a control period."""
        try:
            self._check_memory()
        except PlantError:
            self.close()
            raise

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _check_memory(self) -> None:
        """Refuse an environment that remembers, or draws, more than positions and velocities."""
        space: Any = self._env.action_space
        rng = np.random.default_rng(0)
        state = self.start(0)
        found = []
        for seed in (1, 2):
            self.step(self.start(seed), rng.uniform(space.low, space.high))
            found.append([self.observe(state), self.step(state, np.zeros(space.shape).clip(space.low, space.high))])
        for what, first, second in zip(("observes", "does"), *found, strict=True):
            if not np.allclose(first, second, rtol=1e-9, atol=1e-9, equal_nan=True):
                raise PlantError(
                    f"what {self._environment} {what} does not follow from positions and velocities alone: a command, "
                    "the action before, or noise"
                )

    def start(self, seed: int) -> Array:
        """Return the state that an episode starts from."""
        self._env.reset(seed=seed)
        return self._state()

    def step(self, state: Array, action: Array) -> Array:
        """Return the state one control period later, with the action held.

        Raises:
            PlantError: The environment raised something.
        """
        self._set(state)
        with telling(self._environment):
            self._base.step(action)  # and no do_simulation: somebody's class may do more with an action than that
        return self._state()

    def observe(self, state: Array) -> Array:
        """Return the observation (n,) of a state."""
        self._set(state)
        return np.asarray(self._base._get_obs(), dtype=np.float64)

    def difference(self, state: Array, origin: Array) -> Array:
        """Return the way (2 nv,) from one state to another."""
        nq = self._model.nq
        way = np.zeros(self._model.nv)
        mujoco.mj_differentiatePos(self._model, way, 1.0, origin[:nq], state[:nq])
        way[self._hinges] = (way[self._hinges] + np.pi) % (2 * np.pi) - np.pi
        return np.concatenate([way, state[nq:] - origin[nq:]])

    def moved(self, state: Array, way: Array) -> Array:
        """Return the state at the end of a way (2 nv,)."""
        nq, nv = self._model.nq, self._model.nv
        positions = state[:nq].copy()
        mujoco.mj_integratePos(self._model, positions, way[:nv], 1.0)
        return np.concatenate([positions, state[nq:] + way[nv:]])

    def linearize(self, state: Array, action: Array) -> Linearization:
        """Return the plant near a state and an action, by central differences over a whole control period."""
        a = np.stack([self._slope(self._stepped(state, action, way), state) for way in self._ways()], axis=1)
        b = np.stack(
            [
                self._slope((self.step(state, action + change), self.step(state, action - change)), state)
                for change in STEP * np.eye(len(action))
            ],
            axis=1,
        )
        c = np.stack(
            [
                (self.observe(self.moved(state, way)) - self.observe(self.moved(state, -way))) / (2 * STEP)
                for way in self._ways()
            ],
            axis=1,
        )
        return Linearization(a, b, c)

    def _ways(self) -> Array:
        return STEP * np.eye(2 * self._model.nv)

    def _stepped(self, state: Array, action: Array, way: Array) -> tuple[Array, Array]:
        return self.step(self.moved(state, way), action), self.step(self.moved(state, -way), action)

    def _slope(self, ends: tuple[Array, Array], origin: Array) -> Array:
        return (self.difference(ends[0], origin) - self.difference(ends[1], origin)) / (2 * STEP)

    def _set(self, state: Array) -> None:
        mujoco.mj_resetData(self._model, self._data)  # what a step before has left, such as the solver's warm start
        self._base.set_state(state[: self._model.nq], state[self._model.nq :])

    def _state(self) -> Array:
        return np.concatenate([self._data.qpos, self._data.qvel])
