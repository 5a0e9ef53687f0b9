from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.mujoco import inverted_pendulum_v5

from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.batch import CartPoleBatch, GymnasiumBatch, make_batch
from nncontrol_prune.plants.conditions import Conditions
from nncontrol_prune.plants.environments import PlantError


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("conditions", [Conditions(), Conditions(mass=1.2, friction=0.5)])
def test_cart_poles_of_a_batch_do_what_single_ones_do_to_the_bit(threads: int, conditions: Conditions) -> None:
    rng = np.random.default_rng(0)
    ours, theirs = CartPoleBatch(7, conditions, threads=threads), GymnasiumBatch(CARTPOLE, 7, conditions)
    for plant in range(7):
        np.testing.assert_array_equal(ours.reset(plant, 10 + plant), theirs.reset(plant, 10 + plant))
    furthest = 0.0
    for step in range(400):
        if step % 50 == 20:
            ours.push(3, 0.4, np.random.default_rng(step))
            theirs.push(3, 0.4, np.random.default_rng(step))
        plants = np.flatnonzero(rng.random(7) < 0.7)
        # In the second half against the end of the rail, where the constraint solver has to work.
        actions = rng.uniform(-10, 10, (len(plants), 1)) if step < 200 else np.full((len(plants), 1), 10.0)
        mine, their = ours.step(plants, actions), theirs.step(plants, actions)
        np.testing.assert_array_equal(mine.observations, their.observations)
        np.testing.assert_array_equal(mine.rewards, their.rewards)
        furthest = max(furthest, mine.observations[:, 0].max())
    assert furthest > 1.8, "at the end of the rail"
    ours.close()
    theirs.close()


@pytest.mark.parametrize("environment", [CARTPOLE, "Hopper-v5"])
def test_episodes_end_when_they_end_alone(environment: str) -> None:
    batch = make_batch(environment, 2)
    batch.reset(0, 0)
    batch.reset(1, 1)
    size = {CARTPOLE: 1, "Hopper-v5": 3}[environment]
    steps = 0
    while True:
        done = batch.step(np.array([1]), np.zeros((1, size)))
        steps += 1
        if done.truncated[0] or done.terminated[0]:
            break
    assert (steps == 1000, bool(done.terminated[0])) == ((True, False) if environment == CARTPOLE else (False, True))
    assert not batch.step(np.array([0]), np.zeros((1, size))).truncated[0], "the other one is still in its first step"
    batch.close()


def test_environment_whose_episodes_need_not_end_is_refused() -> None:
    gymnasium.register("Endless-v0", inverted_pendulum_v5.InvertedPendulumEnv)
    try:
        with pytest.raises(
            PlantError, match="an episode of Endless-v0 need not end; register it with max_episode_steps"
        ):
            make_batch("Endless-v0", 1)
    finally:
        del gymnasium.registry["Endless-v0"]


def test_what_an_environment_raises_is_told_with_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = GymnasiumBatch("Hopper-v5", 2, Conditions())
    batch.reset(0, 16)
    batch.reset(1, 17)

    def broken(*_: object) -> None:
        raise ZeroDivisionError("by hand")

    monkeypatch.setattr(batch._envs[1].unwrapped, "step", broken)
    with pytest.raises(PlantError, match="Hopper-v5 raised ZeroDivisionError in the episode with seed 17: by hand"):
        batch.step(np.array([1]), np.zeros((1, 3)))
    monkeypatch.setattr(batch._envs[0].unwrapped, "reset_model", broken)
    with pytest.raises(PlantError, match="Hopper-v5 raised ZeroDivisionError in the episode with seed 18: by hand"):
        batch.reset(0, 18)
    batch.close()


@pytest.mark.parametrize("environment", [CARTPOLE, "Hopper-v5"])
def test_episodes_start_in_the_state_they_are_given(environment: str) -> None:
    batch = make_batch(environment, 1)
    state = np.array([0.3, 1.0, -0.5, 2.0]) if environment == CARTPOLE else np.array([0.0, 1.3, *[0.01] * 10])
    observation = batch.reset(0, 5, state)
    expected = [0.3, np.cos(1.0), np.sin(1.0), -0.5, 2.0] if environment == CARTPOLE else state[1:]
    np.testing.assert_allclose(observation, expected)
    size = {CARTPOLE: 1, "Hopper-v5": 3}[environment]
    after = batch.step(np.array([0]), np.zeros((1, size))).observations[0]
    assert np.abs(after - observation).max() < 0.5, "and goes on from there"
    batch.close()
