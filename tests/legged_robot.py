"""An environment of somebody's own, a robot with one leg, that says what it observes as the documentation shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from tests.documentation import DOCS, block

LEGGED = "tests.legged_robot:Legged-v0"
STEPS = 40
"""Of an episode."""
EXAMPLE: dict[str, Any] = {}
exec(block(DOCS / "validation.md", "tests/legged_robot.py runs this block", "python"), EXAMPLE)


class LeggedEnv(MujocoEnv):
    """Takes actions as the documentation's example says, and observes with noise what it says."""

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"]}  # noqa: RUF012
    observation_terms = EXAMPLE["MyRobotEnv"].observation_terms
    action_term = EXAMPLE["MyRobotEnv"].action_term

    def __init__(self, **kwargs: Any) -> None:
        space = gymnasium.spaces.Box(-np.inf, np.inf, (20,), np.float64)
        super().__init__(str(Path(__file__).with_name("legged.xml")), 4, space, **kwargs)
        self.action_space = gymnasium.spaces.Box(-4.0, 4.0, (2,))
        self._pose = np.array(EXAMPLE["DEFAULT_POSE"])
        self._last, self._speeds = np.zeros(2), np.zeros((3, 2))
        self._command = np.zeros(3)

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], np.float64, bool, bool, dict[str, np.float64]]:
        self.do_simulation(self._pose + 0.25 * action, self.frame_skip)
        self._last = np.array(action, dtype=np.float64)
        if self.np_random.random() < 0.1:
            self._command = self.np_random.uniform(-1.0, 1.0, 3)
        return self._observe(self._speeds[1:]), np.float64(0.0), False, False, {}

    def reset_model(self) -> NDArray[np.float64]:
        position, velocity = np.array(self.init_qpos), self.np_random.normal(size=self.model.nv)
        position[3:7] = self.np_random.normal(size=4)
        position[3:7] /= np.linalg.norm(position[3:7])
        position[7:] = self._pose
        self.set_state(position, velocity)
        self._last, self._command = np.zeros(2), self.np_random.uniform(-1.0, 1.0, 3)
        return self._observe(None)

    def _observe(self, before: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Observe, with joint speeds of the two ticks before; without, an episode begins."""
        conjugate, gravity = np.zeros(4), np.zeros(3)
        mujoco.mju_negQuat(conjugate, self.data.qpos[3:7])
        mujoco.mju_rotVecQuat(gravity, np.array([0.0, 0.0, -1.0]), conjugate)
        noise = self.np_random.normal(scale=0.01, size=7)
        speed = self.data.qvel[6:] + noise[5:]
        self._speeds = np.array([speed] * 3) if before is None else np.array([*before, speed])
        return np.concatenate(
            [
                (self.data.qvel[3:6] + noise[:3]) * 0.25,
                gravity,
                self._command * (2.0, 2.0, 0.25),
                self.data.qpos[7:] + noise[3:5] - self._pose,
                self._speeds.flatten() * 0.05,
                self._last,
                self.data.qpos[2:3],
            ]
        )


if "Legged-v0" not in gymnasium.registry:
    gymnasium.register("Legged-v0", LeggedEnv, max_episode_steps=STEPS)
