"""What a report shows beside the verdict: episodes of both controllers, and how their loops behave near and far.

Nothing here decides anything. It is cut short where it would take long: planners are started from fewer places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.latency import latencies_in_turns
from nncontrol_prune.controllers.specs import ActionSpec, Spec
from nncontrol_prune.plants.conditions import Conditions
from nncontrol_prune.plants.environments import PlantError
from nncontrol_prune.plants.tasks import Signal, Task, task_of
from nncontrol_prune.progress import Progress
from nncontrol_prune.validation.closed_loop import Trajectory
from nncontrol_prune.validation.decrease import Decrease, quadratic_decrease, value_decrease
from nncontrol_prune.validation.episode_cache import EpisodeCache
from nncontrol_prune.validation.evaluation import run_episodes, trajectories
from nncontrol_prune.validation.growth import Growth, perturbation_growth
from nncontrol_prune.validation.metrics import Episode, episode_of
from nncontrol_prune.validation.settings import GateSettings
from nncontrol_prune.validation.stability import LocalStability, NoEquilibriumError, local_stability

EPISODES = 5
"""Episodes that are looked at."""
RESPONSES = 3
"""Episodes of those that are drawn."""
PLANNED_STARTS = 40
"""Starts in the picture of the region of attraction where a planner has to plan from each."""
LATENCY_RUNS, LATENCY_TURNS = 100, 5
DIGITS = 5
"""Of the numbers that are drawn; more would only make the page larger."""


def _as_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


Number = Annotated[float, PlainSerializer(_as_json, when_used="json")]
"""NaN and infinity are written as strings: JSON has none, and a plant that blew up is what a report has to show."""
Numbers = tuple[Number, ...]


class Track(Spec):
    """What one controller did in an episode."""

    signals: dict[str, Numbers]
    """By label, at each tick."""
    commands: dict[str, Numbers]
    """By joint."""
    success: bool
    episode_return: Number


class Response(Spec):
    """Both controllers from the same start."""

    seed: int
    dense: Track
    pruned: Track


class Attraction(Spec):
    """From which starts each controller succeeds, in a plane through the box of starts."""

    labels: tuple[str, str]
    """What the two states are called."""
    starts: tuple[tuple[float, float], ...]
    dense: tuple[bool, ...]
    pruned: tuple[bool, ...]


class Evidence(Spec):
    """What a report shows beside the verdict."""

    responses: tuple[Response, ...]
    dense_episodes: tuple[Episode, ...] = ()
    """What is measured of the episodes that are drawn, and of some more."""
    pruned_episodes: tuple[Episode, ...] = ()
    dense_local: LocalStability | None = None
    """The dense controller's loop near rest; None where there is no such place."""
    pruned_local: LocalStability | None = None
    decrease: Decrease | None = None
    """None where neither loop has a function that should decrease."""
    dense_growth: Growth | None = None
    """Looked at where there is no such function."""
    pruned_growth: Growth | None = None
    attraction: Attraction | None = None
    """None where the task knows no box of starts."""
    dense_latencies: Numbers
    """Seconds that actions took on this machine, in ascending order."""
    pruned_latencies: Numbers
    notes: tuple[str, ...] = ()
    """What was not looked at, and why."""


