"""Time-domain metrics of one episode."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat

from nncontrol_prune.controllers.specs import ActionSpec, Spec
from nncontrol_prune.plants.tasks import Signal, Task
from nncontrol_prune.validation.closed_loop import Trajectory

BAND = 0.02
"""Half-width of the band that a settled signal stays in, as a share of the signal's scale."""
STEADY_SHARE = 0.1
"""Share of the episode, at its end, that the steady-state error is the mean over."""


class SignalMetrics(Spec):
    """How a signal was brought to its reference; its error is its distance from there."""

    settling_time: FiniteFloat | None
    """Seconds until the error stays within 2 % of the signal's scale; None if it does not."""
    overshoot: FiniteFloat
    """Largest error after the reference was first crossed, or come that near to, as a share of the scale."""
    steady_state_error: FiniteFloat
    """Mean error over the last tenth of the episode, in the signal's unit."""
    itae: FiniteFloat
    """Integral of time times error, in the signal's unit times s²."""


class Episode(Spec):
    """What is remembered of an episode."""

    seed: int
    """Of its start."""
    episode_return: float
    """Sum of the rewards."""
    success: bool
    """Whether the task was done; see `Task`."""
    terminated: bool
    """Whether it ended for good, and not because its time was over."""
    steps: int
    """Control periods."""
    faults: int
    """Actions that held NaN or infinity, and were replaced by the safe command."""
    effort: float
    """Root mean square of the commands, each as a share of half its range."""
    action_rate: float
    """Mean change of the commands from one tick to the next, as a share of their ranges a second."""
    excursions: tuple[float, ...]
    """Largest absolute value of each entry of the observation."""
    signals: dict[str, SignalMetrics]
    """By name, of the signals that the task brings to a reference."""


def episode_of(trajectory: Trajectory, task: Task, action: ActionSpec, rate: float) -> Episode:
    """Return the metrics of a trajectory.

    Args:
        trajectory: The episode.
        task: The environment's.
        action: Whose limits the effort is a share of.
        rate: Control rate in Hz.
    """
    ranges = np.asarray(action.upper) - np.asarray(action.lower)
    changes = np.abs(np.diff(trajectory.actions, axis=0)) / ranges
    return Episode(
        seed=trajectory.seed,
        episode_return=float(trajectory.rewards.sum()),
        success=not trajectory.terminated and _held_at_the_end(trajectory, task, rate),
        terminated=trajectory.terminated,
        steps=len(trajectory.rewards),
        faults=trajectory.faults,
        effort=float(np.sqrt(np.square(2.0 * trajectory.actions / ranges).mean())),
        action_rate=float(changes.mean() * rate) if len(changes) else 0.0,
        excursions=tuple(np.abs(trajectory.observations).max(axis=0).tolist()),
        signals={name: signal_metrics(signal, trajectory.observations, rate) for name, signal in task.signals.items()},
    )


def _held_at_the_end(trajectory: Trajectory, task: Task, rate: float) -> bool:
    away = np.flatnonzero(~task.at_goal(trajectory.observations[1:]))
    last_away = int(away[-1]) + 1 if len(away) else 0
    held = len(trajectory.rewards) - last_away
    return held > 0 and held / rate >= task.hold


def signal_metrics(signal: Signal, observations: NDArray[np.float64], rate: float) -> SignalMetrics:
    """Return how a signal was brought to its reference.

    Args:
        signal: The signal.
        observations: Of an episode, (steps + 1, n).
        rate: Control rate in Hz.
    """
    deviation = signal.deviation(observations)
    error = np.abs(deviation)
    band = BAND * signal.scale
    outside = np.flatnonzero(error > band)
    settled = int(outside[-1]) + 1 if len(outside) else 0
    crossed = np.sign(deviation[1:]) != np.sign(deviation[:-1])
    if signal.wraps:  # an angle that swings through ±π changes its sign far from the reference
        crossed &= np.abs(np.diff(deviation)) <= math.pi
    reached = np.flatnonzero(np.concatenate([[False], crossed]) | (error <= band))
    tail = max(1, round(STEADY_SHARE * len(error)))
    return SignalMetrics(
        settling_time=settled / rate if settled < len(error) else None,
        overshoot=float(error[reached[0] :].max()) / signal.scale if len(reached) else 0.0,
        steady_state_error=float(error[-tail:].mean()),
        itae=float((np.arange(len(error)) / rate * error).sum() / rate),
    )
