from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from nncontrol_prune.controllers.mlp import Mlp, parameter_count
from nncontrol_prune.controllers.specs import MlpArchitecture
from nncontrol_prune.progress import Cancelled, Progress
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.coefficients import CoefficientProblem, uniform
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.pipeline import METHODS, coefficient_problem
from nncontrol_prune.pruning.settings import PruningSettings

METHOD_NAMES = sorted(METHODS)


def problem(module: Mlp, calibration: Calibration, **settings) -> CoefficientProblem[Mlp]:
    return coefficient_problem(module, calibration, PruningSettings(**{"tolerance": 0.02, **settings}), Progress())


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7, 0.9])
def test_every_method_lands_within_the_tolerance(
    method: str, sparsity: float, module: Mlp, calibration: Calibration
) -> None:
    to_solve = problem(module, calibration, sparsity=sparsity)
    kept = METHODS[method](to_solve, Progress())
    removed = 1 - parameter_count(to_solve.build(kept)) / parameter_count(module)
    assert removed == pytest.approx(sparsity, abs=0.02)
    assert removed == pytest.approx(to_solve.sparsity_of(kept))


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_is_deterministic(method: str, module: Mlp, calibration: Calibration) -> None:
    to_solve = problem(module, calibration, sparsity=0.6)
    assert METHODS[method](to_solve, Progress()) == METHODS[method](to_solve, Progress())


@pytest.mark.parametrize("method", ["grid", "gradient"])
def test_optimized_coefficients_are_no_worse_than_uniform_ones(
    method: str, module: Mlp, calibration: Calibration
) -> None:
    to_solve = problem(module, calibration, sparsity=0.6)
    found, baseline = METHODS[method](to_solve, Progress()), uniform(to_solve, Progress())
    assert to_solve.objective(to_solve.build(found)) <= to_solve.objective(to_solve.build(baseline))


@pytest.mark.parametrize("method", ["grid", "gradient"])
def test_redundant_layer_is_pruned_first(method: str, calibration: Calibration) -> None:
    torch.manual_seed(0)
    module = Mlp(MlpArchitecture(hidden=(32, 32), activation="tanh"), 5, 2).eval()
    with torch.no_grad():  # the second layer needs two channels, the first all of its own
        module.layers[0].weight *= 3.0
        module.layers[1].weight[2:] = module.layers[1].weight[:2].repeat(15, 1)
        module.layers[1].bias[2:] = module.layers[1].bias[:2].repeat(15)
    to_solve = problem(module, calibration, sparsity=0.6)
    first, second = METHODS[method](to_solve, Progress())
    assert first > second


def test_small_networks_are_landed_wherever_a_whole_number_of_channels_allows_it(calibration: Calibration) -> None:
    module = Mlp(MlpArchitecture(hidden=(16, 16)), 5, 2).eval()
    to_solve = problem(module, calibration, sparsity=0.5, tolerance=0.01)
    every = [to_solve.sparsity_of([a, b]) for a in range(1, 17) for b in range(1, 17)]
    for target in np.arange(0.05, 0.95, 0.02):
        if min(abs(found - target) for found in every) <= 0.01:
            kept = uniform(dataclasses.replace(to_solve, sparsity=float(target)), Progress())
            assert abs(to_solve.sparsity_of(kept) - target) <= 0.01


def test_unreachable_sparsity_names_the_largest(module: Mlp, calibration: Calibration) -> None:
    to_solve = problem(module, calibration, sparsity=0.999, tolerance=0.001)
    with pytest.raises(PruningError, match=f"{to_solve.largest_sparsity:.4g}"):
        uniform(to_solve, Progress())


def test_sparsity_between_whole_channels_names_the_nearest(calibration: Calibration) -> None:
    module = Mlp(MlpArchitecture(hidden=(3,)), 5, 2).eval()
    with pytest.raises(PruningError, match="nearest found is"):
        uniform(problem(module, calibration, sparsity=0.45, tolerance=0.001), Progress())


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_can_be_cancelled(method: str, module: Mlp, calibration: Calibration) -> None:
    to_solve = problem(module, calibration, sparsity=0.6)
    with pytest.raises(Cancelled, match="coefficients"):
        METHODS[method](to_solve, Progress(cancelled=lambda: True))
