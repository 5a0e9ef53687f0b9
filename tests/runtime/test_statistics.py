from __future__ import annotations

import numpy as np
import pytest

from nncontrol_prune.runtime.statistics import TickStatistics, summarize


def filled(ticks: int, capacity: int = 8) -> TickStatistics:
    statistics = TickStatistics(capacity)
    for tick in range(ticks):
        statistics.record(0, 0.01, tick * 1e-3, 0.0, 0.0)
    return statistics


@pytest.mark.parametrize("ticks", [0, 1, 7, 8, 9, 16, 19])
def test_the_last_ticks_are_kept_in_order(ticks: int) -> None:
    kept = np.arange(max(0, ticks - 8), ticks) * 1e-3
    np.testing.assert_allclose(filled(ticks).rows()[:, 2], kept)


def test_ticks_that_did_not_ask_the_controller_do_not_spoil_its_times() -> None:
    statistics = TickStatistics(8)
    statistics.record(0, 0.01, 1e-4, 0.0, np.nan)
    statistics.record(0, 0.01, 1e-4, 0.0, 7e-5)
    assert summarize(statistics.rows()).inference.max == 7e-5


def test_a_range_of_ticks_can_be_asked_for() -> None:
    statistics = filled(19)
    np.testing.assert_allclose(statistics.rows(13, 3)[:, 2], [0.013, 0.014, 0.015])
    np.testing.assert_allclose(statistics.rows(0, 2)[:, 2], [0.011, 0.012])
    assert len(statistics.rows(19)) == 0


def test_summary_leaves_out_the_missing_first_period() -> None:
    statistics = TickStatistics(8)
    statistics.record(0, np.nan, 1e-4, 2e-4, 5e-5)
    statistics.record(0, 0.01, 3e-4, 4e-4, 6e-5)
    summary = summarize(statistics.rows())
    assert summary.period.p50 == 0.01
    assert summary.compute.max == 3e-4
    assert summary.inference.max == 6e-5
    assert summary.ticks == 2
