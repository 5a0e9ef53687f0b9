from __future__ import annotations

import math

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from nncontrol_prune.ros.controller_health import rate_of
from nncontrol_prune.runtime.statistics import TickStatistics


def test_rate_is_that_of_ticks_whose_periods_differ_in_turns_and_leaves_out_where_nothing_came() -> None:
    statistics = TickStatistics()
    assert math.isnan(rate_of(statistics))
    for tick in range(300):
        period = 5.0 if tick == 150 else 0.02 / 3 if tick % 2 else 0.04 / 3
        statistics.record(0, period if tick else math.nan, 0.0, 0.0, 0.0)
    assert rate_of(statistics) == pytest.approx(100.0, rel=0.1)
