from __future__ import annotations

import math

import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.validation.growth import perturbation_growth
from nncontrol_prune.validation.stability import local_stability
from tests.validation.changes import amplify, changed

PENDULUM = "InvertedDoublePendulum-v5"


def test_perturbations_die_away_as_fast_as_the_slowest_pole(pendulum: Bundle) -> None:
    found = perturbation_growth(pendulum, PENDULUM)
    assert found is not None
    slowest = math.log(local_stability(pendulum, PENDULUM).spectral_radius) / 0.05
    assert found.rate == pytest.approx(slowest, rel=0.25)
    assert found.interval[0] < found.rate < found.interval[1]


def test_perturbations_grow_in_an_unstable_loop(pendulum: Bundle) -> None:
    found = perturbation_growth(changed(pendulum, amplify(0.3)), PENDULUM)
    assert found is not None
    assert found.interval[0] > 0.0


def test_plan_is_a_state_that_is_not_perturbed(planner: Bundle) -> None:
    assert perturbation_growth(planner, CARTPOLE) is None
