"""Recording episodes as fast as the machine runs them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.plants.tasks import task_of
from nncontrol_prune.rollouts.writer import BagWriter
from nncontrol_prune.validation.evaluation import check_environment, trajectories
from nncontrol_prune.validation.metrics import Episode, episode_of


def record_episodes(
    bundle: Bundle,
    environment: str,
    seeds: Sequence[int],
    bag: Path,
    report: Callable[[float], None],
    ending: threading.Event | None = None,
) -> list[Episode]:
    """Run one episode for each seed and write all transitions to a new bag.

    Args:
        bundle: The controller.
        environment: Where it acts.
        seeds: Of the episodes.
        bag: A new directory.
        report: Told what share of the episodes is done.
        ending: Once it is set, no further episode is recorded; without any there is no bag.

    Returns:
        The episodes in the bag.

    Raises:
        PlantError: The environment does not exist or does not fit the controller.
        RolloutError: The bag cannot be written.
    """
    manifest = bundle.manifest
    check_environment(manifest, environment)
    task = task_of(environment)
    episodes: list[Episode] = []
    ticks = 0
    with BagWriter(
        bag, observation_size=manifest.observation.size, action_size=manifest.action.size, rate=manifest.rate
    ) as writer:
        writer.bundle(0, bundle.reference)
        for trajectory in trajectories(bundle, environment, seeds):
            if ending is not None and ending.is_set():
                break
            report(len(episodes) / len(seeds))
            last = len(trajectory.rewards) - 1
            for step, (observation, action, reward) in enumerate(
                zip(trajectory.observations[:-1], trajectory.actions, trajectory.rewards.tolist(), strict=True)
            ):
                stamp = ticks / manifest.rate
                writer.transition(stamp, 0, observation, action)
                ended = step == last
                writer.step(
                    stamp,
                    len(episodes),
                    step,
                    reward,
                    ended and trajectory.terminated,
                    ended and not trajectory.terminated,
                )
                ticks += 1
            episodes.append(episode_of(trajectory, task, manifest.action, manifest.rate))
    if not episodes:
        shutil.rmtree(bag)
    return episodes
