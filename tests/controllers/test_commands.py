from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from nncontrol_prune.controllers.commands import CommandConverter
from nncontrol_prune.controllers.specs import ActionSpec

LIMITS = {"joints": ("hip", "knee"), "lower": (-1.0, -1.0), "upper": (1.0, 1.0)}


def test_commands_are_offset_and_scaled_actions_and_back() -> None:
    converter = CommandConverter(ActionSpec(**LIMITS, scale=(0.25, -2.0), offset=(0.4, -0.8)))
    action = np.array([1.0, 0.5])
    command = converter.command(action)
    assert command.tolist() == [0.65, -1.8]
    found = np.zeros(2)
    converter.action(command, found)
    np.testing.assert_allclose(found, action, rtol=1e-15)
    assert action.tolist() == [1.0, 0.5]


def test_what_is_commanded_as_it_is_stays_the_same_to_the_bit() -> None:
    converter = CommandConverter(ActionSpec(**LIMITS))
    action, found = np.array([0.1, 0.2]), np.zeros(2)
    assert converter.command(action) is action
    converter.action(action, found)
    assert found.tolist() == action.tolist()
    assert found is not action


def test_specs_that_say_the_same_are_equal() -> None:
    assert ActionSpec(**LIMITS) == ActionSpec(**LIMITS, scale=[1, 1], offset=np.zeros(2))
    assert ActionSpec(**LIMITS, scale=np.array([0.5, 0.5])) == ActionSpec(**LIMITS, scale=0.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unit": "N m"}, "hip in [-1, 1] N m, knee in [-1, 1] N m"),
        ({"unit": "rad", "scale": 0.5}, "hip in [-1, 1], knee in [-1, 1]; commands are 0.5 · action rad"),
        (
            {"unit": "rad", "scale": (0.5, 0.25), "offset": (0.0, 1.0)},
            "hip in [-1, 1], knee in [-1, 1]; commands are (0.5, 0.25) · action + (0, 1) rad",
        ),
    ],
)
def test_a_spec_says_in_words_what_is_commanded(changes: dict[str, object], words: str) -> None:
    assert str(ActionSpec(**LIMITS, **changes)) == words


def test_one_number_may_be_an_arrays() -> None:
    assert ActionSpec(**LIMITS, scale=np.array(0.25)).scale == 0.25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 0.0}, "the action of 'hip' has the scale 0"),
        ({"scale": (1.0,)}, "one for each of the 2 entries, or one for all"),
        ({"scale": {0.25, 0.5}}, "one for each of the 2 entries, or one for all"),
        ({"scale": 1e31}, r"commands of 'hip' \(1e\+31 · action \+ 0\) reach ±1e\+30"),
        ({"offset": (0.0, 1e31)}, r"commands of 'knee' \(1 · action \+ 1e\+31\) reach ±1e\+30"),
        ({"offset": (float("inf"), 0.0)}, "one for each of the 2 entries, or none"),
    ],
)
def test_what_is_no_conversion_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ActionSpec(**LIMITS, **changes)
