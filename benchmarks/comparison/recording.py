"""Rollouts without a bag."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.rollouts.reader import Rollouts
from nncontrol_prune.validation.evaluation import trajectories


def record(bundle: Bundle, environment: str, seeds: Sequence[int]) -> Rollouts:
    """Run episodes and return what a loop would have logged."""
    done = list(trajectories(bundle, environment, seeds))
    steps = np.array([len(trajectory.rewards) for trajectory in done])
    rows = int(steps.sum())
    last = np.zeros(rows, dtype=bool)
    last[np.cumsum(steps) - 1] = True
    terminated = np.repeat([trajectory.terminated for trajectory in done], steps) & last
    return Rollouts(
        stamp=np.arange(rows) / bundle.manifest.rate,
        bundle=np.zeros(rows, dtype=np.int64),
        observation=np.concatenate([trajectory.observations[:-1] for trajectory in done]),
        action=np.concatenate([trajectory.actions for trajectory in done]),
        reward=np.concatenate([trajectory.rewards for trajectory in done]),
        episode=np.repeat(np.arange(len(seeds)), steps),
        step=np.concatenate([np.arange(count) for count in steps]),
        terminated=terminated,
        truncated=last & ~terminated,
        controllers=[bundle.reference],
        warnings=[],
        bags=[],
    )
