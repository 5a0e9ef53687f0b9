"""What counts as success in an environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.cartpole import upright

Goal = Callable[[NDArray[np.float64]], bool]
Signal = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _first_value(observations: NDArray[np.float64]) -> NDArray[np.float64]:
    return observations[:, 0]


def _pole_angle(observations: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.arctan2(observations[:, 2], observations[:, 1])


@dataclass(frozen=True)
class Task:
    """Success of an episode: it is not terminated early and, where there is a goal, ends with holding it.

    Attributes:
        goal: Whether an observation is at the goal; None where surviving the episode is all there is.
        hold: How long the goal must hold at the end of the episode, in seconds.
        description: Success in words.
        signal: What to plot of observations (rows, n), (rows,).
        signal_label: Its name and unit.
    """

    goal: Goal | None = None
    hold: float = 0.0
    description: str = "the episode is not terminated early"
    signal: Signal = _first_value
    signal_label: str = "first observation"


_TASKS = {
    CARTPOLE: Task(
        goal=upright,
        hold=2.0,
        description="the pole is upright for the last 2 s",
        signal=_pole_angle,
        signal_label="pole angle [rad]",
    )
}


def task_of(environment: str) -> Task:
    """Return the task of an environment; surviving the episode where nothing else is known."""
    return _TASKS.get(environment, Task())
