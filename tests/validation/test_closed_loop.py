from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.limits import ActionLimits
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.batch import make_batch
from nncontrol_prune.plants.conditions import Conditions
from nncontrol_prune.plants.environments import make_environment
from nncontrol_prune.plants.tasks import task_of
from nncontrol_prune.validation import closed_loop
from nncontrol_prune.validation.closed_loop import Trajectory, run_closed_loop
from nncontrol_prune.validation.metrics import episode_of


class Faulty:
    """A policy that gives NaN in the third tick."""

    def __init__(self) -> None:
        self.ticks = 0

    def batch(self, observations: np.ndarray) -> np.ndarray:
        self.ticks += 1
        return np.full((len(observations), 1), np.nan if self.ticks == 3 else 4.0, dtype=np.float32)


def run(bundle: Bundle, seeds: list[int], conditions: Conditions | None = None) -> dict[int, Trajectory]:
    plants = make_batch(CARTPOLE, min(closed_loop.WIDTH, len(seeds)), conditions)
    done = {t.seed: t for t in run_closed_loop(bundle.policy, bundle.manifest, plants, seeds, conditions)}
    plants.close()
    return done


def one_at_a_time(bundle: Bundle, seed: int, steps: int, delay: int = 0) -> np.ndarray:
    """Return the actions that reach the plant, as a loop with one plant computes them."""
    env, limits = make_environment(CARTPOLE), ActionLimits(bundle.manifest.action)
    observation, _ = env.reset(seed=seed)
    bundle.policy.reset()
    on_the_way = [np.zeros(1)] * delay
    arrived = []
    for _ in range(steps):
        action = np.zeros(1)
        bundle.policy.act(observation, action)
        bundle.policy.advance()
        limits.apply(action)
        on_the_way.append(action)
        arrived.append(on_the_way.pop(0))
        observation, *_ = env.step(arrived[-1])
    return np.array(arrived)


@pytest.mark.parametrize("delay", [0, 2])
def test_trajectories_are_those_of_a_loop_with_one_plant_to_the_bit(
    shipped_bundle: Bundle, delay: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closed_loop, "WIDTH", 2)
    monkeypatch.setattr(closed_loop, "FIRST_LENGTH", 16)  # so that room is made on the way
    done = run(shipped_bundle, [7, 8, 9], Conditions(delay=delay))
    assert sorted(done) == [7, 8, 9]
    for seed in (7, 9):
        np.testing.assert_array_equal(done[seed].actions[:300], one_at_a_time(shipped_bundle, seed, 300, delay))
    assert len(done[9].rewards) == 1000
    assert done[9].observations.shape == (1001, 5)


def test_planners_carry_a_plan_for_each_plant(planner: Bundle) -> None:
    # Rows of a batch of plans differ from single ones by rounding, which grows.
    done = run(planner, [7, 8, 9])
    for seed in (7, 9):
        np.testing.assert_allclose(done[seed].actions[:12], one_at_a_time(planner, seed, 12), atol=1e-3)


def test_delayed_plant_gets_the_safe_command_first(shipped_bundle: Bundle) -> None:
    actions = run(shipped_bundle, [1], Conditions(delay=3))[1].actions
    assert not actions[:3].any()
    assert actions[3] != 0


def test_episode_ends_for_good_where_nothing_can_be_observed_any_more(
    shipped_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    plants = make_batch(CARTPOLE, 2)
    step, steps = plants.step, iter(range(2000))

    def blow_up(running: np.ndarray, actions: np.ndarray) -> Any:
        done = step(running, actions)
        if next(steps) == 4:
            done.observations[0], done.rewards[0] = np.inf, np.nan
        return done

    monkeypatch.setattr(plants, "step", blow_up)
    first, second = run_closed_loop(shipped_bundle.policy, shipped_bundle.manifest, plants, [1, 2])
    plants.close()
    assert (len(first.rewards), first.terminated) == (5, True)
    assert np.isfinite(first.observations).all()
    assert np.isfinite(first.rewards).all()
    np.testing.assert_array_equal(first.observations[5], first.observations[4])
    assert (len(second.rewards), second.terminated) == (1000, False)
    episode = episode_of(first, task_of(CARTPOLE), shipped_bundle.manifest.action, shipped_bundle.manifest.rate)
    assert not episode.success


def test_actions_that_are_no_numbers_are_counted_and_replaced(shipped_bundle: Bundle) -> None:
    plants = make_batch(CARTPOLE, 2)
    first, second = run_closed_loop(Faulty(), shipped_bundle.manifest, plants, [1, 2])
    plants.close()
    assert (first.faults, second.faults) == (1, 1)
    np.testing.assert_array_equal(first.actions[:4, 0], [4.0, 4.0, 0.0, 4.0])
