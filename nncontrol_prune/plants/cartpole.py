"""Cart-pole swing-up: hang, swing up, balance."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from nncontrol_prune.controllers.observations import ObservationTerm
from nncontrol_prune.resources import share_directory


class CartPoleSwingUpEnv(MujocoEnv):
    """A pole hangs from a cart on a rail; one horizontal force swings it up and balances it.

    Observation (float64, 5): x [m], cos θ, sin θ, ẋ [m/s], θ̇ [rad/s]; θ = 0 is upright.
    Action (float32, 1): force on the cart [N], in [-10, 10].
    Reward: in 0..1 per step; 1 is upright, centred, at rest and without effort.
    Control rate: 100 Hz. Episodes are never terminated; they are truncated after 10 s.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (gymnasium declares it so)
        "render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"],
        "render_fps": 100,
    }
    observation_terms = (
        ObservationTerm(name="x", size=1, quantity="position", joints=("slider",), unit="m"),
        ObservationTerm(name="cos_theta", size=1, quantity="cos", joints=("hinge",)),
        ObservationTerm(name="sin_theta", size=1, quantity="sin", joints=("hinge",)),
        ObservationTerm(name="x_dot", size=1, quantity="velocity", joints=("slider",), unit="m/s"),
        ObservationTerm(name="theta_dot", size=1, quantity="velocity", joints=("hinge",), unit="rad/s"),
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            str(share_directory() / "sim" / "assets" / "cartpole.xml"),
            frame_skip=4,
            observation_space=spaces.Box(-np.inf, np.inf, shape=(5,), dtype=np.float64),
            camera_name="track",
            **kwargs,
        )

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], np.float64, bool, bool, dict[str, np.float64]]:
        self.do_simulation(action, self.frame_skip)
        observation = self._get_obs()
        if self.render_mode == "human":
            self.render()
        reward = rewards_of(observation[None], np.asarray(action[:1], dtype=np.float64))[0]
        return observation, reward, False, False, {}

    def reset_model(self) -> NDArray[np.float64]:
        x = self.np_random.uniform(-0.5, 0.5)
        theta = np.pi + self.np_random.uniform(-0.3, 0.3)
        velocity = self.np_random.uniform(-0.1, 0.1, size=2)
        self.set_state(np.array([x, theta]), velocity)
        return self._get_obs()

    def _get_obs(self) -> NDArray[np.float64]:
        return observations_of(self.data.qpos[None], self.data.qvel[None])[0]


def observations_of(positions: NDArray[np.float64], velocities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return observations (k, 5) of positions and velocities (k, 2) of cart and pole."""
    x, theta = positions.T
    return np.stack([x, np.cos(theta), np.sin(theta), *velocities.T], axis=1)


def rewards_of(observations: NDArray[np.float64], forces: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rewards (k,) of observations (k, 5) and the forces (k,) that led to them."""
    x, cosine, _, _, theta_dot = observations.T
    upright = (1.0 + cosine) / 2.0
    centred = (1.0 + np.exp(-(x**2))) / 2.0
    calm = (1.0 + np.exp(-((theta_dot / 5.0) ** 2))) / 2.0
    gentle = (4.0 + 1.0 - np.minimum((forces / 10.0) ** 2, 1.0)) / 5.0
    return np.asarray(upright * centred * calm * gentle)
