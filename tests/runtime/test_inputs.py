from __future__ import annotations

import math

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


def test_clock_that_jumps_back_is_followed_and_counted() -> None:
    monitor = InputMonitor(0.01, 0.25)
    monitor.judge(100.0, 100.0)
    assert monitor.judge(0.0, 0.0) is Arrival.NEW
    assert monitor.judge(0.01, 0.01) is Arrival.NEW
    assert monitor.jumps_back == 1


def test_faster_plant_is_answered_at_about_the_controllers_rate() -> None:
    monitor = InputMonitor(0.01, 0.25)
    arrivals = [monitor.judge(tick * 0.002, math.nan) for tick in range(100)]
    assert arrivals.count(Arrival.NEW) <= 34


def test_missing_states_are_counted() -> None:
    monitor = InputMonitor(0.01, 0.25)
    monitor.judge(0.0, 0.0)
    monitor.judge(0.04, 0.04)
    assert monitor.gaps == 3
