from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning import gradient
from nncontrol_prune.pruning.architectures import recipe_for
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.coefficients import CoefficientProblem, uniform
from nncontrol_prune.pruning.network import Network
from nncontrol_prune.pruning.problem import coefficient_problem
from nncontrol_prune.pruning.reconstruction import dense_targets, reconstruct
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.pruning.surgery import remove_channels
from nncontrol_prune.pruning.terms import chosen_terms


@pytest.fixture
def problem(module: Mlp, calibration: Calibration) -> CoefficientProblem[Mlp]:
    recipe, settings = recipe_for(module), PruningSettings(sparsity=0.6, tolerance=0.02)
    terms = chosen_terms(recipe.terms, settings.terms, settings.limits)
    return coefficient_problem(recipe.network, calibration, terms, settings, Progress())


def prices_at(problem: CoefficientProblem[Mlp], kept: tuple[int, ...]) -> np.ndarray:
    """What a coefficient's change by one saves, by differences over one channel."""
    found = []
    for variable, channels in enumerate(problem.channels):
        fewer, more = [(*kept[:variable], kept[variable] + by, *kept[variable + 1 :]) for by in (-1, 1)]
        found.append((problem.sparsity_of(fewer) - problem.sparsity_of(more)) * channels / 2)
    return np.array(found)


def test_it_descends_where_no_gradients_are_recorded(problem: CoefficientProblem[Mlp]) -> None:
    start = problem.coefficients_of(uniform(problem, Progress()))
    free = list(gradient._descend(problem, start, Progress()))
    with torch.no_grad():
        steps = gradient._descend(problem, start, Progress())
        assert next(steps) == free[0]
        assert not torch.is_grad_enabled()


NORMED = {
    "layer": [nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)],
    "rms": [nn.Linear(4, 8), nn.RMSNorm(8), nn.ReLU(), nn.Linear(8, 3)],
    "one group": [nn.Linear(4, 8), nn.GroupNorm(1, 8), nn.ReLU(), nn.Linear(8, 3)],
    "one group of an image": [nn.Conv1d(2, 8, 2), nn.GroupNorm(1, 8, affine=False), nn.ReLU(), nn.Conv1d(8, 3, 2)],
    "groups": [nn.Linear(4, 8), nn.GroupNorm(4, 8), nn.ReLU(), nn.Linear(8, 3)],
}


@pytest.mark.parametrize("kind", NORMED)
def test_masks_that_are_hard_leave_what_surgery_and_reconstruction_do(kind: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(*NORMED[kind])
    batch = {"x": torch.randn(500, 2, 6) if isinstance(module[0], nn.Conv1d) else torch.randn(500, 4)}
    network, weights = Network(module, {"all": [""]}, lambda m, rows: {"y": m(rows["x"])}), torch.ones(500)
    groups = network.groups(batch)
    keep = [torch.arange(0, group.channels, 2) for group in groups]
    pruned = remove_channels(module, groups, keep)
    targets = dense_targets(network, groups, batch)
    reconstruct(pruned, network, groups, keep, batch, weights, targets=targets)
    masks = [
        torch.full((group.channels,), 1e-6).index_fill(0, kept, 1.0) for group, kept in zip(groups, keep, strict=True)
    ]
    with torch.no_grad():
        with gradient._SoftLayers(network, groups, targets, weights).masked(masks):
            found = module(batch["x"])
        lost = (found - module(batch["x"])).abs().mean()
        assert lost > 0.01
        # A mean: a row whose channels are all but equal has a norm that makes much of rounding.
        assert (found - pruned(batch["x"])).abs().mean() < 0.01 * lost


@pytest.mark.parametrize("rows", [6, 12])
def test_where_rows_are_scarce_masks_leave_the_weights_that_stay_nearly_as_they_are(rows: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    network, weights = Network(module, {"all": [""]}, lambda m, rows: {"y": m(rows["x"])}), torch.ones(rows)
    batch, others = {"x": torch.randn(rows, 4)}, torch.randn(500, 4)
    groups = network.groups(batch)
    targets = dense_targets(network, groups, batch)
    with torch.no_grad():
        dense = module(others)
        with gradient._SoftLayers(network, groups, targets, weights).masked([torch.ones(8)]):
            module(batch["x"])  # which is what layers are fitted on
            found = module(others)
    torch.testing.assert_close(found, dense, atol=1e-4, rtol=0)


def test_a_newton_step_leads_to_the_least_of_a_separable_parabola_at_the_same_cost(
    problem: CoefficientProblem[Mlp],
) -> None:
    kept = tuple(uniform(problem, Progress()))
    now = np.array(problem.coefficients_of(kept))
    steepness, least = np.array([1.0, 3.0]), now + np.array([0.05, 0.02])

    def judge(choice: tuple[int, ...]) -> float:
        return float(steepness @ (np.array(problem.coefficients_of(choice)) - least) ** 2)

    step = gradient._newton_step(problem, judge, kept, 1.0)
    prices = prices_at(problem, kept)
    assert prices @ step == pytest.approx(0.0, abs=1e-6)
    assert np.abs(step).max() < gradient.TRUST  # or the bounds would decide
    left = 2 * steepness * (now + step - least) / prices  # equal where nothing is gained by trading (Lagrange)
    assert left[0] == pytest.approx(left[1], rel=1e-3)


def test_a_newton_step_stays_in_the_trust_region_and_does_not_follow_a_curvature_downwards(
    problem: CoefficientProblem[Mlp],
) -> None:
    kept = tuple(uniform(problem, Progress()))
    now = np.array(problem.coefficients_of(kept))

    def judge(choice: tuple[int, ...]) -> float:
        moved = np.array(problem.coefficients_of(choice)) - now
        return float(100.0 * moved[0] - 100.0 * moved[1] - 10.0 * (moved**2).sum())

    for share in (1.0, 0.25):
        step = gradient._newton_step(problem, judge, kept, share)
        assert step[0] < 0 < step[1]
        assert np.abs(step).max() == pytest.approx(share * gradient.TRUST)
        assert prices_at(problem, kept) @ step == pytest.approx(0.0, abs=1e-6)


def test_a_newton_step_removes_nothing_more_of_a_group_with_as_few_channels_as_may_be_left(
    problem: CoefficientProblem[Mlp],
) -> None:
    kept = (problem.fewest[0], problem.channels[1] // 2)
    step = gradient._newton_step(problem, lambda choice: float(choice[0] - choice[1]), kept, 1.0)
    assert step[0] <= 0.0
