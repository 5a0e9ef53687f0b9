from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.validation.decrease import quadratic_decrease, share_not_falling, value_decrease
from nncontrol_prune.validation.evaluation import trajectories
from nncontrol_prune.validation.stability import local_stability
from tests.validation.changes import amplify, changed

PENDULUM = "InvertedDoublePendulum-v5"


def test_share_is_of_the_states_outside_the_ball() -> None:
    found = share_not_falling([np.array([1.0, 0.5, 0.6, 0.2, 0.005, 0.009, 0.001])])
    assert (found.share, found.states) == (0.25, 4)


def test_interval_is_over_episodes() -> None:
    falling, rising = np.array([1.0, 0.5, 0.2]), np.array([1.0, 1.5, 2.0])
    found = share_not_falling([falling, falling, falling, rising])
    assert found.share == 0.25
    assert found.interval == (0.0, 1.0)
    assert share_not_falling([falling] * 4).interval == (0.0, 0.0)


def test_no_state_outside_the_ball_is_no_share() -> None:
    assert share_not_falling([np.zeros(5)]).states == 0


def test_quadratic_function_falls_less_often_near_the_gain_margin(pendulum: Bundle) -> None:
    nearly = changed(pendulum, amplify(0.55))  # 0.48 is the margin
    local = local_stability(pendulum, PENDULUM), local_stability(nearly, PENDULUM)
    found = quadratic_decrease((nearly, local[1]), (pendulum, local[0]), PENDULUM)
    assert found is not None
    assert found.dense.share < 0.2
    assert found.pruned.share > found.dense.share


def test_there_is_no_quadratic_function_of_an_unstable_loop(pendulum: Bundle) -> None:
    stable = local_stability(pendulum, PENDULUM)
    unstable = stable.model_copy(update={"lyapunov": None})
    assert quadratic_decrease((pendulum, unstable), (pendulum, stable), PENDULUM) is None


def test_value_of_a_planner_falls_where_it_fails(planner: Bundle) -> None:
    short = [
        dataclasses.replace(done, observations=done.observations[:300])
        for done in trajectories(planner, CARTPOLE, [0, 1])
    ]
    backwards = [dataclasses.replace(done, observations=done.observations[::-1].copy()) for done in short]
    found = value_decrease(planner, (backwards, short))
    assert found is not None
    assert found.dense.share < 0.5 < found.pruned.share


def test_controller_without_a_value_has_none(shipped_bundle: Bundle) -> None:
    done = list(trajectories(shipped_bundle, CARTPOLE, [0]))
    assert value_decrease(shipped_bundle, (done, done)) is None


@pytest.mark.parametrize("rows", [2, 5])
def test_function_that_stays_does_not_fall(rows: int) -> None:
    assert share_not_falling([np.ones(rows)]).share == 1.0
