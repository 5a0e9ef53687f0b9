from __future__ import annotations

import math

import numpy as np
import pytest

from nncontrol_prune.runtime.inputs import Arrival, InputMonitor


def test_states_at_the_controllers_rate_are_all_new() -> None:
    monitor = InputMonitor(0.01, 0.25)
    assert {monitor.judge(tick * 0.01, tick * 0.01) for tick in range(10)} == {Arrival.NEW}
    assert (monitor.gaps, monitor.jumps_back) == (0, 0)


def test_same_stamp_twice_is_a_duplicate() -> None:
    monitor = InputMonitor(0.01, 0.25)
    monitor.judge(1.0, 1.0)
    assert monitor.judge(1.0, 1.0) is Arrival.DUPLICATE
    monitor.forget()
    assert monitor.judge(1.0, 1.0) is Arrival.NEW


def test_old_states_and_those_overtaken_are_late() -> None:
    monitor = InputMonitor(0.01, 0.25)
    assert monitor.judge(1.0, 1.3) is Arrival.LATE
    assert monitor.last_age == 1.3 - 1.0
    assert monitor.judge(1.3, 1.3) is Arrival.NEW
    assert monitor.judge(1.29, 1.31) is Arrival.LATE
    assert monitor.judge(1.32, 1.32) is Arrival.NEW
    assert monitor.jumps_back == 0
    assert monitor.gaps == 1, "between 1.3 and 1.32, whatever came late"


def test_states_far_ahead_of_the_clock_are_new_and_told_apart() -> None:
    monitor = InputMonitor(0.01, 0.25)
    monitor.judge(1.2, 1.0)
    assert monitor.ahead == 0.0
    assert monitor.judge(6.0, 1.0) is Arrival.NEW
    assert monitor.ahead == 5.0


def test_clock_that_jumps_back_is_followed_and_counted() -> None:
    monitor = InputMonitor(0.01, 0.25)
    monitor.judge(100.0, 100.0)
    assert monitor.judge(0.0, 0.0) is Arrival.NEW
    assert monitor.judge(0.01, 0.01) is Arrival.NEW
    assert monitor.jumps_back == 1


def test_where_there_is_no_clock_to_ask_a_state_that_goes_back_is_a_jump() -> None:
    monitor = InputMonitor(0.01, 0.25)
    monitor.judge(1.0, math.nan)
    assert monitor.judge(0.9, math.nan) is Arrival.NEW
    assert monitor.jumps_back == 1


def new_stamps(rate: float, seconds: float = 10.0, jitter: float = 0.0) -> np.ndarray:
    """Return which states a controller of 100 Hz acts on, of those that come at a rate with a jitter, in periods."""
    monitor, noise = InputMonitor(0.01, 0.25), np.random.default_rng(0)
    stamps = np.sort((np.arange(rate * seconds) + noise.uniform(-jitter, jitter, int(rate * seconds))) / rate)
    return np.array([stamp for stamp in stamps if monitor.judge(stamp, math.nan) is Arrival.NEW])


@pytest.mark.parametrize("rate", [120, 150, 180, 250, 500, 1000])
@pytest.mark.parametrize("jitter", [0.0, 0.2])
def test_faster_plant_is_answered_at_the_controllers_rate_by_the_states_nearest_to_its_beat(rate, jitter) -> None:
    stamps = new_stamps(rate, jitter=jitter)[50:]  # how fast it is has to be seen first
    periods = np.diff(stamps)
    assert periods.mean() == pytest.approx(0.01, rel=0.02)
    assert periods.max() < 0.01 + (1 + 2 * jitter) / rate + 1e-9
    assert periods.min() > 0.01 - (1 + 2 * jitter) / rate - 1e-9


def monitor_of_a_faster_plant() -> InputMonitor:
    """Return the monitor of a controller of 100 Hz that has seen a second of states at 500 Hz."""
    monitor = InputMonitor(0.01, 0.25)
    for stamp in 100.0 + np.arange(500) * 0.002:
        monitor.judge(stamp, math.nan)
    return monitor


@pytest.mark.parametrize("start", [0.0, 100.9, 110.0])
def test_faster_plant_is_answered_at_the_controllers_rate_after_a_jump_or_a_gap_too(start: float) -> None:
    monitor = monitor_of_a_faster_plant()
    answered = [monitor.judge(stamp, math.nan) is Arrival.NEW for stamp in start + np.arange(50) * 0.002]
    assert answered[0]
    assert sum(answered) == pytest.approx(10, abs=2)


@pytest.mark.parametrize("stamp", [0.0, 101.001, 110.0])
def test_after_forgetting_a_state_is_new_whatever_its_stamp_and_none_is_missing(stamp: float) -> None:
    monitor = monitor_of_a_faster_plant()
    monitor.forget()
    assert monitor.judge(stamp, math.nan) is Arrival.NEW
    assert (monitor.gaps, monitor.jumps_back) == (0, 0)


def test_each_state_is_new_where_a_timer_starts_the_ticks() -> None:
    monitor = InputMonitor(0.01, 0.25, keeps_beat=False)
    assert {monitor.judge(tick * 0.002, math.nan) for tick in range(100)} == {Arrival.NEW}


@pytest.mark.parametrize("rate", [95, 100.1, 105])
def test_plant_at_about_the_controllers_rate_is_answered_each_time(rate) -> None:
    assert len(new_stamps(rate, jitter=0.2)) == int(rate * 10.0)


def test_missing_states_are_counted() -> None:
    monitor = InputMonitor(0.01, 0.25)
    monitor.judge(0.0, 0.0)
    monitor.judge(0.04, 0.04)
    assert monitor.gaps == 3


def test_no_state_of_a_faster_plant_is_missing_where_the_early_ones_came() -> None:
    monitor = monitor_of_a_faster_plant()
    for early in (101.0, 101.002, 101.004, 101.006):
        monitor.judge(early, math.nan)
    monitor.judge(101.016, math.nan)
    assert monitor.gaps == 0
