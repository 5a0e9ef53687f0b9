from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nncontrol_prune.controllers.bundle import Bundle, load_bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.state_space import Linearization
from nncontrol_prune.validation.settings import GateSettings
from nncontrol_prune.validation.stability import (
    NoEquilibriumError,
    _pole,
    closed_loop_matrix,
    delay_margin,
    gain_margins,
    local_stability,
    margin_criterion,
    spectral_radius,
)
from tests.validation.changes import amplify, changed

PENDULUM = "InvertedDoublePendulum-v5"
UNSTABLE = Linearization(a=np.array([[1.2]]), b=np.array([[1.0]]), c=np.array([[1.0]]))
"""x' = 1.2 x + u."""


def test_margins_of_a_loop_that_can_be_worked_out_by_hand() -> None:
    # u = -0.7 x: stable for 0.2 < 0.7 g < 2.2; with one tick of delay z² - 1.2 z + 0.7 has |z|² = 0.7, with two not.
    gain = np.array([[-0.7]])
    low, high = gain_margins(UNSTABLE, gain, 0)
    assert low == pytest.approx(0.2 / 0.7, rel=1e-6)
    assert high == pytest.approx(2.2 / 0.7, rel=1e-6)
    assert spectral_radius(closed_loop_matrix(UNSTABLE, gain, 1)) == pytest.approx(np.sqrt(0.7))
    assert delay_margin(UNSTABLE, gain, 0) == 1
    assert delay_margin(UNSTABLE, gain, 1) == 0
    assert delay_margin(UNSTABLE, np.array([[-0.1]]), 0) == -1


def test_pole_on_the_negative_axis_alternates_at_half_the_rate() -> None:
    pole = _pole(np.float64(-0.5), period=0.05)
    assert pole.frequency == pytest.approx(np.hypot(np.log(0.5), np.pi) / (2 * np.pi) / 0.05)
    assert pole.damping == pytest.approx(-np.log(0.5) / np.hypot(np.log(0.5), np.pi))


def test_delayed_commands_arrive_in_their_order() -> None:
    loop = closed_loop_matrix(UNSTABLE, np.array([[-0.7]]), 3)
    state, sent = 1.0, [0.0, 0.0, 0.0]
    extended = np.array([state, 0.0, 0.0, 0.0])
    for _ in range(8):
        sent.append(-0.7 * state)
        state = 1.2 * state + sent.pop(0)
        extended = loop @ extended
        assert extended[0] == pytest.approx(state)


def test_analysis_of_a_double_pendulum_predicts_what_the_loop_does(pendulum: Bundle) -> None:
    found = local_stability(pendulum, PENDULUM)
    assert found.stable
    assert found.gain_margins is not None
    low, high = found.gain_margins
    assert low < 1 < high
    for factor, stable in ((1.2 * high, False), (high**0.5, True), (0.8 * low, False), (low**0.5, True)):
        try:
            assert local_stability(changed(pendulum, amplify(factor)), PENDULUM).stable is stable
        except NoEquilibriumError:  # an unstable loop may fall before it comes near
            assert not stable
    delayed = local_stability(pendulum, PENDULUM, delay=found.delay_margin)
    assert delayed.stable
    with pytest.raises(NoEquilibriumError):
        local_stability(pendulum, PENDULUM, delay=found.delay_margin + 1)


def test_lyapunov_function_decreases_near_the_equilibrium(pendulum: Bundle) -> None:
    found = local_stability(pendulum, PENDULUM)
    matrix = np.array(found.lyapunov)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6 * np.abs(matrix).max())
    assert np.linalg.eigvalsh(matrix).min() >= 1.0 - 1e-6, "P - I is positive semidefinite"


def test_candidate_with_the_same_margins_passes_and_one_with_too_little_left_fails(pendulum: Bundle) -> None:
    assert margin_criterion(pendulum, pendulum, PENDULUM, GateSettings()).outcome == "passed"
    worse = margin_criterion(changed(pendulum, amplify(1.15)), pendulum, PENDULUM, GateSettings())
    assert worse.outcome == "failed"
    assert "gain times" in worse.reason
    assert "necessary, and not sufficient" in worse.reason


def test_it_is_not_applicable_where_nothing_rests_and_to_planners(shipped_bundle: Bundle, planner: Bundle) -> None:
    with pytest.raises(NoEquilibriumError, match="not asymptotically stable where it comes to rest"):
        margin_criterion(shipped_bundle, shipped_bundle, CARTPOLE, GateSettings())
    walker = Path(__file__).resolve().parents[2] / "benchmarks" / "controllers" / "walker2d_ppo"
    with pytest.raises(NoEquilibriumError, match="does not come to rest"):
        local_stability(load_bundle(walker), "Walker2d-v5")
    with pytest.raises(NoEquilibriumError, match="planner"):
        local_stability(planner, CARTPOLE)
