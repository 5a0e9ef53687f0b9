"""Recording episodes as fast as the machine runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.plants.environments import make_environment
from nncontrol_prune.rollouts.writer import BagWriter
from nncontrol_prune.validation.evaluation import Episode, check_environment, run_episode


def record_episodes(
    bundle: Bundle, environment: str, seeds: Sequence[int], bag: Path, report: Callable[[float], None]
) -> list[Episode]:
    """Run one episode for each seed and write all transitions to a new bag.

    Raises:
        PlantError: The environment does not exist or does not fit the controller.
        RolloutError: The bag cannot be written.
    """
    manifest = bundle.manifest
    check_environment(manifest, environment)
    period = 1.0 / manifest.rate
    env = make_environment(environment)
    episodes: list[Episode] = []
    ticks = 0
    with BagWriter(
        bag, observation_size=manifest.observation.size, action_size=manifest.action.size, rate=manifest.rate
    ) as writer:
        writer.bundle(0.0, 0, bundle.reference)

        def write(step: int, observation: Any, action: Any, reward: float, terminated: bool, truncated: bool) -> None:
            nonlocal ticks
            stamp = ticks * period
            writer.transition(stamp, 0, observation, action)
            writer.step(stamp, len(episodes), step, reward, terminated, truncated)
            ticks += 1

        for seed in seeds:
            report(len(episodes) / len(seeds))
            episodes.append(run_episode(bundle.policy, manifest, env, environment, seed, write))
    env.close()
    return episodes
