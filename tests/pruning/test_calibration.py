from __future__ import annotations

import numpy as np
import pytest
import torch

from nncontrol_prune.pruning.calibration import ON_POLICY_ROWS, Calibration, calibration_from
from nncontrol_prune.pruning.errors import PruningError


def test_whole_episodes_are_held_out(make_rollouts) -> None:
    episode = np.repeat(np.arange(8), 50)
    observation = np.random.default_rng(0).normal(size=(400, 3))
    observation[:, 0] = episode
    data = calibration_from(make_rollouts(observation, episode), perturbation=0.0)
    assert set(data.fit["observation"][:, 0].tolist()).isdisjoint(data.held_out["observation"][:, 0].tolist())
    assert len(data.held_out["observation"]) == 100


@pytest.mark.parametrize("lengths", [(1000, 20, 25, 18), (20, 1000, 20, 20, 20, 1000, 1000)])
def test_episodes_of_unlike_lengths_leave_enough_to_learn_from_and_to_judge_by(
    make_rollouts, lengths: tuple[int, ...]
) -> None:
    episode = np.repeat(np.arange(len(lengths)), lengths)
    rollouts = make_rollouts(np.random.default_rng(0).normal(size=(len(episode), 3)), episode)
    data = calibration_from(rollouts, perturbation=0.0)
    assert len(data.held_out["observation"]) / len(episode) == pytest.approx(0.25, abs=0.03)


def test_few_episodes_are_split_in_blocks(make_rollouts) -> None:
    data = calibration_from(make_rollouts(np.random.default_rng(0).normal(size=(400, 3))), perturbation=0.0)
    assert len(data.fit["observation"]) == 300
    assert len(data.held_out["observation"]) == 100


def test_transients_weigh_more_than_rest(make_rollouts) -> None:
    time = np.arange(1000) * 0.01
    observation = np.where(time < 2, np.sin(5 * time), 0.0)[:, None] * np.ones((1, 2))
    data = calibration_from(make_rollouts(observation), perturbation=0.0)
    moving = data.fit["observation"].abs().sum(dim=1) > 0
    assert data.fit_weights[moving].mean() > 5 * data.fit_weights[~moving].mean()
    assert data.fit_weights.mean() == pytest.approx(1.0)


