"""What an environment's task is: what counts as success, and which signals are to be brought where.

Tasks are data, so that a configuration may hold one (`task` in the section `pruning_service`) where nothing, or
something else, is known of an environment.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, model_validator

from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.plants import CARTPOLE

Index = Annotated[int, Field(ge=0, le=100_000)]
Positive = Annotated[FiniteFloat, Field(gt=0.0)]


class Signal(Spec):
    """Something the task is to bring to a reference: an entry of the observation, or the angle of two of them."""

    entry: Index | None = None
    """Index of the entry of the observation."""
    sine: Index | None = None
    """Index of the entry that holds the sine of an angle."""
    cosine: Index | None = None
    """Index of the one that holds its cosine."""
    unit: str = ""
    scale: Positive = 1.0
    """The size of what it has to go, in its unit: what bands and overshoots are shares of."""
    reference: FiniteFloat = 0.0
    """Where it should be."""

    @model_validator(mode="after")
    def _one_source(self) -> Signal:
        angle = self.sine is not None and self.cosine is not None
        if (self.entry is None) != angle or (self.sine is None) != (self.cosine is None):
            raise ValueError("a signal is either one entry of the observation, or the angle of a sine and a cosine")
        return self

    @property
    def wraps(self) -> bool:
        """Whether it is an angle, which may jump from π to -π."""
        return self.entry is None or self.unit == "rad"

    def label(self, name: str) -> str:
        """Return name and unit, for an axis."""
        return f"{name} [{self.unit}]" if self.unit else name

    def of(self, observations: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the signal (...) of observations (..., n)."""
        if self.entry is not None:
            return observations[..., self.entry]
        assert self.sine is not None
        assert self.cosine is not None
        return np.asarray(np.arctan2(observations[..., self.sine], observations[..., self.cosine]))

    def deviation(self, observations: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how far it is from its reference (...); an angle goes the short way around."""
        found = self.of(observations) - self.reference
        return found if self.entry is not None else found - 2 * math.pi * np.round(found / (2 * math.pi))


class StartBox(Spec):
    """A box of states that a good controller should start from."""

    low: tuple[FiniteFloat, ...]
    """Smallest positions, then velocities; (nq + nv)."""
    high: tuple[FiniteFloat, ...]
    """Largest ones."""
    names: tuple[str, ...]
    """What each state is called, with its unit."""
    plane: tuple[Index, Index] = (0, 1)
    """The two that pictures show; the others rest in the middle of the box."""

    @model_validator(mode="after")
    def _same_sizes(self) -> StartBox:
        if not len(self.low) == len(self.high) == len(self.names):
            raise ValueError("low, high and names of the box of starts need as many entries as each other")
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("the box of starts has a lower bound above its upper one")
        if max(self.plane) >= len(self.names) or self.plane[0] == self.plane[1]:
            raise ValueError(f"the plane {self.plane} of the box of starts is not two of its {len(self.names)} states")
        return self

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        """Lower and upper bound of each state."""
        return tuple(zip(self.low, self.high, strict=True))

    @property
    def slice(self) -> tuple[tuple[float, float], ...]:
        """The same, with all states but those of the plane at the middle."""
        return tuple(
            (low, high) if state in self.plane else ((low + high) / 2, (low + high) / 2)
            for state, (low, high) in enumerate(self.bounds)
        )


class Task(Spec):
    """Success of an episode: it is not terminated early and, where there is a goal, ends with holding it."""

    signals: dict[str, Signal] = Field(default_factory=dict)
    """What is to be brought where, by name, the most important first; empty where there is nothing of the kind."""
    goal: dict[str, Positive] = Field(default_factory=dict)
    """How far each signal named may be from its reference at the goal; empty where surviving the episode is all."""
    hold: Annotated[FiniteFloat, Field(ge=0.0)] = 0.0
    """How long the goal must hold at the end of the episode, in seconds; 0 for its last observation alone."""
    description: str = ""
    """Success in words; said by the goal if empty."""
    starts: StartBox | None = None
    """What a good controller should start from, where that is known."""

    @model_validator(mode="after")
    def _goals_are_signals(self) -> Task:
        unknown = [name for name in self.goal if name not in self.signals]
        if unknown:
            signals = ", ".join(self.signals) or "none"
            raise ValueError(f"the goal names {unknown[0]!r}, which is not one of the signals ({signals})")
        return self

    @property
    def success(self) -> str:
        """Success in words."""
        if self.description:
            return self.description
        if not self.goal:
            return "the episode is not terminated early"
        near = " and ".join(
            f"{name} within {within:g} {self.signals[name].unit}".rstrip() for name, within in self.goal.items()
        )
        return f"{near} of its reference {f'for the last {self.hold:g} s' if self.hold else 'at the end'}"

    def at_goal(self, observations: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which of the observations (..., n) are at the goal; all, if there is none."""
        found = np.ones(observations.shape[:-1], dtype=bool)
        for name, within in self.goal.items():
            found &= np.abs(self.signals[name].deviation(observations)) < within
        return found

    def mismatch(self, observation_size: int, states: int) -> str | None:
        """Return what does not fit an environment with so many observations and states (nq + nv); None if all does."""
        for name, signal in self.signals.items():
            largest = max(index for index in (signal.entry, signal.sine, signal.cosine) if index is not None)
            if largest >= observation_size:
                entries = f"0 to {observation_size - 1}"
                return f"signal {name!r} is entry {largest} of the observation, whose entries are {entries}"
        if self.starts is not None and len(self.starts.low) != states:
            return f"the box of starts has {len(self.starts.low)} states, not {states}: positions, then velocities"
        return None


_TASKS = {
    CARTPOLE: Task(
        description="the pole is upright for the last 2 s",
        signals={
            "pole angle": Signal(sine=2, cosine=1, unit="rad", scale=math.pi),
            "cart position": Signal(entry=0, unit="m", scale=1.8),  # half the rail
        },
        goal={"pole angle": math.acos(0.95)},  # about 18 degrees from the vertical
        hold=2.0,
        starts=StartBox(
            low=(-1.5, 0.0, -2.0, -8.0),
            high=(1.5, 2 * math.pi, 2.0, 8.0),
            names=("cart position [m]", "pole angle [rad]", "cart velocity [m/s]", "pole velocity [rad/s]"),
            plane=(1, 3),
        ),
    ),
    "InvertedPendulum-v5": Task(
        signals={
            "pole angle": Signal(entry=1, unit="rad", scale=0.2),  # where the episode is terminated
            "cart position": Signal(entry=0, unit="m", scale=1.0),  # half the rail
        },
    ),
    "InvertedDoublePendulum-v5": Task(
        signals={
            "lower pole angle": Signal(sine=1, cosine=3, unit="rad", scale=math.pi / 6),
            "upper pole angle to the lower": Signal(sine=2, cosine=4, unit="rad", scale=math.pi / 6),
            "cart position": Signal(entry=0, unit="m", scale=1.0),
        },
    ),
}


def task_of(environment: str) -> Task:
    """Return the task of an environment; surviving the episode where nothing else is known."""
    return _TASKS.get(environment, Task())
