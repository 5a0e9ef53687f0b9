"""What counts as success in an environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.cartpole import upright

Goal = Callable[[NDArray[np.float64]], bool]


@dataclass(frozen=True)
class Task:
    """Success of an episode: it is not terminated early and, where there is a goal, ends with holding it.

    Attributes:
        goal: Whether an observation is at the goal; None where surviving the episode is all there is.
        hold: How long the goal must hold at the end of the episode, in seconds.
        description: Success in words.
    """

    goal: Goal | None = None
    hold: float = 0.0
    description: str = "the episode is not terminated early"


_TASKS = {CARTPOLE: Task(goal=upright, hold=2.0, description="the pole is upright for the last 2 s")}


def task_of(environment: str) -> Task:
    """Return the task of an environment; surviving the episode where nothing else is known."""
    return _TASKS.get(environment, Task())
