from __future__ import annotations

import pytest
from pydantic import ValidationError

from nncontrol_prune.validation.settings import GateSettings


def test_defaults_are_enough_to_accept_something() -> None:
    assert GateSettings().max_episodes == 600


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_episodes": 700}, "min_episodes 700 is more than max_episodes 600"),
        (
            {"max_episodes": 60},
            "max_episodes 60 cannot show a success_margin of 0.05, even of a controller that is the same; ask for at "
            "least 73",
        ),
        ({"return_ratio": 0.999}, "cannot show a return_ratio of 0.999"),
    ],
)
def test_thresholds_that_contradict_each_other_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GateSettings(**values)
