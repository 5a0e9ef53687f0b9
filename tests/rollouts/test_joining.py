from __future__ import annotations

import numpy as np
import pytest

from nncontrol_prune.rollouts.joining import Timeline, match_steps, number_episodes, usual_period


def timeline(stamps: object, delay: float = 0.0, wall: object = None) -> Timeline:
    stamp = np.asarray(stamps, dtype=np.float64)
    log = stamp if wall is None else np.asarray(wall, dtype=np.float64)
    return Timeline(stamp, ((log + delay) * 1e9).astype(np.int64))


def test_period_is_the_usual_one() -> None:
    assert usual_period(np.array([0.0, 0.01, 0.02, 0.05, 0.06])) == pytest.approx(0.01)
    assert usual_period(np.array([1.0])) == float("inf")


def test_steps_match_by_stamp() -> None:
    np.testing.assert_array_equal(match_steps(timeline([0, 0.1, 0.2]), timeline([0, 0.1, 0.2], delay=0.1)), [0, 1, 2])


@pytest.mark.parametrize("error", [-0.04, 1e-9, 0.04])
def test_rounded_stamps_match(error: float) -> None:
    stamps = np.arange(10) * 0.1
    np.testing.assert_array_equal(match_steps(timeline(stamps), timeline(stamps + error)), np.arange(10))


def test_missing_rows_on_either_side_match_nothing() -> None:
    match = match_steps(timeline([0, 0.1, 0.2, 0.5, 0.6]), timeline([0.1, 0.2, 0.3, 0.4, 0.6, 0.7]))
    np.testing.assert_array_equal(match, [-1, 0, 1, -1, 4])


def test_nearest_step_wins() -> None:
    np.testing.assert_array_equal(match_steps(timeline([0, 0.1]), timeline([0.0, 0.1, 0.11])), [0, 1])


def test_without_steps_nothing_matches() -> None:
    np.testing.assert_array_equal(match_steps(timeline([0, 0.1]), timeline([])), [-1, -1])


def test_single_rows_match() -> None:
    np.testing.assert_array_equal(match_steps(timeline([3.0]), timeline([3.0])), [0])


def test_after_a_restart_of_the_clock_the_log_time_decides() -> None:
    transitions = timeline([0, 0.1, 0.2, 0.3, 0, 0.1, 0.2], wall=[0, 0.1, 0.2, 0.3, 10, 10.1, 10.2])
    steps = timeline([0, 0.1, 0.2], wall=[10, 10.1, 10.2])  # those of the first stretch were not recorded
    np.testing.assert_array_equal(match_steps(transitions, steps), [-1, -1, -1, -1, 0, 1, 2])


def number(stamps: list[float], episode: list[int], ended: tuple[int, ...] = ()) -> list[int]:
    """Number episodes; -1 stands for an unknown one."""
    labels = np.array(episode)
    ends = np.isin(np.arange(len(stamps)), ended)
    return number_episodes(timeline(stamps), labels, labels >= 0, ends).tolist()


def test_episodes_are_numbered_from_zero() -> None:
    assert number([0, 1, 2, 3], [7, 7, 9, 9]) == [0, 0, 1, 1]


def test_row_without_a_step_belongs_to_the_episode_before() -> None:
    assert number([0, 1, 2, 3, 4], [0, 0, -1, 1, 1]) == [0, 0, 0, 1, 1]


def test_row_without_a_step_after_an_end_belongs_to_the_next_episode() -> None:
    assert number([0, 1, 2, 3, 4], [0, 0, -1, 1, 1], ended=(1,)) == [0, 0, 1, 1, 1]


def test_rows_without_a_step_before_the_first_belong_to_it() -> None:
    assert number([0, 1, 2], [-1, -1, 4]) == [0, 0, 0]


def test_row_after_the_last_end_is_an_episode_of_its_own() -> None:
    assert number([0, 1, 2], [4, 4, -1], ended=(1,)) == [0, 0, 1]


def test_restart_of_the_clock_begins_an_episode() -> None:
    assert number([0, 1, 0, 1], [0, 0, 0, 0]) == [0, 0, 1, 1]
    assert number([0, 1, 0, 1], [0, -1, -1, 0]) == [0, 0, 1, 1]


def test_without_steps_a_pause_begins_an_episode() -> None:
    assert number([0, 0.1, 0.2, 5.0, 5.1], [-1] * 5) == [0, 0, 0, 1, 1]
