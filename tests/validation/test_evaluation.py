from __future__ import annotations

import numpy as np

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.environments import make_environment
from nncontrol_prune.validation.evaluation import run_episode, run_episodes


def test_same_seed_gives_the_same_episode(shipped_bundle: Bundle) -> None:
    assert run_episodes(shipped_bundle, CARTPOLE, [3]) == run_episodes(shipped_bundle, CARTPOLE, [3])


def test_episodes_come_in_the_order_of_their_seeds_with_any_number_of_workers(small_bundle: Bundle) -> None:
    seeds = [5, 1, 4, 2, 9]
    alone, shared = (run_episodes(small_bundle, CARTPOLE, seeds, jobs=jobs) for jobs in (1, 2))
    assert [episode.seed for episode in alone] == seeds
    assert alone == shared


def test_success_needs_the_goal_to_be_held_at_the_end(shipped_bundle: Bundle, small_bundle: Bundle) -> None:
    assert run_episodes(shipped_bundle, CARTPOLE, [0])[0].success
    assert not run_episodes(small_bundle, CARTPOLE, [0])[0].success


def test_transitions_are_those_of_the_episode(shipped_bundle: Bundle) -> None:
    seen = []
    env = make_environment(CARTPOLE)
    episode = run_episode(
        shipped_bundle.policy, shipped_bundle.manifest, env, CARTPOLE, 1, lambda *row: seen.append((*row[:2], row[3]))
    )
    assert [step for step, *_ in seen] == list(range(1000))
    assert np.isclose(sum(reward for *_, reward in seen), episode.episode_return)
    assert seen[0][1][1] < -0.9, "the first observation is the one the episode started from"
