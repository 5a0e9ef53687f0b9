from __future__ import annotations

import math

import numpy as np
import pytest

from nncontrol_prune.validation.betting import ERROR_RATE, MeanTest, values_needed

MARGIN = 0.05


def shown_after(values: np.ndarray, bound: float = -MARGIN) -> float:
    """Return after how many values it is shown that their mean is above the bound; infinity if never."""
    test = MeanTest(bound, -1.0)
    for count in range(0, len(values), 25):
        test.add(values[count : count + 25].tolist())
        if test.shown:
            return test.values
    return math.inf


@pytest.mark.parametrize(
    "at_the_margin",
    [
        lambda rng, size: -(rng.random(size) < MARGIN).astype(float),
        lambda rng, size: (rng.random(size) < 0.90).astype(float) - (rng.random(size) < 0.95),
        lambda rng, size: np.clip(rng.normal(-MARGIN, 0.1, size), -1, 1),
    ],
    ids=["regressions only", "independent outcomes", "returns"],
)
def test_mean_at_the_bound_is_shown_to_be_above_it_in_less_than_one_of_twenty_looked_at_all_the_time(
    at_the_margin,
) -> None:
    rng = np.random.default_rng(0)
    shown = np.mean([shown_after(at_the_margin(rng, 1000)) < math.inf for _ in range(600)])
    # Three standard errors of such a share in 600.
    assert shown <= ERROR_RATE + 3 * math.sqrt(ERROR_RATE * (1 - ERROR_RATE) / 600)


def test_values_that_are_all_the_same_are_shown_after_the_least_number() -> None:
    needed = values_needed(MARGIN)
    assert needed == 73
    test = MeanTest(-MARGIN, -1.0)
    test.add([0.0] * (needed - 1))
    assert not test.shown
    assert 0 < test.more_needed() < 10, "a little more than it takes, by one stake alone"
    test.add([0.0])
    assert test.shown


@pytest.mark.parametrize(("success", "within"), [(0.99, 600), (0.98, 600)])
def test_equal_but_independent_outcomes_are_shown_within_the_largest_number(success: float, within: int) -> None:
    rng = np.random.default_rng(1)
    shown = [
        shown_after((rng.random(within) < success).astype(float) - (rng.random(within) < success)) <= within
        for _ in range(300)
    ]
    assert np.mean(shown) >= 0.95


def test_always_failing_is_shown_after_a_few() -> None:
    test = MeanTest(MARGIN, -1.0)
    test.add([1.0] * 8)
    assert test.shown


def test_no_number_is_enough_for_a_mean_at_or_past_the_bound() -> None:
    test = MeanTest(-MARGIN, -1.0)
    test.add([-0.1] * 50)
    assert test.more_needed() == math.inf


def test_evidence_once_there_does_not_go_away() -> None:
    test = MeanTest(-MARGIN, -1.0)
    test.add([1.0] * 20)
    assert test.shown
    test.add([-1.0] * 500)
    assert test.shown


@pytest.mark.parametrize("value", [-1.5, math.nan])
def test_value_that_cannot_be_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="below -1"):
        MeanTest(-MARGIN, -1.0).add([value])
