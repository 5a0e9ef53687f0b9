from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from torch import nn

from nncontrol_prune.plants.environments import PlantError
from nncontrol_prune.service.imports import bundle_from_state_dict


class Fragile(InvertedPendulumEnv):
    """An environment that breaks in the fifth step after the one in which its rate is measured."""

    fault = "raises"
    steps = 0

    def step(self, action: Any) -> Any:
        type(self).steps += 1
        observation, *others = super().step(action)
        if type(self).steps > 5:
            if self.fault == "raises":
                raise RuntimeError("the robot left its map")
            observation = np.full_like(observation, np.nan)
        return observation, *others


@pytest.fixture
def fragile() -> Iterator[str]:
    gymnasium.register("Fragile-v0", Fragile, max_episode_steps=100, disable_env_checker=True)
    Fragile.steps = 0
    yield "Fragile-v0"
    del gymnasium.registry["Fragile-v0"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raises", "Fragile-v0 raised RuntimeError after 4 steps of this controller: the robot left its map"),
        ("observes", "Fragile-v0 observes NaN or infinity after 5 steps of this controller"),
    ],
)
def test_environment_that_breaks_while_a_controller_is_imported_is_told(
    fragile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    monkeypatch.setattr(Fragile, "fault", fault)
    torch.save(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).state_dict(), tmp_path / "actor.pt")
    with pytest.raises(PlantError, match=f"^{message}$"):
        bundle_from_state_dict(tmp_path / "actor.pt", fragile, activation="tanh")
