from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.observations import ObservationSpec, ObservationTerm
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.conditions import Conditions
from nncontrol_prune.validation.evaluation import run_episodes
from nncontrol_prune.validation.robustness import RobustnessTest, Trial, conditions_of
from nncontrol_prune.validation.settings import GateSettings, RobustnessSettings


def test_conditions_are_those_of_the_levels_on_top_of_the_loops_delay(shipped_bundle: Bundle) -> None:
    found = conditions_of(GateSettings(delay=1), shipped_bundle)
    assert list(found) == [
        "pushes of 0.3 m/s",
        "noise of 2%",
        "1 more tick of delay",
        "2 more ticks of delay",
        "mass -20%",
        "friction -20%",
        "mass +20%",
        "friction +20%",
    ]
    assert [conditions.delay for conditions in found.values()] == [1, 1, 2, 3, 1, 1, 1, 1]
    assert len(found["noise of 2%"].noise) == 5
    nothing = RobustnessSettings(push=0, noise=0, more_delay=0, mass=0, friction=0)
    assert conditions_of(GateSettings(robustness=nothing), shipped_bundle) == {}


def test_what_a_controller_is_told_has_no_noise(shipped_bundle: Bundle) -> None:
    terms = (
        ObservationTerm(name="cart", size=1, quantity="other"),
        ObservationTerm(name="command", size=3, quantity="velocity_command"),
        ObservationTerm(name="before", size=1, quantity="previous_action"),
    )
    manifest = shipped_bundle.manifest.model_copy(update={"observation": ObservationSpec(terms=terms)})
    usual = conditions_of(GateSettings(), shipped_bundle)["noise of 2%"].noise
    found = conditions_of(GateSettings(), replace(shipped_bundle, manifest=manifest))["noise of 2%"].noise
    assert found == (usual[0], 0.0, 0.0, 0.0, 0.0)
    assert min(usual) > 0.0


def test_a_round_counts_its_mean_over_the_conditions(make_episode) -> None:
    good, bad = make_episode(), make_episode(success=False)

    test = RobustnessTest(Trial("robustness", {"a": Conditions(), "b": Conditions()}, 0.1, 150), 1.0)
    test.add({"a": [(good, good)] * 10, "b": [(bad, good), *[(good, good)] * 9]})
    assert not test.decided
    assert [(found.condition, found.pairs, found.regressions) for found in test.summaries()] == [
        ("a", 10, 0),
        ("b", 10, 1),
    ]
    assert (
        "success in 19 of 20 episodes, dense 20; failed 1 times where the dense controller succeeded, most often"
        in test.criteria()[0].reason
    )
    assert test.summaries()[1].pruned_interval == pytest.approx((0.555, 0.9975), abs=1e-3)
    test.add({"a": [(good, good)] * 50, "b": [(good, good)] * 50})
    assert test.rounds == 60
    assert [(criterion.name, criterion.outcome) for criterion in test.criteria()] == [("robustness", "passed")]


@pytest.mark.parametrize(
    ("returned", "outcome", "found"),
    [(-160.0, "passed", "-5.0% of its usual return on the mean, and -10.0% with b"), (-200.0, "failed", "-25.0%")],
)
def test_who_never_fails_is_judged_by_what_it_returns_under_the_conditions(
    make_episode, returned: float, outcome: str, found: str
) -> None:
    usual, worse, candidate = (make_episode(episode_return=value) for value in (-100.0, -150.0, returned))
    trial = Trial("robustness", {"a": Conditions(), "b": Conditions()}, 0.1, 150, return_margin=0.1)
    test = RobustnessTest(trial, -100.0)
    while not test.decided:
        test.add({"a": [(usual, usual)] * 10, "b": [(candidate, worse)] * 10})
    success, returns = test.criteria()
    assert success.outcome != "failed"
    assert returns.outcome == outcome
    assert found in returns.reason


def test_noise_and_pushes_are_the_same_for_the_same_seed_and_do_something(shipped_bundle: Bundle) -> None:
    plain = run_episodes(shipped_bundle, CARTPOLE, [1])
    for conditions in (Conditions(noise=(0.01,) * 5), Conditions(push=0.2), Conditions(mass=1.1)):
        first, second = (run_episodes(shipped_bundle, CARTPOLE, seeds, conditions) for seeds in ([1], [2, 1]))
        assert first[0] == second[1]
        assert first != plain
    assert run_episodes(shipped_bundle, CARTPOLE, [1]) == plain, "and leave nothing behind"


def test_noise_is_on_what_is_observed_and_not_on_the_state(shipped_bundle: Bundle) -> None:
    calm = run_episodes(shipped_bundle, CARTPOLE, range(4), Conditions(noise=(1e-6,) * 5))
    plain = run_episodes(shipped_bundle, CARTPOLE, range(4))
    np.testing.assert_allclose(
        [episode.excursions for episode in calm], [episode.excursions for episode in plain], atol=0.05
    )
