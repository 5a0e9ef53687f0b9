from __future__ import annotations

from pathlib import Path

import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.conditions import Conditions
from nncontrol_prune.plants.environments import PlantError
from nncontrol_prune.plants.tasks import Signal, Task, task_of
from nncontrol_prune.validation import selection
from nncontrol_prune.validation.episode_cache import EpisodeCache
from nncontrol_prune.validation.metrics import Episode
from nncontrol_prune.validation.selection import (
    FIRST_EPISODES,
    OBSERVATION_EPISODES,
    SELECTION_EPISODES,
    TRIAL_EPISODES,
    ClosedLoop,
)
from nncontrol_prune.validation.settings import GateSettings, RobustnessSettings

NO_OTHERS = GateSettings(robustness=RobustnessSettings(enabled=False), attraction_starts=0)
HEAVIER = NO_OTHERS.model_copy(
    update={"robustness": RobustnessSettings(push=0.0, noise=0.0, more_delay=0, mass=0.2, friction=0.0)}
)
"""Asks for two conditions: more mass, and less."""
ANYWHERE = NO_OTHERS.model_copy(update={"attraction_starts": 256})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, make_episode):
    """Return the episodes run, as (number of them, workers, conditions), and a function that scripts a controller's."""
    asked: list[tuple[int, int, Conditions]] = []
    scripts: dict[str, tuple[list[bool], float, int, float]] = {}

    def script(bundle: Bundle, successes: list[bool], mean: float, elsewhere: int = 5, kept: float = 1.0) -> None:
        """Elsewhere it succeeds in so many of every five episodes, and keeps so much of its return."""
        scripts[bundle.digest] = successes, mean, elsewhere, kept * mean

    def run_episodes(
        bundle: Bundle,
        environment: str,
        seeds: range,
        conditions: Conditions,
        *,
        task: Task,
        jobs: int,
        cache: EpisodeCache | None,
    ) -> list[Episode]:
        asked.append((len(seeds), jobs, conditions))
        successes, mean, elsewhere, mean_elsewhere = scripts[bundle.digest]
        if conditions != Conditions():
            mean = mean_elsewhere
            successes = [number % 5 < elsewhere for number in range(len(seeds))]
        first = seeds[0] - selection.SELECTION_SEED
        return [
            make_episode(seed=seed, success=successes[first + number], episode_return=mean)
            for number, seed in enumerate(seeds)
        ]

    monkeypatch.setattr(selection, "run_episodes", run_episodes)
    return asked, script


ALL = [True] * SELECTION_EPISODES


def test_successes_count_before_the_return(run, small_bundle: Bundle, pendulum: Bundle, shipped_bundle: Bundle) -> None:
    _, script = run
    script(small_bundle, [*ALL[1:], False], 900.0)
    script(pendulum, ALL, 700.0)
    script(shipped_bundle, ALL, 800.0)
    assert ClosedLoop(CARTPOLE, shipped_bundle, NO_OTHERS).best([small_bundle, pendulum, shipped_bundle]) == 2


def test_what_fails_early_is_given_up_and_no_episode_is_run_twice(
    run, small_bundle: Bundle, pendulum: Bundle, shipped_bundle: Bundle
) -> None:
    asked, script = run
    script(small_bundle, [*[False] * 3, *ALL[3:]], 900.0)
    script(pendulum, ALL, 700.0)
    script(shipped_bundle, ALL, 800.0)
    loop = ClosedLoop(CARTPOLE, shipped_bundle, NO_OTHERS)
    assert loop.best([small_bundle, pendulum]) == 1
    assert [count for count, *_ in asked] == [FIRST_EPISODES, FIRST_EPISODES]
    assert loop.best([pendulum, shipped_bundle]) == 1
    assert [count for count, *_ in asked[2:]] == [FIRST_EPISODES, *[SELECTION_EPISODES - FIRST_EPISODES] * 2]
    loop.enough(pendulum)
    assert len(asked) == 5


def test_workers_are_given_all_episodes_at_once_and_change_nothing(
    run, small_bundle: Bundle, pendulum: Bundle, shipped_bundle: Bundle
) -> None:
    asked, script = run
    script(small_bundle, [*[False] * 3, *ALL[3:]], 900.0)
    script(pendulum, ALL, 700.0)
    assert ClosedLoop(CARTPOLE, shipped_bundle, NO_OTHERS, jobs=2).best([small_bundle, pendulum]) == 1
    assert asked == [(SELECTION_EPISODES, 2, Conditions())] * 2


