from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.verdict import Verdict
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.progress import Progress
from nncontrol_prune.rollouts.reader import Rollouts, read_rollouts
from nncontrol_prune.service.rollouts import record_episodes
from nncontrol_prune.validation.gate import GateError
from nncontrol_prune.validation.offline import (
    LEAST_ROWS,
    OfflineError,
    check_offline,
    check_unseen,
    fit_linear_model,
    relative_deviation,
)
from nncontrol_prune.validation.settings import GateSettings, OfflineSettings
from tests.validation.changes import amplify, changed


@pytest.fixture(scope="module")
def rollouts(shipped_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Rollouts:
    path = tmp_path_factory.mktemp("offline") / "bag"
    record_episodes(shipped_bundle, CARTPOLE, range(3), path, lambda _: None)
    return read_rollouts(path)


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {criterion.name: criterion.outcome for criterion in verdict.criteria}


def test_identical_controller_is_accepted_and_the_verdict_says_that_no_closed_loop_was_run(
    shipped_bundle: Bundle, rollouts: Rollouts
) -> None:
    verdict = check_offline(shipped_bundle, shipped_bundle, rollouts, GateSettings())
    assert verdict.accepted
    assert verdict.offline
    assert (verdict.dense, verdict.pruned) == (None, None)
    assert outcomes(verdict).keys() == {"health", "actions", "gains", "next state", "latency"}
    assert verdict.notes[0].startswith("no closed loop was run")
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_controller_that_commands_something_else_is_rejected(shipped_bundle: Bundle, rollouts: Rollouts) -> None:
    candidate = changed(shipped_bundle, amplify(-1.0))
    verdict = check_offline(candidate, shipped_bundle, rollouts, GateSettings())
    assert outcomes(verdict)["actions"] == outcomes(verdict)["gains"] == "failed"
    (actions,) = (criterion for criterion in verdict.criteria if criterion.name == "actions")
    assert "10% are allowed; 95% sure that it is missed" in actions.reason


def test_gains_are_not_looked_at_where_one_of_the_two_plans(
    planner: Bundle, shipped_bundle: Bundle, rollouts: Rollouts
) -> None:
    few = rollouts.rows(slice(LEAST_ROWS))
    for candidate, dense in ((planner, shipped_bundle), (shipped_bundle, planner)):
        verdict = check_offline(candidate, dense, few, GateSettings())
        assert "gains" not in outcomes(verdict)
        assert any(note.startswith("gains: not looked at") for note in verdict.notes)


def test_gains_tell_what_actions_on_the_rollouts_do_not(shipped_bundle: Bundle, rollouts: Rollouts) -> None:
    settings = GateSettings(offline=OfflineSettings(action_deviation=1.0, gain_deviation=0.3, state_deviation=1.0))
    verdict = check_offline(changed(shipped_bundle, amplify(2.0)), shipped_bundle, rollouts, settings)
    assert [name for name, outcome in outcomes(verdict).items() if outcome == "failed"] == ["gains"]


def test_action_that_is_no_number_is_rejected_at_once(shipped_bundle: Bundle, rollouts: Rollouts) -> None:
    candidate = dataclasses.replace(shipped_bundle, policy=_Nan(shipped_bundle, rollouts.observation[7]))
    verdict = check_offline(candidate, shipped_bundle, rollouts, GateSettings())
    assert outcomes(verdict) == {"health": "failed", "latency": "passed"}
    assert "health: 1 of 3,000 actions holds NaN or infinity" in verdict.reasons


class _Nan:
    """A policy that is not finite in one row, wherever it is run."""

    def __init__(self, bundle: Bundle, row: np.ndarray) -> None:
        self._policy, self._row = bundle.policy, row

    def batch(self, observations: np.ndarray) -> np.ndarray:
        actions = self._policy.batch(observations).copy()
        actions[(observations == self._row).all(axis=1)] = np.nan
        return actions

    def act(self, observation: np.ndarray, action: np.ndarray) -> None:
        self._policy.act(observation, action)


def test_bags_that_a_candidate_was_pruned_from_are_not_unseen(
    shipped_bundle: Bundle, rollouts: Rollouts, make_cartpole_bundle
) -> None:
    made = make_cartpole_bundle(parent=shipped_bundle)
    check_unseen(made, rollouts)
    assert made.manifest.provenance is not None
    seen = ("another", *rollouts.rows(slice(1000)).bags)
    provenance = made.manifest.provenance.model_copy(update={"bags": seen})
    pruned = make_cartpole_bundle(parent=shipped_bundle, provenance=provenance)
    with pytest.raises(OfflineError, match="was pruned from these bags, which says nothing of others"):
        check_unseen(pruned, rollouts)
    with pytest.raises(OfflineError, match="was pruned from some of these bags"):
        check_unseen(pruned, dataclasses.replace(rollouts, bags=[*rollouts.bags, "a third one"]))
    check_unseen(pruned, dataclasses.replace(rollouts, bags=["a third one"]))


def test_too_few_transitions_are_refused(shipped_bundle: Bundle, rollouts: Rollouts) -> None:
    with pytest.raises(OfflineError, match="needs 500 transitions, and the rollouts have 499"):
        check_offline(shipped_bundle, shipped_bundle, rollouts.rows(slice(499)), GateSettings())


def test_candidate_of_another_layout_is_refused(shipped_bundle: Bundle, pendulum: Bundle, rollouts: Rollouts) -> None:
    with pytest.raises(GateError, match="cannot take the place"):
        check_offline(pendulum, shipped_bundle, rollouts, GateSettings())


def test_planner_is_checked_without_gains_and_tells_how_far_it_is(rollouts: Rollouts, planner: Bundle) -> None:
    shares: list[float] = []
    progress = Progress(lambda _, share: shares.append(share))
    verdict = check_offline(planner, planner, rollouts.rows(slice(500)), GateSettings(), progress)
    assert shares == sorted(shares)
    assert len(shares) > 10
    judged = outcomes(verdict)
    judged.pop("latency")  # a planner takes most of its period, and more beside other work
    assert judged == {"health": "passed", "actions": "passed", "next state": "passed"}
    assert any(note.startswith("gains: not looked at") for note in verdict.notes)


def test_relative_deviation_is_of_the_mean_squares_with_bounds_around_it() -> None:
    rng = np.random.default_rng(0)
    low, middle, high = relative_deviation(0.1 * rng.normal(size=(2000, 3)), rng.normal(size=(2000, 3)))
    assert middle == pytest.approx(0.1, rel=0.05)
    assert 0.95 * middle < low < middle < high < 1.05 * middle
    assert relative_deviation(np.zeros((50, 1)), np.zeros((50, 1))) == (0.0, 0.0, 0.0)


def test_deviation_in_few_stretches_is_uncertain() -> None:
    deviations = np.zeros((1000, 1))
    deviations[:100] = 1.0
    low, middle, high = relative_deviation(deviations, np.ones((1000, 1)))
    assert low == 0.0
    assert middle == pytest.approx(np.sqrt(0.1))
    assert high > 1.5 * middle


def test_linear_model_finds_the_effect_of_actions_within_episodes_only(rollouts: Rollouts) -> None:
    rng = np.random.default_rng(0)
    state, effect = np.zeros(5), np.array([0.0, 0.1, 0.2, 0.0, -0.3])
    observations, actions = [], rng.normal(size=(1000, 1))
    for row, action in enumerate(actions):
        state = rng.normal(size=5) if row == 500 else state
        observations.append(state)
        state = 0.9 * state + effect * action
    part = dataclasses.replace(
        rollouts.rows(slice(1000)), observation=np.array(observations), action=actions, episode=np.arange(1000) // 500
    )
    model = fit_linear_model(part, np.arange(1000), np.ones(5))
    assert model is not None
    np.testing.assert_allclose(model.b[:, 0], effect, atol=2e-3)
    assert model.explained > 0.99
    assert len(model.changes) == 998
