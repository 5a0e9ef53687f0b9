from __future__ import annotations

import pytest
import torch

from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.controllers.specs import MlpArchitecture
from nncontrol_prune.pruning.groups import find_groups
from nncontrol_prune.pruning.surgery import most_important, remove_channels


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu", "elu"])
@pytest.mark.parametrize("hidden", [(24,), (24, 16), (12, 20, 8)])
def test_pruned_network_equals_the_masked_dense_one(
    observations: torch.Tensor, activation: str, hidden: tuple[int, ...]
) -> None:
    torch.manual_seed(1)
    module = Mlp(MlpArchitecture(hidden=hidden, activation=activation), 5, 2)
    groups = find_groups(module, module.components(), observations[:4])
    keep = most_important([torch.rand(g.channels) for g in groups], [g.channels // 2 for g in groups])
    pruned = remove_channels(module, groups, keep, observations[:4])
    masks = {g.consumers[0]: torch.zeros(g.channels).index_fill(0, k, 1.0) for g, k in zip(groups, keep, strict=True)}
    for name, mask in masks.items():
        module.get_submodule(name).register_forward_pre_hook(lambda _, inputs, mask=mask: (inputs[0] * mask,))
    torch.testing.assert_close(pruned(observations), module(observations), atol=1e-5, rtol=0)
    assert pruned.current_architecture().hidden == tuple(width // 2 for width in hidden)


def test_the_dense_network_is_left_alone(module: Mlp, observations: torch.Tensor) -> None:
    before = module(observations)
    groups = find_groups(module, module.components(), observations[:4])
    remove_channels(module, groups, [torch.arange(3), torch.arange(2)], observations[:4])
    torch.testing.assert_close(module(observations), before)


def test_most_important_channels_come_sorted_and_ties_go_to_the_first() -> None:
    (kept,) = most_important([torch.tensor([0.0, 5.0, 1.0, 5.0, 1.0])], [3])
    assert kept.tolist() == [1, 2, 3]