@pytest.mark.parametrize(
    ("successes", "mean", "dense_mean", "enough"),
    [(10, 785.0, 800.0, True), (10, 783.0, 800.0, False), (9, 850.0, 800.0, False), (10, -101.0, -100.0, True)],
)
def test_enough_is_to_do_as_the_dense_controller_does(
    run, small_bundle: Bundle, shipped_bundle: Bundle, successes: int, mean: float, dense_mean: float, enough: bool
) -> None:
    _, script = run
    script(shipped_bundle, ALL, dense_mean)
    script(small_bundle, [number < successes for number in range(SELECTION_EPISODES)], mean)
    assert ClosedLoop(CARTPOLE, shipped_bundle, NO_OTHERS).enough(small_bundle) is enough


@pytest.mark.parametrize(
    ("first_elsewhere", "elsewhere", "mean", "better"),
    [
        (5, 4, 900.0, False),  # a higher return does not make up for falling in a fifth of the episodes
        (3, 5, 750.0, True),  # 4 % of the return missed and 1 % of that elsewhere, and 35 % of the successes there
        (3, 5, 640.0, True),  # 18 % and 15 %, and 35 %
        (3, 5, 400.0, False),  # 48 % and 45 %, and 35 %
    ],
)
def test_robustness_and_return_count_as_far_as_they_are_missed(
    run,
    small_bundle: Bundle,
    pendulum: Bundle,
    shipped_bundle: Bundle,
    first_elsewhere: int,
    elsewhere: int,
    mean: float,
    better: bool,
) -> None:
    _, script = run
    script(shipped_bundle, ALL, 800.0)
    script(small_bundle, ALL, 800.0, first_elsewhere)
    script(pendulum, ALL, mean, elsewhere)
    assert ClosedLoop(CARTPOLE, shipped_bundle, HEAVIER).best([small_bundle, pendulum]) == better


def test_what_the_gate_lets_pass_is_not_missed(
    run, small_bundle: Bundle, pendulum: Bundle, shipped_bundle: Bundle
) -> None:
    _, script = run
    script(shipped_bundle, ALL, 800.0, 3)
    script(small_bundle, ALL, 790.0, 5)  # more robust than was asked
    script(pendulum, ALL, 800.0, 3)
    loop = ClosedLoop(CARTPOLE, shipped_bundle, HEAVIER)
    assert loop.best([small_bundle, pendulum]) == 1
    assert loop.enough(small_bundle)
    assert loop.enough(pendulum)
    script(small_bundle, ALL, 800.0, 2)
    assert not ClosedLoop(CARTPOLE, shipped_bundle, HEAVIER).enough(small_bundle)


@pytest.mark.parametrize(("elsewhere", "enough"), [(4, True), (3, False)])
def test_half_of_the_margin_for_robustness_may_be_lost(
    run, small_bundle: Bundle, shipped_bundle: Bundle, elsewhere: int, enough: bool
) -> None:
    _, script = run
    script(shipped_bundle, ALL, 800.0)
    script(small_bundle, ALL, 800.0, elsewhere)
    wide = HEAVIER.model_copy(update={"robustness": HEAVIER.robustness.model_copy(update={"margin": 0.4})})
    assert ClosedLoop(CARTPOLE, shipped_bundle, wide).enough(small_bundle) is enough


@pytest.mark.parametrize(("kept", "enough"), [(0.96, True), (0.94, False)])
def test_half_of_the_return_that_may_be_lost_under_conditions_may_be_lost(
    run, small_bundle: Bundle, shipped_bundle: Bundle, kept: float, enough: bool
) -> None:
    _, script = run
    script(shipped_bundle, ALL, 800.0)
    script(small_bundle, ALL, 800.0, kept=kept)
    assert ClosedLoop(CARTPOLE, shipped_bundle, HEAVIER).enough(small_bundle) is enough


def test_starts_from_anywhere_count_too(run, small_bundle: Bundle, shipped_bundle: Bundle) -> None:
    asked, script = run
    script(shipped_bundle, ALL, 800.0)
    script(small_bundle, ALL, 800.0, 4)
    assert not ClosedLoop(CARTPOLE, shipped_bundle, ANYWHERE).enough(small_bundle)
    starts = [(count, conditions.starts) for count, _, conditions in asked if conditions != Conditions()]
    assert starts == [(TRIAL_EPISODES, task_of(CARTPOLE).starts.bounds)] * 2


