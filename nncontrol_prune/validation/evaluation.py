"""Evaluation: many episodes of a deployed controller, shared among workers and remembered from one time to the next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import joblib
import numpy as np
from joblib.externals.loky.process_executor import TerminatedWorkerError

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.policy import load_policy
from nncontrol_prune.controllers.specs import POLICY, Manifest
from nncontrol_prune.controllers.verdict import EpisodeSummary
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.batch import PlantBatch, make_batch
from nncontrol_prune.plants.conditions import Conditions
from nncontrol_prune.plants.environments import PlantError, check_controller, environment_specs
from nncontrol_prune.plants.tasks import Task, task_of
from nncontrol_prune.validation.closed_loop import WIDTH, Trajectory, run_closed_loop
from nncontrol_prune.validation.episode_cache import EpisodeCache
from nncontrol_prune.validation.metrics import Episode, episode_of

PLANNED_TOGETHER = 5
"""Episodes of a planner that are run as one batch, always the same ones: each row of its plans depends, by rounding, on
how many rows there are, and twenty ticks later the episodes are others. Five at a time are twice as fast as one."""
ATTEMPTS = 3
"""How often episodes are begun anew whose worker has died."""


def check_environment(manifest: Manifest, environment: str, task: Task | None = None) -> None:
    """Check that a controller fits an environment, and so does a task.

    Raises:
        PlantError: It does not, or there is no such environment.
    """
    specs = environment_specs(environment)
    check_controller(manifest, specs)
    mismatch = None if task is None else task.mismatch(specs.observation.size, specs.states)
    if task is not None and task.starts is not None and specs.wrapper is not None:
        mismatch = f"it has a box of starts, and what the wrapper {specs.wrapper} makes of a state is not known"
    if mismatch is not None:
        raise PlantError(f"the task does not fit {environment}: {mismatch}")


def run_episodes(
    bundle: Bundle,
    environment: str,
    seeds: Sequence[int],
    conditions: Conditions | None = None,
    *,
    task: Task | None = None,
    jobs: int = 1,
    cache: EpisodeCache | None = None,
) -> list[Episode]:
    """Run one episode for each seed; the same numbers whatever the number of workers.

    Args:
        bundle: The controller.
        environment: A gymnasium id.
        seeds: Seeds of the episodes' starts.
        conditions: What is different from the environment as it is.
        task: What the episodes are measured by; by default the environment's own.
        jobs: Workers that share the work: threads where the plant's equations are our own and the controller is no
            planner, otherwise processes.
        cache: Where episodes are looked up before they are run, and kept afterwards.

    Raises:
        PlantError: There is no such environment, it raises, or the workers die.
    """
    conditions, task = conditions or Conditions(), task or task_of(environment)
    known = {} if cache is None else cache.read(bundle, environment, conditions, task)
    missing = [seed for seed in dict.fromkeys(seeds) if seed not in known]
    model, manifest = bundle.files[POLICY], bundle.manifest
    if not missing:
        found = []
    elif jobs == 1 or len(missing) == 1 or _runs_in_threads(manifest, environment):
        found = _episodes(model, manifest, environment, task, missing, conditions, jobs)
    else:
        found = _in_processes(model, manifest, environment, task, missing, conditions, jobs)
    if cache is not None and found:
        cache.add(bundle, environment, conditions, task, found)
    known.update((episode.seed, episode) for episode in found)
    return [known[seed] for seed in seeds]


def trajectories(
    bundle: Bundle, environment: str, seeds: Sequence[int], conditions: Conditions | None = None
) -> Iterator[Trajectory]:
    """Run one episode for each seed, and yield them in the order of the seeds.

    Raises:
        PlantError: There is no such environment, or it raises.
    """
    conditions = conditions or Conditions()
    size = PLANNED_TOGETHER if bundle.manifest.plans else WIDTH
    for first in range(0, len(seeds), size):
        some = seeds[first : first + size]
        done = _trajectories(bundle.files[POLICY], bundle.manifest, environment, some, conditions, 1)
        yield from sorted(done, key=lambda trajectory: some.index(trajectory.seed))


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


def _runs_in_threads(manifest: Manifest, environment: str) -> bool:
    return environment == CARTPOLE and not manifest.plans


def _in_processes(
    model: bytes,
    manifest: Manifest,
    environment: str,
    task: Task,
    seeds: Sequence[int],
    conditions: Conditions,
    jobs: int,
) -> list[Episode]:
    """Share episodes among processes; those of a process that died are run again, and none is counted twice."""
    done: dict[int, Episode] = {}
    for _ in range(ATTEMPTS):
        left = [seed for seed in seeds if seed not in done]
        batches = _batches(manifest, left)
        shares = [[seed for batch in batches[start::jobs] for seed in batch] for start in range(jobs)]
        shares = [share for share in shares if share]
        run = joblib.delayed(_episodes)
        calls = (run(model, manifest, environment, task, share, conditions, 1) for share in shares)
        try:
            for found in joblib.Parallel(n_jobs=len(shares), return_as="generator_unordered")(calls):
                done.update((episode.seed, episode) for episode in found)
        except TerminatedWorkerError:
            continue
        return list(done.values())
    raise PlantError(f"{environment}: the processes that run its episodes died {ATTEMPTS} times, as for want of memory")


def _episodes(
    model: bytes,
    manifest: Manifest,
    environment: str,
    task: Task,
    seeds: Sequence[int],
    conditions: Conditions,
    threads: int,
) -> list[Episode]:
    episodes = []
    for trajectory in _trajectories(model, manifest, environment, seeds, conditions, threads):
        episode = episode_of(trajectory, task, manifest.action, manifest.rate)
        if not math.isfinite(episode.episode_return):
            raise PlantError(f"{environment} gave a reward that is no number in the episode with seed {episode.seed}")
        episodes.append(episode)
    return episodes


def _trajectories(
    model: bytes, manifest: Manifest, environment: str, seeds: Sequence[int], conditions: Conditions, threads: int
) -> Iterator[Trajectory]:
    policy = load_policy(model, manifest.architecture, manifest.observation.size, manifest.action.size)
    wanted = set(seeds)
    together = _batches(manifest, seeds) if manifest.plans else [seeds]
    with _plants(environment, conditions, threads, max(map(len, together))) as plants:
        for batch in together:
            for trajectory in run_closed_loop(policy, manifest, plants, batch, conditions):
                if trajectory.seed in wanted:
                    yield trajectory


@contextmanager
def _plants(environment: str, conditions: Conditions, threads: int, number: int) -> Iterator[PlantBatch]:
    """Lend a batch, kept from the last time if there is one: compiling its models takes as long as some episodes."""
    if (conditions.mass, conditions.friction) != (1.0, 1.0):
        plants = make_batch(environment, min(number, WIDTH), conditions, threads=threads)
        yield plants
        plants.close()
        return
    kept = _kept_plants.setdefault((environment, threads), [])
    plants = kept.pop() if kept else make_batch(environment, WIDTH, threads=threads)
    yield plants
    kept.append(plants)  # unless something was raised, in which case there is no telling what state they are in


_kept_plants: dict[tuple[str, int], list[PlantBatch]] = {}


def _batches(manifest: Manifest, seeds: Sequence[int]) -> list[list[int]]:
    """Return which episodes are run as one batch whatever else is asked for; some of them may not have been."""
    if not manifest.plans:
        return [[seed] for seed in seeds]
    numbers = dict.fromkeys(seed // PLANNED_TOGETHER for seed in seeds)
    return [list(range(PLANNED_TOGETHER * number, PLANNED_TOGETHER * (number + 1))) for number in numbers]
