from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nncontrol_prune.controllers.mlp import parameter_count
from nncontrol_prune.pruning.costs import LatencyCost, multiplication_cost, parameter_cost
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.groups import find_groups
from nncontrol_prune.pruning.surgery import remove_channels
from tests.pruning.networks import ConvNet, NormedLinear, ResidualNet, StackedEnsemble, WorldModel

INPUTS: list[tuple[type[Any], tuple[torch.Tensor, ...]]] = [
    (WorldModel, (torch.randn(7, 5), torch.randn(7, 2, 2))),
    (ResidualNet, (torch.randn(7, 5),)),
    (ConvNet, (torch.rand(3, 1, 12, 12),)),
    (StackedEnsemble, (torch.randn(7, 5),)),
]


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
@pytest.mark.parametrize(("network", "inputs"), INPUTS)
def test_cost_in_parameters_agrees_with_surgery(network: type[Any], inputs: Any, share: float) -> None:
    module = network()
    groups = find_groups(module, module.components, lambda m: m(*inputs))
    kept = [max(1, round(share * group.channels)) for group in groups]
    cost = parameter_cost(module, groups)
    shares = [count / group.channels for count, group in zip(kept, groups, strict=True)]
    pruned = remove_channels(module, groups, [torch.arange(count) for count in kept])
    assert cost.dense == parameter_count(module)
    assert cost(shares) == pytest.approx(parameter_count(pruned))
    assert cost.removed(shares) == pytest.approx(1 - parameter_count(pruned) / parameter_count(module))


@pytest.mark.parametrize(("network", "inputs"), INPUTS[:3])
def test_cost_in_multiplications_agrees_with_surgery(network: type[Any], inputs: Any) -> None:
    module = network()
    groups = find_groups(module, module.components, lambda m: m(*inputs))
    kept = [max(1, group.channels // 2) for group in groups]
    cost = multiplication_cost(module, groups, lambda m: m(*inputs))
    pruned = remove_channels(module, groups, [torch.arange(count) for count in kept])
    shares = [count / group.channels for count, group in zip(kept, groups, strict=True)]
    if network is not ConvNet:  # a depthwise kernel's second dimension is no input, so only rows count
        assert multiplication_cost(pruned, [], lambda m: m(*inputs)).dense == pytest.approx(cost(shares))


def test_multiplications_count_every_pixel_and_every_step() -> None:
    images = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 1, 2, stride=2))
    cost = multiplication_cost(images, [], lambda m: m(torch.zeros(3, 1, 6, 6)))
    assert cost.dense == 3 * (2 * 9 * 16 + 2 * 4 * 16)
    layer = nn.Linear(4, 4)
    assert multiplication_cost(layer, [], lambda m: m(m(torch.zeros(5, 4)))).dense == 5 * 2 * 16


def test_multiplications_of_layers_with_a_forward_of_their_own_are_those_of_their_operation() -> None:
    class Pair(NormedLinear):
        def forward(self, inputs: Any) -> Any:
            return super().forward(inputs).mean(-1), super().forward(inputs)  # twice

    class Standardized(nn.Conv2d):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self._conv_forward(inputs, self.weight / self.weight.std(), self.bias)

    assert multiplication_cost(Pair(4, 3), [], lambda m: m(torch.zeros(5, 4))).dense == 2 * 5 * 12
    assert multiplication_cost(Standardized(1, 2, 3), [], lambda m: m(torch.zeros(3, 1, 6, 6))).dense == 3 * 2 * 9 * 16


def test_latency_is_interpolated_and_differentiable() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    groups = find_groups(module, {"all": [""]}, lambda m: m(torch.zeros(2, 4)))
    work = multiplication_cost(module, groups, lambda m: m(torch.zeros(1, 4)))
    cost = LatencyCost(work, [(6.0, 1e-5), (24.0, 3e-5), (48.0, 2e-5)])
    assert cost.dense == 2e-5
    assert cost([0.5]) == pytest.approx(2e-5)  # less work never takes more time, whatever was measured
    assert cost([0.3125]) == pytest.approx(1.5e-5)
    share = torch.tensor(0.3125, requires_grad=True)
    removed = cost.removed([share])
    assert float(removed) == pytest.approx(1 / 4)
    removed.backward()
    assert float(share.grad) < 0


def test_latency_of_a_small_network_is_differentiable_where_measurements_coincide() -> None:
    module = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
    groups = find_groups(module, {"all": [""]}, lambda m: m(torch.zeros(2, 4)))
    work = multiplication_cost(module, groups, lambda m: m(torch.zeros(1, 4)))
    cost = LatencyCost(work, [(6.0, 1e-5), (6.0, 2e-5), (12.0, 3e-5), (12.0, 4e-5)])
    share = torch.tensor(0.5, requires_grad=True)
    seconds = cost([share])
    assert float(seconds) == pytest.approx(cost([0.5])) == 1e-5
    seconds.backward()
    assert float(share.grad) == pytest.approx(4e-5)


def test_a_network_too_small_for_a_latency_budget_is_refused() -> None:
    module = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 2))
    groups = find_groups(module, {"all": [""]}, lambda m: m(torch.zeros(2, 4)))
    work = multiplication_cost(module, groups, lambda m: m(torch.zeros(1, 4)))
    with pytest.raises(PruningError, match="too small for a latency budget"):
        LatencyCost(work, [(6.0, 1e-5), (6.0, 2e-5)])