def test_what_fails_as_it_is_need_not_be_tried_elsewhere(
    run, small_bundle: Bundle, pendulum: Bundle, shipped_bundle: Bundle
) -> None:
    asked, script = run
    script(shipped_bundle, ALL, 800.0)
    script(small_bundle, [*ALL[1:], False], 800.0)
    script(pendulum, ALL, 800.0)
    loop = ClosedLoop(CARTPOLE, shipped_bundle, HEAVIER)
    assert loop.best([small_bundle, pendulum]) == 1
    assert not loop.enough(small_bundle)
    assert {conditions for *_, conditions in asked} == {Conditions()}
    assert loop.enough(pendulum)
    assert {conditions.mass for *_, conditions in asked} == {0.8, 1.0, 1.2}


def test_what_returns_less_than_one_that_misses_nothing_need_not_be_tried_elsewhere(
    run, small_bundle: Bundle, pendulum: Bundle, shipped_bundle: Bundle
) -> None:
    asked, script = run
    for bundle, mean in ((shipped_bundle, 800.0), (small_bundle, 790.0), (pendulum, 795.0)):
        script(bundle, ALL, mean)
    assert ClosedLoop(CARTPOLE, shipped_bundle, HEAVIER).best([small_bundle, pendulum]) == 1
    elsewhere = [conditions for *_, conditions in asked if conditions != Conditions()]
    assert len(elsewhere) == 4, "the dense controller and one candidate, two conditions each"


def test_the_dense_controllers_episodes_are_kept_and_no_candidates(
    shipped_bundle: Bundle, small_bundle: Bundle, tmp_path: Path
) -> None:
    cache = EpisodeCache(tmp_path)
    loop = ClosedLoop(CARTPOLE, shipped_bundle, NO_OTHERS, cache=cache)
    assert loop.enough(shipped_bundle)
    assert not loop.enough(small_bundle)
    read = [cache.read(bundle, CARTPOLE, Conditions(), task_of(CARTPOLE)) for bundle in (shipped_bundle, small_bundle)]
    assert [len(episodes) for episodes in read] == [SELECTION_EPISODES, 0]


def test_planners_are_not_tried_elsewhere(run, planner: Bundle) -> None:
    asked, script = run
    script(planner, ALL, 800.0)
    assert ClosedLoop(CARTPOLE, planner, HEAVIER).enough(planner)
    assert {conditions for *_, conditions in asked} == {Conditions()}


def test_the_task_and_the_delay_are_the_gates(monkeypatch: pytest.MonkeyPatch, shipped_bundle: Bundle) -> None:
    task = task_of(CARTPOLE).model_copy(update={"hold": 1000.0})  # longer than an episode
    delayed = NO_OTHERS.model_copy(update={"delay": 3, "task": task})
    seen = set[Conditions]()
    run_episodes, trajectories = selection.run_episodes, selection.trajectories

    def watched_episodes(bundle, environment, seeds, conditions, **rest):
        seen.add(conditions)
        return run_episodes(bundle, environment, seeds, conditions, **rest)

    def watched_trajectories(bundle, environment, seeds, conditions):
        seen.add(conditions)
        return trajectories(bundle, environment, seeds[:1], conditions)

    monkeypatch.setattr(selection, "run_episodes", watched_episodes)
    monkeypatch.setattr(selection, "trajectories", watched_trajectories)
    loop = ClosedLoop(CARTPOLE, shipped_bundle, delayed)
    assert loop.enough(shipped_bundle)
    assert len(loop.observations(shipped_bundle)) > OBSERVATION_EPISODES
    assert seen == {Conditions(delay=3)}
    assert loop._summary(shipped_bundle, SELECTION_EPISODES).successes == 0


def test_a_task_that_does_not_fit_is_refused(shipped_bundle: Bundle) -> None:
    task = task_of(CARTPOLE).model_copy(update={"signals": {"height": Signal(entry=99, unit="m")}})
    with pytest.raises(PlantError, match="the task does not fit"):
        ClosedLoop(CARTPOLE, shipped_bundle, NO_OTHERS.model_copy(update={"task": task}))
