from __future__ import annotations

import torch

from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.pruning.groups import find_groups
from nncontrol_prune.pruning.reconstruction import reconstruct, weighted_ridge
from nncontrol_prune.pruning.surgery import remove_channels


def test_weighted_ridge_solves_a_linear_problem_exactly() -> None:
    torch.manual_seed(0)
    inputs, weight, bias = torch.randn(200, 4).double(), torch.randn(4, 3).double(), torch.randn(3).double()
    found, offset = weighted_ridge(inputs, inputs @ weight + bias, torch.rand(200).double())
    torch.testing.assert_close(found, weight, atol=1e-4, rtol=0)
    torch.testing.assert_close(offset, bias, atol=1e-4, rtol=0)


def test_weights_decide_whose_error_counts() -> None:
    inputs = torch.tensor([[0.0], [1.0], [1.0]]).double()
    targets = torch.tensor([[0.0], [1.0], [3.0]]).double()
    weight, _ = weighted_ridge(inputs, targets, torch.tensor([1.0, 3.0, 1.0]).double())
    torch.testing.assert_close(weight, torch.tensor([[1.5]]).double(), atol=1e-4, rtol=0)


def test_dependent_inputs_are_no_obstacle() -> None:
    column = torch.randn(50, 1).double()
    weight, bias = weighted_ridge(column.repeat(1, 3), column, torch.ones(50).double())
    torch.testing.assert_close(column.repeat(1, 3) @ weight + bias, column, atol=1e-4, rtol=0)


def test_constant_inputs_give_the_mean() -> None:
    weight, bias = weighted_ridge(
        torch.ones(20, 2).double(), torch.full((20, 1), 3.0).double(), torch.ones(20).double()
    )
    assert torch.isfinite(weight).all()
    torch.testing.assert_close(torch.ones(1, 2).double() @ weight + bias, torch.tensor([[3.0]]).double())


def test_duplicated_channels_are_removed_without_any_loss(module: Mlp, observations: torch.Tensor) -> None:
    with torch.no_grad():
        module.layers[0].weight[12:] = module.layers[0].weight[:12]
        module.layers[0].bias[12:] = module.layers[0].bias[:12]
    groups = find_groups(module, module.components(), observations[:4])
    keep = [torch.arange(12), torch.arange(16)]
    pruned = remove_channels(module, groups, keep, observations[:4])
    dense = module(observations).detach()
    without = (pruned(observations) - dense).abs().max()
    reconstruct(pruned, module, groups, keep, observations, torch.ones(len(observations)))
    assert (pruned(observations) - dense).abs().max() < 1e-2 < without


def test_it_lowers_the_error_of_a_real_removal(module: Mlp, observations: torch.Tensor) -> None:
    groups = find_groups(module, module.components(), observations[:4])
    keep = [torch.arange(10), torch.arange(8)]
    pruned = remove_channels(module, groups, keep, observations[:4])
    dense = module(observations).detach()
    before = (pruned(observations) - dense).square().mean()
    reconstruct(pruned, module, groups, keep, observations, torch.ones(len(observations)))
    assert (pruned(observations) - dense).square().mean() < 0.1 * before
