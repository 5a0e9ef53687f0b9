from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from nncontrol_prune.service.boundary import SEARCH_SEED
from nncontrol_prune.validation.gate import REFERENCE_EPISODES
from nncontrol_prune.validation.selection import (
    OBSERVATION_EPISODES,
    OBSERVATION_SEED,
    SELECTION_SEED,
    TRIAL_EPISODES,
)
from nncontrol_prune.validation.settings import FIRST_SEEDS, GateSettings, RobustnessSettings


def test_defaults_are_enough_to_accept_something() -> None:
    assert GateSettings().max_episodes == 600


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_episodes": 700}, "min_episodes 700 is more than max_episodes 600"),
        (
            {"max_episodes": 60},
            "max_episodes 60 cannot show success_margin 0.05, even of a controller that is the same; ask for at "
            "least 73",
        ),
        ({"return_ratio": 0.999}, "cannot show return_ratio 0.999"),
        ({"success_margin": 1e-20}, "cannot show success_margin 1e-20"),
        ({"success_margin": 1e-320}, "cannot show success_margin 9.99"),
        ({"first_seed": 50_000}, "first_seed 50000 is not from 100000 to 8000000, where neither the choice"),
        ({"first_seed": 2**30}, "first_seed 1073741824 is not from 100000 to 8000000"),
        ({"attraction_starts": 30}, "attraction_starts 30 cannot show attraction_margin 0.1"),
        (
            {"robustness": {"max_rounds": 30}},
            r"robustness.max_rounds 30 cannot show robustness.margin 0.1, .* ask for at least 36",
        ),
    ],
)
def test_thresholds_that_contradict_each_other_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GateSettings(**values)


def test_what_is_left_out_need_not_be_shown() -> None:
    GateSettings(robustness=RobustnessSettings(enabled=False, max_rounds=1), attraction_starts=0)


def test_gates_seeds_are_those_of_nobody_else() -> None:
    first, last = FIRST_SEEDS
    most = GateSettings(first_seed=last, max_episodes=1_000_000)
    assert last + most.max_episodes + REFERENCE_EPISODES < SEARCH_SEED
    assert max(SELECTION_SEED + TRIAL_EPISODES, OBSERVATION_SEED + OBSERVATION_EPISODES) < first
