from __future__ import annotations

import numpy as np
import pytest

from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.controllers.limits import ActionLimits
from nncontrol_prune.controllers.specs import ActionSpec

SPEC = ActionSpec(joints=("one", "two"), lower=(-1.0, 2.0), upper=(1.0, 5.0))


def test_action_is_clipped_to_its_limits() -> None:
    action = np.array([-7.0, 9.0])
    assert ActionLimits(SPEC).apply(action)
    assert action.tolist() == [-1.0, 5.0]


def test_safe_command_is_the_value_nearest_to_zero() -> None:
    assert ActionLimits(SPEC).safe_command.tolist() == [0.0, 2.0]


def test_chosen_safe_command_is_taken_as_it_is() -> None:
    assert ActionLimits(SPEC, (-1.0, 5.0)).safe_command.tolist() == [-1.0, 5.0]


@pytest.mark.parametrize("given", [(1.0,), (0.5, 3.0, 3.0), (-1.1, 3.0), (0.5, 5.1), (np.nan, 3.0)])
def test_safe_command_that_does_not_fit_is_refused(given: tuple[float, ...]) -> None:
    action = ActionSpec(joints=("one", "two"), lower=(-1.0, -1.0), upper=(1.0, 5.0))
    with pytest.raises(ControllerError, match="is not one value within each of: one in"):
        ActionLimits(action, given)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_action_that_is_no_number_becomes_the_safe_command(bad: float) -> None:
    action = np.array([0.5, bad])
    assert not ActionLimits(SPEC).apply(action)
    assert action.tolist() == [0.0, 2.0]
