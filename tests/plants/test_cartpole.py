from __future__ import annotations

import numpy as np
from gymnasium.utils.env_checker import check_env

from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.cartpole import rewards_of
from nncontrol_prune.plants.environments import make_environment
from nncontrol_prune.validation.evaluation import run_episodes, summarize


def test_environment_follows_the_gymnasium_api() -> None:
    check_env(make_environment(CARTPOLE).unwrapped, skip_render_check=True)


def test_it_starts_hanging_and_takes_ten_seconds() -> None:
    env = make_environment(CARTPOLE)
    observation, _ = env.reset(seed=1)
    assert observation[1] < -0.9
    steps, truncated = 0, False
    while not truncated:
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        steps += 1
        assert 0.0 <= reward <= 1.0
        assert not terminated
    assert steps == 1000


def test_reward_is_one_upright_at_rest() -> None:
    upright, hanging = [0.0, 1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0, 0.0]
    np.testing.assert_array_equal(rewards_of(np.array([upright, hanging]), np.zeros(2)), [1.0, 0.0])


def test_it_renders_without_a_screen() -> None:
    env = make_environment(CARTPOLE, render_mode="rgb_array")
    env.reset(seed=0)
    image = env.render()
    env.close()
    assert image.ndim == 3
    assert image.std() > 1


def test_shipped_controller_swings_up_and_balances(shipped_bundle) -> None:
    done = summarize(shipped_bundle, run_episodes(shipped_bundle, CARTPOLE, range(50)))
    assert done.successes >= 49
