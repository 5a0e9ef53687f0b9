from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.controllers.specs import MlpArchitecture
from nncontrol_prune.pruning.architectures import recipe_for
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.network import Network
from nncontrol_prune.rollouts.reader import Rollouts


@pytest.fixture
def observations() -> torch.Tensor:
    """Correlated observations, (600, 5)."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(600, 3, generator=generator) @ torch.randn(3, 5, generator=generator)


@pytest.fixture
def calibration(observations: torch.Tensor) -> Calibration:
    """The same, split in two with equal weights."""
    return Calibration(
        {"observation": observations[:450]}, torch.ones(450), {"observation": observations[450:]}, torch.ones(150)
    )


@pytest.fixture
def module() -> Mlp:
    """A network with two hidden layers and two actions."""
    torch.manual_seed(0)
    network = Mlp(MlpArchitecture(hidden=(24, 16), activation="tanh"), 5, 2)
    network.output.half_range.copy_(torch.tensor([1.0, 10.0]))
    return network.eval()


@pytest.fixture
def network(module: Mlp) -> Network[Mlp]:
    """The same, with how it is run."""
    return recipe_for(module).network


@pytest.fixture
def make_rollouts() -> Callable[..., Rollouts]:
    """Return a function that makes rollouts of given observations."""

    def make(observation: np.ndarray, episode: np.ndarray | None = None) -> Rollouts:
        rows = len(observation)
        return Rollouts(
            stamp=np.arange(rows) * 0.01,
            bundle=np.zeros(rows, dtype=np.int64),
            observation=observation,
            action=np.zeros((rows, 1)),
            reward=np.full(rows, np.nan),
            episode=np.zeros(rows, dtype=np.int64) if episode is None else episode,
            step=np.arange(rows) if episode is None else np.arange(rows) - np.searchsorted(episode, episode),
            terminated=np.zeros(rows, dtype=bool),
            truncated=np.zeros(rows, dtype=bool),
            controllers=["test@" + "0" * 64],
            warnings=[],
            bags=[],
        )

    return make