def gather(
    candidate: Bundle,
    dense: Bundle,
    environment: str,
    settings: GateSettings,
    progress: Progress | None = None,
    *,
    cache: EpisodeCache | None = None,
) -> Evidence:
    """Run what there is to be shown.

    Args:
        candidate: The controller that was judged.
        dense: The one that it was judged against.
        environment: A gymnasium id.
        settings: The gate's.
        progress: Told of every step, and asked whether to stop.
        cache: Where the dense controller's episodes are kept.

    Raises:
        PlantError: There is no such environment, or it raises.
        Cancelled: `progress` said so.
    """
    progress = progress or Progress()
    task = settings.task or task_of(environment)
    progress("report", 0.0)
    seeds = range(settings.first_seed, settings.first_seed + EPISODES)
    usual = Conditions(delay=settings.delay)
    ours, theirs = ([*trajectories(bundle, environment, seeds, usual)] for bundle in (candidate, dense))
    action, rate = dense.manifest.action, dense.manifest.rate
    measured = [tuple(episode_of(one, task, action, rate) for one in some) for some in (ours, theirs)]
    drawn = zip(seeds[:RESPONSES], ours, measured[0], theirs, measured[1], strict=False)
    responses = [
        Response(
            seed=seed, dense=_track(their, their_episode, task, action), pruned=_track(mine, my_episode, task, action)
        )
        for seed, mine, my_episode, their, their_episode in drawn
    ]
    progress("report", 0.2)
    attraction = _attraction(candidate, dense, environment, settings, task, cache)
    progress("report", 0.6)
    local, notes = _local(candidate, dense, environment, settings.delay)
    decrease = value_decrease(dense, (ours, theirs))
    if decrease is None and local[0] is not None and local[1] is not None:
        decrease = quadratic_decrease((candidate, local[0]), (dense, local[1]), environment, delay=settings.delay)
    progress("report", 0.8)
    growths = [None, None] if decrease else [_growth(bundle, environment) for bundle in (candidate, dense)]
    if settings.delay and any(growths):
        notes.append(f"how fast perturbations grow: without the delay of {settings.delay} ticks")
    progress("report", 0.9)
    taken = latencies_in_turns((candidate, dense), LATENCY_RUNS, LATENCY_TURNS)
    seconds = [np.sort(times, axis=None) for times in taken]
    return Evidence(
        responses=tuple(responses),
        dense_episodes=measured[1],
        pruned_episodes=measured[0],
        dense_local=local[1],
        pruned_local=local[0],
        decrease=decrease,
        dense_growth=growths[1],
        pruned_growth=growths[0],
        attraction=attraction,
        dense_latencies=numbers(seconds[1]),
        pruned_latencies=numbers(seconds[0]),
        notes=tuple(notes),
    )


def _track(trajectory: Trajectory, episode: Episode, task: Task, action: ActionSpec) -> Track:
    signals = task.signals or {"first observation": Signal(entry=0)}
    return Track(
        signals={signal.label(name): numbers(signal.of(trajectory.observations)) for name, signal in signals.items()},
        commands={joint: numbers(trajectory.actions[:, index]) for index, joint in enumerate(action.joints)},
        success=episode.success,
        episode_return=episode.episode_return,
    )


def _attraction(
    candidate: Bundle,
    dense: Bundle,
    environment: str,
    settings: GateSettings,
    task: Task,
    cache: EpisodeCache | None,
) -> Attraction | None:
    if task.starts is None or not settings.attraction_starts:
        return None
    plane, conditions = task.starts.plane, Conditions(delay=settings.delay, starts=task.starts.slice)
    plans = candidate.manifest.plans or dense.manifest.plans
    seeds = range(min(PLANNED_STARTS, settings.attraction_starts) if plans else settings.attraction_starts)
    ours, theirs = (
        run_episodes(bundle, environment, seeds, conditions, task=task, jobs=settings.jobs, cache=kept)
        for bundle, kept in ((candidate, None), (dense, cache))
    )
    starts = [start for start in map(conditions.start, seeds) if start is not None]
    return Attraction(
        labels=(task.starts.names[plane[0]], task.starts.names[plane[1]]),
        starts=tuple((float(start[plane[0]]), float(start[plane[1]])) for start in starts),
        dense=tuple(episode.success for episode in theirs),
        pruned=tuple(episode.success for episode in ours),
    )


def _local(
    candidate: Bundle, dense: Bundle, environment: str, delay: int
) -> tuple[list[LocalStability | None], list[str]]:
    found: list[LocalStability | None] = []
    reasons: dict[str, str] = {}
    for who, bundle in (("pruned", candidate), ("dense", dense)):
        try:
            found.append(local_stability(bundle, environment, delay=delay))
        except (NoEquilibriumError, PlantError) as error:
            found.append(None)
            reasons[who] = str(error)
    if len(reasons) == 2 and len(set(reasons.values())) == 1:
        return found, [f"local stability: not applicable, {reasons['dense']}"]  # as the gate says it
    return found, [f"local stability of the {who} controller: not applicable, {why}" for who, why in reasons.items()]


def _growth(bundle: Bundle, environment: str) -> Growth | None:
    try:
        return perturbation_growth(bundle, environment)
    except PlantError:  # its observation cannot be had from its state, which the notes on local stability say
        return None


def numbers(values: Sequence[float] | NDArray[np.float64]) -> Numbers:
    """Return numbers as they are drawn."""
    return tuple(float(f"{value:.{DIGITS}g}") for value in values)
