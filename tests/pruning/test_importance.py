from __future__ import annotations

import pytest
import torch

from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.pruning.groups import find_groups
from nncontrol_prune.pruning.importance import IMPORTANCES, taylor


@pytest.mark.parametrize("name", sorted(IMPORTANCES))
def test_channel_that_does_nothing_is_least_important(name: str, module: Mlp, observations: torch.Tensor) -> None:
    with torch.no_grad():
        module.layers[0].weight[5], module.layers[0].bias[5] = 0.0, 0.0
        module.layers[1].weight[:, 5] = 0.0
    groups = find_groups(module, module.components(), observations[:4])
    scores = IMPORTANCES[name](module, groups, observations, torch.ones(len(observations)))
    assert [len(score) for score in scores] == [24, 16]
    assert scores[0].argmin() == 5
    assert scores[0][5] == 0.0


def test_taylor_predicts_the_effect_of_small_removals(module: Mlp, observations: torch.Tensor) -> None:
    with torch.no_grad():
        module.layers[2].weight *= 1e-3
    groups = find_groups(module, module.components(), observations[:4])
    scores = taylor(module, groups, observations, torch.ones(len(observations)))[1]
    hidden = torch.tanh(module.layers[1](torch.tanh(module.layers[0](observations))))
    dense = module(observations).detach()
    hidden = hidden.detach()
    for channel in range(16):
        changed = hidden.clone()
        changed[:, channel] = hidden[:, channel].mean()
        with torch.no_grad():
            effect = (module.output(module.layers[2](changed)) - dense).square().sum(dim=1).mean()
        assert scores[channel] == pytest.approx(float(effect), rel=0.02)


def test_taylor_keeps_the_network_and_its_gradients_untouched(module: Mlp, observations: torch.Tensor) -> None:
    groups = find_groups(module, module.components(), observations[:4])
    taylor(module, groups, observations, torch.ones(len(observations)))
    assert all(parameter.grad is None for parameter in module.parameters())