def test_starts_of_episodes_weigh_more_than_what_comes_later(make_rollouts) -> None:
    step = np.arange(2000) % 200
    observation = np.random.default_rng(0).normal(size=(2000, 2))
    observation[:, 0] = step
    data = calibration_from(make_rollouts(observation, np.arange(2000) // 200), perturbation=0.0)
    found = data.fit["observation"][:, 0]
    early, middle, late = ((found >= first) & (found < last) for first, last in ((0, 5), (20, 25), (180, 200)))
    assert data.fit_weights[early].mean() > 1.5 * data.fit_weights[middle].mean()
    assert data.fit_weights[middle].mean() > 1.1 * data.fit_weights[late].mean()
    assert data.fit_weights.max() < 10.0


def test_one_long_log_has_no_starts(make_rollouts) -> None:
    steady = np.linspace(0.0, 1.0, 2000)[:, None] * np.ones((1, 2))
    data = calibration_from(make_rollouts(steady), perturbation=0.0)
    np.testing.assert_allclose(data.fit_weights[1:], data.fit_weights[1], rtol=1e-3)


def test_robot_that_logs_no_steps_has_no_starts(make_rollouts) -> None:
    steady = np.linspace(0.0, 1.0, 2000)[:, None] * np.ones((1, 2))
    rollouts = make_rollouts(steady, np.arange(2000) // 200)
    rollouts.step[:] = -1
    transients = np.arange(2000) % 200 > 150
    rollouts.observation[transients] += np.random.default_rng(0).normal(size=(transients.sum(), 2))
    data = calibration_from(rollouts, perturbation=0.0)
    rest = data.fit_weights.min()
    assert data.fit_weights.max() > 50 * rest  # a quarter that is alike for all would leave a factor of 20 or so


def test_rows_are_thinned_to_the_limit(make_rollouts) -> None:
    data = calibration_from(
        make_rollouts(np.random.default_rng(0).normal(size=(5000, 2))), max_rows=400, perturbation=0.0
    )
    assert len(data.fit["observation"]) + len(data.held_out["observation"]) == 400


def test_nan_rows_are_skipped_and_counted(make_rollouts) -> None:
    observation = np.random.default_rng(0).normal(size=(400, 2))
    observation[::10] = np.nan
    data = calibration_from(make_rollouts(observation), perturbation=0.0)
    assert len(data.fit["observation"]) + len(data.held_out["observation"]) == 360
    assert data.warnings == ("skipped 40 transitions that hold NaN or infinity",)


@pytest.mark.parametrize("value", [1e300, -1e300, 1e38, -2e19])
def test_numbers_whose_squares_are_infinite_in_single_precision_are_skipped_and_counted(
    make_rollouts, value: float
) -> None:
    observation = np.random.default_rng(0).normal(size=(400, 2))
    observation[5::10, 1] = value
    observation[0] = np.nan
    data = calibration_from(make_rollouts(observation))
    assert data.fit["observation"].square().isfinite().all()
    assert data.held_out["observation"].square().isfinite().all()
    assert data.warnings == ("skipped 41 transitions that hold NaN, infinity or numbers beyond 1e+18",)


def test_actions_that_are_too_large_are_skipped_where_they_are_needed(make_rollouts) -> None:
    rollouts = make_rollouts(np.random.default_rng(0).normal(size=(400, 2)))
    rollouts.action[::10] = 1e38
    assert calibration_from(rollouts, horizon=1).warnings == (
        "skipped 40 transitions that hold NaN, infinity or numbers beyond 1e+18",
    )
    assert calibration_from(rollouts).warnings == ()


def test_one_infinite_row_does_not_switch_the_weighting_off(make_rollouts) -> None:
    time = np.arange(1000) * 0.01
    observation = np.where(time < 2, np.sin(5 * time), 0.0)[:, None] * np.ones((1, 2))
    observation[700] = np.inf
    data = calibration_from(make_rollouts(observation), perturbation=0.0)
    moving = data.fit["observation"].abs().sum(dim=1) > 0
    assert data.fit_weights[moving].mean() > 5 * data.fit_weights[~moving].mean()


def test_mostly_nan_is_refused(make_rollouts) -> None:
    with pytest.raises(PruningError, match="400 of 400"):
        calibration_from(make_rollouts(np.full((400, 2), np.nan)))


def test_too_few_rows_are_refused(make_rollouts) -> None:
    with pytest.raises(PruningError, match="hold 20 usable transitions; at least 64"):
        calibration_from(make_rollouts(np.zeros((20, 2))))


def test_every_row_comes_again_with_noise_and_little_weight(make_rollouts) -> None:
    rollouts = make_rollouts(np.random.default_rng(0).normal(size=(400, 3)) * np.array([1.0, 100.0, 0.0]))
    plain, data = (calibration_from(rollouts, perturbation=amount) for amount in (0.0, 0.5))
    rows = len(plain.fit["observation"])
    assert len(data.fit["observation"]) == 2 * rows
    assert (data.fit["observation"][:rows] == plain.fit["observation"]).all()
    noise = (data.fit["observation"][rows:] - plain.fit["observation"]).std(dim=0)
    assert noise.numpy() == pytest.approx([0.5, 50.0, 0.0], rel=0.2)
    np.testing.assert_allclose(data.fit_weights[rows:], 0.1 * data.fit_weights[:rows], rtol=1e-5)


def test_models_of_the_dynamics_get_the_steps_that_follow_within_the_episode(make_rollouts) -> None:
    episode = np.repeat(np.arange(8), 50)
    observation = np.arange(400.0)[:, None] * np.ones((1, 2))
    rollouts = make_rollouts(observation, episode)
    rollouts.action[:, 0] = np.arange(400) + 0.5
    data = calibration_from(rollouts, horizon=3, perturbation=0.5)
    rows = len(data.fit["observation"]) // 2
    assert rows == 6 * 47
    start = data.fit["observation"][:rows, 0]
    np.testing.assert_allclose(data.fit["action"][:rows, :, 0], start[:, None] + np.array([0.5, 1.5, 2.5]))
    np.testing.assert_allclose(data.fit["next_observation"][:rows, :, 0], start[:, None] + np.array([1, 2, 3]))
    assert data.fit["logged"].tolist() == [1.0] * rows + [0.0] * rows


def test_a_step_with_nan_in_it_is_not_followed(make_rollouts) -> None:
    rollouts = make_rollouts(np.random.default_rng(0).normal(size=(400, 2)))
    rollouts.action[100] = np.nan
    data = calibration_from(rollouts, horizon=2, perturbation=0.0)
    assert len(data.fit["action"]) + len(data.held_out["action"]) == 400 - 2 - 3
    assert data.warnings == ("skipped 1 transitions that hold NaN or infinity",)


def test_directions_are_of_the_size_of_the_states_spread(make_rollouts) -> None:
    rollouts = make_rollouts(np.random.default_rng(0).normal(size=(800, 3)) * np.array([1.0, 50.0, 0.0]))
    data = calibration_from(rollouts, directions=True)
    assert data.fit["direction"].std(dim=0).numpy() == pytest.approx([1.0, 50.0, 0.0], rel=0.2)


def test_of_further_rows_the_finite_ones_count_and_as_many_as_there_may_be() -> None:
    fit = {"x": torch.zeros(10, 2), "kind": torch.zeros(10, dtype=torch.long)}
    data = Calibration(fit, torch.ones(10), fit, torch.ones(10))
    met = {"x": torch.arange(8.0).reshape(4, 2), "kind": torch.arange(4)}
    met["x"][1, 1] = torch.inf
    more = data.with_more(met)
    assert more.fit["kind"][10:].tolist() == [0, 2, 3]
    assert more.fit["x"][10:].tolist() == [[0.0, 1.0], [4.0, 5.0], [6.0, 7.0]]
    assert len(more.fit_weights) == 13
    assert more.held_out is data.held_out
    many = torch.arange(2.0 * ON_POLICY_ROWS)
    kept = data.with_more({"x": many[:, None].expand(-1, 2), "kind": many.long()}).fit["kind"][10:]
    assert len(kept) == ON_POLICY_ROWS
    assert kept[[0, -1]].tolist() == [0, 2 * ON_POLICY_ROWS - 1]
    assert data.with_more({"x": torch.zeros(0, 2), "kind": torch.zeros(0, dtype=torch.long)}).fit["x"].shape == (10, 2)
