from __future__ import annotations

import os
from pathlib import Path

import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.environments import PlantError
from nncontrol_prune.validation import evaluation
from nncontrol_prune.validation.episode_cache import EpisodeCache
from nncontrol_prune.validation.evaluation import run_episodes, trajectories

SEEDS = [5, 1, 4, 2, 9]


def test_episodes_come_in_the_order_of_their_seeds_with_any_number_of_workers(
    small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, in_threads = (run_episodes(small_bundle, CARTPOLE, SEEDS, jobs=jobs) for jobs in (1, 2))
    monkeypatch.setattr(evaluation, "_runs_in_threads", lambda *_: False)
    in_processes = run_episodes(small_bundle, CARTPOLE, SEEDS, jobs=2)
    assert [episode.seed for episode in alone] == SEEDS
    assert alone == in_threads == in_processes


def test_success_needs_the_goal_to_be_held_at_the_end(shipped_bundle: Bundle, small_bundle: Bundle) -> None:
    assert run_episodes(shipped_bundle, CARTPOLE, [0])[0].success
    assert not run_episodes(small_bundle, CARTPOLE, [0])[0].success


def test_trajectories_come_in_the_order_of_the_seeds(small_bundle: Bundle) -> None:
    done = list(trajectories(small_bundle, CARTPOLE, SEEDS))
    assert [trajectory.seed for trajectory in done] == SEEDS
    assert all(trajectory.observations[0, 1] < -0.9 for trajectory in done), "hanging"


def test_episodes_that_are_kept_are_not_run_again(
    tmp_path: Path, small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = EpisodeCache(tmp_path)
    first = run_episodes(small_bundle, CARTPOLE, [1, 2], cache=cache)
    asked: list[list[int]] = []
    run = evaluation._episodes

    def noted(model, manifest, environment, task, seeds, *rest):
        asked.append(list(seeds))
        return run(model, manifest, environment, task, seeds, *rest)

    monkeypatch.setattr(evaluation, "_episodes", noted)
    assert run_episodes(small_bundle, CARTPOLE, [2, 3, 1], cache=cache)[::2] == first[::-1]
    assert asked == [[3]]


def test_planner_gives_the_same_numbers_whatever_else_is_run(monkeypatch: pytest.MonkeyPatch, planner: Bundle) -> None:
    monkeypatch.setattr(evaluation, "PLANNED_TOGETHER", 2)
    both, one = run_episodes(planner, CARTPOLE, [4, 3]), run_episodes(planner, CARTPOLE, [3])
    assert [episode.seed for episode in both] == [4, 3]
    assert one == both[1:]


def test_episodes_of_a_worker_that_died_are_run_again_and_none_twice(
    tmp_path: Path, small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, run = tmp_path / "died", evaluation._episodes

    def dies_once(model, manifest, environment, task, seeds, *rest):
        if 1 in seeds and not mark.exists():
            mark.touch()
            os._exit(1)
        return run(model, manifest, environment, task, seeds, *rest)

    monkeypatch.setattr(evaluation, "_runs_in_threads", lambda *_: False)
    expected = run_episodes(small_bundle, CARTPOLE, SEEDS)
    monkeypatch.setattr(evaluation, "_episodes", dies_once)
    assert run_episodes(small_bundle, CARTPOLE, SEEDS, jobs=2) == expected
    assert mark.exists()


def test_workers_that_go_on_dying_are_given_up(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_runs_in_threads", lambda *_: False)
    monkeypatch.setattr(evaluation, "_episodes", _dies)
    monkeypatch.setattr(evaluation, "ATTEMPTS", 2)
    with pytest.raises(PlantError, match="died 2 times"):
        run_episodes(small_bundle, CARTPOLE, [1, 2], jobs=2)


def _dies(*_) -> None:
    os._exit(1)


def test_reward_that_is_no_number_is_told_with_the_seed(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    run = evaluation._trajectories

    def spoilt(*arguments):
        for trajectory in run(*arguments):
            trajectory.rewards[7] = float("nan")
            yield trajectory

    monkeypatch.setattr(evaluation, "_trajectories", spoilt)
    with pytest.raises(PlantError, match="gave a reward that is no number in the episode with seed 4"):
        run_episodes(small_bundle, CARTPOLE, [4])
