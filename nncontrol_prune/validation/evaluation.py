"""Closed-loop evaluation of a controller as it is deployed: its ONNX policy, at the control rate, within its limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.limits import ActionLimits
from nncontrol_prune.controllers.policy import Policy, load_policy
from nncontrol_prune.controllers.specs import POLICY, Manifest
from nncontrol_prune.controllers.verdict import EpisodeSummary
from nncontrol_prune.plants.environments import check_controller, environment_specs, make_environment
from nncontrol_prune.plants.tasks import task_of


@dataclass(frozen=True)
class Episode:
    """What happened in one episode."""

    seed: int
    episode_return: float
    success: bool
    steps: int


def check_environment(manifest: Manifest, environment: str) -> None:
    """Check that a controller fits an environment.

    Raises:
        PlantError: It does not, or there is no such environment.
    """
    check_controller(manifest, environment_specs(environment))


def run_episodes(bundle: Bundle, environment: str, seeds: Sequence[int], *, jobs: int = 1) -> list[Episode]:
    """Run one episode for each seed; the same numbers whatever the number of workers.

    Args:
        bundle: The controller.
        environment: A gymnasium id.
        seeds: Seeds of the episodes' starts.
        jobs: Processes that share the work.

    Raises:
        PlantError: There is no such environment.
    """
    model, manifest = bundle.files[POLICY], bundle.manifest
    jobs = min(jobs, len(seeds))
    if jobs <= 1:
        return _run_episodes(model, manifest, environment, seeds)
    shares = [list(seeds[start::jobs]) for start in range(jobs)]
    done = joblib.Parallel(n_jobs=jobs)(joblib.delayed(_run_episodes)(model, manifest, environment, s) for s in shares)
    by_seed = {episode.seed: episode for share in done for episode in share}
    return [by_seed[seed] for seed in seeds]


def _run_episodes(model: bytes, manifest: Manifest, environment: str, seeds: Sequence[int]) -> list[Episode]:
    policy = load_policy(model, manifest.architecture, manifest.observation.size, manifest.action.size)
    env = make_environment(environment)
    try:
        return [run_episode(policy, manifest, env, environment, seed) for seed in seeds]
    finally:
        env.close()


def run_episode(
    policy: Policy,
    manifest: Manifest,
    env: Any,
    environment: str,
    seed: int,
    on_transition: Callable[[int, Any, Any, float, bool, bool], None] | None = None,
) -> Episode:
    """Run one episode.

    Args:
        policy: The controller's policy.
        manifest: The controller's manifest.
        env: The environment, made from `environment`.
        environment: Its gymnasium id, which names the task.
        seed: Seed of the start.
        on_transition: Called after every step with its number, the observation it started from, the action, the
            reward, and whether the episode was terminated or truncated.
    """
    task = task_of(environment)
    limits = ActionLimits(manifest.action)
    action = np.zeros(manifest.action.size)
    observation, _ = env.reset(seed=seed)
    policy.reset()
    total, step, away, done, terminated = 0.0, 0, 0, False, False
    while not done:
        policy.act(observation, action)
        policy.advance()
        limits.apply(action)
        before = observation
        observation, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        if on_transition is not None:
            on_transition(step, before, action, float(reward), terminated, truncated)
        step += 1
        if task.goal is not None and not task.goal(observation):
            away = step
        done = terminated or truncated
    held = (step - away) / manifest.rate
    success = not terminated and (task.goal is None or held >= task.hold)
    return Episode(seed=seed, episode_return=total, success=success, steps=step)


def summarize(bundle: Bundle, episodes: Sequence[Episode]) -> EpisodeSummary:
    """Summarize a controller's episodes."""
    returns = np.array([episode.episode_return for episode in episodes])
    return EpisodeSummary(
        controller=bundle.reference,
        episodes=len(episodes),
        successes=sum(episode.success for episode in episodes),
        return_mean=float(returns.mean()),
        return_std=float(returns.std(ddof=1)) if len(returns) > 1 else 0.0,
    )
