"""A planner and episodes that tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nncontrol_prune.controllers.bundle import Bundle, load_bundle
from nncontrol_prune.resources import shipped_controllers
from nncontrol_prune.validation.metrics import Episode


@pytest.fixture(scope="session")
def planner() -> Bundle:
    """The TD-MPC agent that ships."""
    return load_bundle(shipped_controllers()["cartpole_swingup_tdmpc"])


@pytest.fixture(scope="session")
def make_episode() -> Callable[..., Episode]:
    """Return a function that makes an episode of a good controller, but for what is changed."""

    def make(**changes) -> Episode:
        usual = {
            "seed": 0,
            "episode_return": 800.0,
            "success": True,
            "terminated": False,
            "steps": 1000,
            "faults": 0,
            "effort": 0.3,
            "action_rate": 0.4,
            "excursions": (1.0,),
            "signals": {},
        }
        return Episode(**{**usual, **changes})

    return make
