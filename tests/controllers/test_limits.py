from __future__ import annotations

import numpy as np
import pytest

from nncontrol_prune.controllers.limits import ActionLimits
from nncontrol_prune.controllers.specs import ActionSpec

SPEC = ActionSpec(joints=("one", "two"), lower=(-1.0, 2.0), upper=(1.0, 5.0))


def test_action_is_clipped_to_its_limits() -> None:
    action = np.array([-7.0, 9.0])
    assert ActionLimits(SPEC).apply(action)
    assert action.tolist() == [-1.0, 5.0]


def test_safe_command_is_the_value_nearest_to_zero() -> None:
    assert ActionLimits(SPEC).safe_command.tolist() == [0.0, 2.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_action_that_is_no_number_becomes_the_safe_command(bad: float) -> None:
    action = np.array([0.5, bad])
    assert not ActionLimits(SPEC).apply(action)
    assert action.tolist() == [0.0, 2.0]
