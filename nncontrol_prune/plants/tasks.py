"""What an environment's task is: what counts as success, and which signals are to be brought where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.cartpole import upright

Goal = Callable[[NDArray[np.float64]], NDArray[np.bool_]]
"""Takes observations (..., n) and returns which of them (...) are at the goal."""


@dataclass(frozen=True)
class Signal:
    """Something the task is to bring to a reference, computed from observations.

    Attributes:
        name: What it is called.
        unit: Its unit.
        of: Takes observations (rows, n) and returns the signal (rows,).
        scale: The size of what it has to go, in its unit: what bands and overshoots are shares of.
        reference: Where it should be.
    """

    name: str
    unit: str
    of: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    scale: float
    reference: float = 0.0

    @property
    def label(self) -> str:
        """Name and unit, for an axis."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name


@dataclass(frozen=True)
class Task:
    """Success of an episode: it is not terminated early and, where there is a goal, ends with holding it.

    Attributes:
        goal: What is at the goal; None where surviving the episode is all there is.
        hold: How long the goal must hold at the end of the episode, in seconds.
        description: Success in words.
        signals: What is to be brought where, the most important first; empty where there is nothing of the kind.
        starts: Bounds of the box of positions and velocities that a good controller should start from; empty where none
            is known.
    """

    goal: Goal | None = None
    hold: float = 0.0
    description: str = "the episode is not terminated early"
    signals: tuple[Signal, ...] = ()
    starts: tuple[tuple[float, float], ...] = ()


def _entry(index: int) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    return lambda observations: observations[:, index]


def _angle(sine: int, cosine: int) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    return lambda observations: np.arctan2(observations[:, sine], observations[:, cosine])


_TASKS = {
    CARTPOLE: Task(
        goal=upright,
        hold=2.0,
        description="the pole is upright for the last 2 s",
        signals=(
            Signal("pole angle", "rad", _angle(2, 1), scale=np.pi),
            Signal("cart position", "m", _entry(0), scale=1.8),  # half the rail
        ),
        starts=((-1.5, 1.5), (0.0, 2 * np.pi), (-2.0, 2.0), (-8.0, 8.0)),  # x, θ, ẋ, θ̇
    ),
    "InvertedPendulum-v5": Task(
        signals=(
            Signal("pole angle", "rad", _entry(1), scale=0.2),  # where the episode is terminated
            Signal("cart position", "m", _entry(0), scale=1.0),  # half the rail
        )
    ),
    "InvertedDoublePendulum-v5": Task(
        signals=(
            Signal("lower pole angle", "rad", _angle(1, 3), scale=np.pi / 6),
            Signal("upper pole angle to the lower", "rad", _angle(2, 4), scale=np.pi / 6),
            Signal("cart position", "m", _entry(0), scale=1.0),
        )
    ),
}


def task_of(environment: str) -> Task:
    """Return the task of an environment; surviving the episode where nothing else is known."""
    return _TASKS.get(environment, Task())
