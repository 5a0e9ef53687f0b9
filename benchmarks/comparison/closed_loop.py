"""Closed-loop episodes, many environments at a time: the deployed policy is asked once a step for all of them.

ONNX Runtime gives each row the same bits in a batch as alone, so the returns are those of `run_episode`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.limits import ActionLimits
from nncontrol_prune.controllers.policy import PlannerPolicy
from nncontrol_prune.controllers.specs import TdMpcArchitecture
from nncontrol_prune.plants.environments import make_environment
from nncontrol_prune.rollouts.reader import Rollouts

WIDTH = 25
"""Environments that are stepped in turns."""


@dataclass
class Trajectory:
    """One episode, as far as it has come.

    Attributes:
        episode_return: Sum of its rewards.
        steps: How many there were.
        terminated: Whether it ended for good.
        observations: What was observed, if it was asked for.
        actions: What was commanded, likewise.
        rewards: The rewards, likewise.
    """

    episode_return: float = 0.0
    steps: int = 0
    terminated: bool = False
    observations: list[NDArray[np.float64]] = field(default_factory=list)
    actions: list[NDArray[np.float64]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


def run_in_lockstep(
    bundle: Bundle, environment: str, seeds: Sequence[int], *, transitions: bool = False
) -> list[Trajectory]:
    """Run one episode for each seed.

    Args:
        bundle: The controller.
        environment: A gymnasium id.
        seeds: Seeds of the episodes' starts.
        transitions: Whether to keep them.
    """
    done: list[Trajectory] = []
    for first in range(0, len(seeds), WIDTH):
        done += _run_some(bundle, environment, seeds[first : first + WIDTH], transitions)
    return done


def _run_some(bundle: Bundle, environment: str, seeds: Sequence[int], transitions: bool) -> list[Trajectory]:
    limits = ActionLimits(bundle.manifest.action)
    envs = _environments(environment)
    observations = np.stack([env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=False)])
    plans = _fresh_plans(bundle, len(seeds))
    trajectories = [Trajectory() for _ in seeds]
    running = np.arange(len(seeds))
    while len(running):
        goes_on = np.ones(len(running), dtype=bool)
        actions, plans[running] = _act(bundle, observations[running], plans[running])
        for number, (action, index) in enumerate(zip(actions, running, strict=True)):
            limits.apply(action)
            trajectory = trajectories[index]
            observation, reward, terminated, truncated, _ = envs[index].step(action)
            trajectory.episode_return += float(reward)
            trajectory.steps += 1
            trajectory.terminated = terminated
            if transitions:
                trajectory.observations.append(observations[index].copy())
                trajectory.actions.append(action)
                trajectory.rewards.append(float(reward))
            observations[index] = observation
            goes_on[number] = not (terminated or truncated)
        running = running[goes_on]
    return trajectories


@functools.lru_cache(maxsize=2)
def _environments(environment: str) -> list[Any]:
    return [make_environment(environment) for _ in range(WIDTH)]


def _fresh_plans(bundle: Bundle, rows: int) -> NDArray[np.float32]:
    """Return what a planner carries from tick to tick, at the start; nothing for other controllers."""
    architecture, size = bundle.manifest.architecture, bundle.manifest.action.size
    horizon = architecture.planner.horizon if isinstance(architecture, TdMpcArchitecture) else 0
    return np.zeros((rows, horizon, size), dtype=np.float32)


def _act(
    bundle: Bundle, observations: NDArray[np.float64], plans: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    if isinstance(bundle.policy, PlannerPolicy):
        actions, plans = bundle.policy.batch_from(observations.astype(np.float32), plans)
    else:
        actions = bundle.policy.batch(observations)
    return actions.astype(np.float64), plans


def record(bundle: Bundle, environment: str, seeds: Sequence[int]) -> Rollouts:
    """Run episodes and return what a loop would have logged, without a bag."""
    trajectories = run_in_lockstep(bundle, environment, seeds, transitions=True)
    steps = np.array([trajectory.steps for trajectory in trajectories])
    rows = int(steps.sum())
    last = np.zeros(rows, dtype=bool)
    last[np.cumsum(steps) - 1] = True
    terminated = np.repeat([trajectory.terminated for trajectory in trajectories], steps) & last
    return Rollouts(
        stamp=np.arange(rows) / bundle.manifest.rate,
        bundle=np.zeros(rows, dtype=np.int64),
        observation=np.concatenate([trajectory.observations for trajectory in trajectories]),
        action=np.concatenate([trajectory.actions for trajectory in trajectories]),
        reward=np.concatenate([trajectory.rewards for trajectory in trajectories]),
        episode=np.repeat(np.arange(len(seeds)), steps),
        step=np.concatenate([np.arange(count) for count in steps]),
        terminated=terminated,
        truncated=last & ~terminated,
        controllers=[bundle.reference],
        warnings=[],
    )
