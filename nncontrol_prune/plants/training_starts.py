"""Starts and delays that make a cart-pole controller fit for the live loop."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class TrainingStarts(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Starts anywhere half of the time, and now and then a command arrives a tick late, as in a live loop."""

    def __init__(self, env: gymnasium.Env[Any, Any], seed: int) -> None:
        super().__init__(env)
        self._rng = np.random.default_rng(seed)
        self._previous = np.zeros(1, dtype=np.float32)

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        self._previous = np.zeros(1, dtype=np.float32)
        if self._rng.random() < 0.5:
            base: Any = self.env.unwrapped
            position = np.array([self._rng.uniform(-1.2, 1.2), self._rng.uniform(-np.pi, np.pi)])
            base.set_state(position, self._rng.normal(0.0, [0.5, 2.0]))
            observation = base._get_obs()
        return observation, info

    def step(self, action: Any) -> Any:
        late = self._rng.random() < 0.03
        applied, self._previous = (self._previous if late else action), action
        return self.env.step(applied)
