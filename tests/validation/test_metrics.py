from __future__ import annotations

import numpy as np
import pytest

from nncontrol_prune.controllers.specs import ActionSpec
from nncontrol_prune.plants.tasks import Signal, Task
from nncontrol_prune.validation.closed_loop import Trajectory
from nncontrol_prune.validation.metrics import episode_of, signal_metrics

RATE = 10.0
SIGNAL = Signal(entry=0, unit="m", reference=2.0)
ACTION = ActionSpec(joints=("a",), lower=(-1.0,), upper=(3.0,))


def metrics(values: list[float], signal: Signal = SIGNAL):
    return signal_metrics(signal, np.array(values)[:, None], RATE)


def trajectory(observations: list[float], actions: list[float], terminated: bool = False) -> Trajectory:
    return Trajectory(
        seed=3,
        observations=np.array(observations)[:, None],
        actions=np.array(actions)[:, None],
        rewards=np.ones(len(actions)),
        terminated=terminated,
        faults=0,
    )


def test_settling_time_is_when_the_band_is_not_left_any_more() -> None:
    found = metrics([1.0, 2.01, 1.5, 1.99, 2.0, 2.0])
    assert found.settling_time == pytest.approx(0.3)
    assert metrics([1.0, 1.5, 2.0, 1.5]).settling_time is None
    assert metrics([2.0, 2.0]).settling_time == 0.0


def test_overshoot_is_the_largest_error_after_the_reference_was_crossed() -> None:
    assert metrics([1.0, 1.8, 2.3, 1.9, 2.0]).overshoot == pytest.approx(0.3)
    assert metrics([0.0, 1.0, 1.5]).overshoot == 0.0


def test_angle_that_swings_through_pi_has_not_crossed_its_reference() -> None:
    angle = Signal(entry=0, unit="rad", scale=np.pi)
    assert metrics([3.1, -3.1, -2.0, -1.0, 0.0, 0.0], angle).overshoot == pytest.approx(0.0, abs=1e-12)


def test_what_is_no_angle_may_cross_its_reference_in_large_steps() -> None:
    values = [-40.0, -25.0, -10.0, 12.0, 25.0, 20.0, 10.0, 3.0, 0.5, 0.0]
    speed = Signal(entry=0, unit="rad/s", scale=50.0)
    assert metrics(values, speed).overshoot == pytest.approx(0.5)


@pytest.mark.parametrize(("last", "success"), [(2.1, True), (9.0, False)])
def test_goal_without_a_time_to_hold_it_has_to_be_reached_in_the_end(last: float, success: bool) -> None:
    task = Task(signals={"x": Signal(entry=0, reference=2.0)}, goal={"x": 0.5})
    assert task.success.endswith("of its reference at the end")
    assert episode_of(trajectory([0.0, 2.0, last], [0.0, 0.0]), task, ACTION, RATE).success == success


def test_angle_held_around_pi_is_held() -> None:
    angles = np.array([3.1, -3.1] * 10)
    found = signal_metrics(
        Signal(sine=0, cosine=1, unit="rad", scale=np.pi, reference=np.pi),
        np.stack([np.sin(angles), np.cos(angles)], axis=1),
        RATE,
    )
    assert found.settling_time == 0.0
    assert found.steady_state_error == pytest.approx(np.pi - 3.1)


def test_steady_state_error_and_itae() -> None:
    found = metrics([1.0] * 10 + [1.9])
    assert found.steady_state_error == pytest.approx(0.1)
    assert found.itae == pytest.approx((sum(range(10)) / 10 * 1.0 + 1.0 * 0.1) / 10)


def test_effort_and_action_rate_are_shares_of_the_range() -> None:
    episode = episode_of(trajectory([0.0] * 4, [2.0, -1.0, 2.0]), Task(), ACTION, RATE)
    assert episode.effort == pytest.approx(np.sqrt((1 + 0.25 + 1) / 3))
    assert episode.action_rate == pytest.approx(0.75 * RATE)


def test_success_needs_the_goal_held_to_the_end_and_no_termination() -> None:
    task = Task(signals={"x": Signal(entry=0, reference=2.0)}, goal={"x": 0.5}, hold=0.2)
    held, left = [0.0, 0.0, 2.0, 2.0], [0.0, 2.0, 2.0, 0.0]
    assert episode_of(trajectory(held, [0.0] * 3), task, ACTION, RATE).success
    assert not episode_of(trajectory(left, [0.0] * 3), task, ACTION, RATE).success
    assert not episode_of(trajectory([0.0, 0.0, 0.0, 2.0], [0.0] * 3), task, ACTION, RATE).success, "not long enough"
    assert not episode_of(trajectory(held, [0.0] * 3, terminated=True), task, ACTION, RATE).success


def test_excursions_are_the_largest_of_every_entry() -> None:
    assert episode_of(trajectory([0.0, -3.0, 2.0], [0.0, 0.0]), Task(), ACTION, RATE).excursions == (3.0,)
