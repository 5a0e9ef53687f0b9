from __future__ import annotations

import pytest
import torch

from nncontrol_prune.controllers.mlp import Mlp, parameter_count
from nncontrol_prune.controllers.specs import MlpArchitecture
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.groups import ParameterCount, find_groups
from nncontrol_prune.pruning.surgery import most_important, remove_channels


def test_each_hidden_layer_is_a_group_with_the_layer_after_it(module: Mlp, observations: torch.Tensor) -> None:
    groups = find_groups(module, module.components(), observations[:4])
    assert [(g.name, g.producers, g.consumers, g.channels) for g in groups] == [
        ("layers.0", ("layers.0",), ("layers.1",), 24),
        ("layers.1", ("layers.1",), ("layers.2",), 16),
    ]
    assert {g.components for g in groups} == {("policy",)}
    assert {g.kind for g in groups} == {"intra-component"}


def test_cost_of_a_channel_is_what_leaves_with_it(module: Mlp, observations: torch.Tensor) -> None:
    groups = find_groups(module, module.components(), observations[:4])
    for index, group in enumerate(groups):
        kept = [g.channels - (position == index) for position, g in enumerate(groups)]
        keep = most_important([torch.arange(g.channels) for g in groups], kept)
        smaller = remove_channels(module, groups, keep, observations[:4])
        assert parameter_count(module) - parameter_count(smaller) == group.parameters_per_channel(module)


@pytest.mark.parametrize("kept", [(24, 16), (1, 1), (7, 11), (24, 3)])
def test_parameter_count_agrees_with_surgery(module: Mlp, observations: torch.Tensor, kept: tuple[int, int]) -> None:
    groups = find_groups(module, module.components(), observations[:4])
    keep = most_important([torch.arange(g.channels) for g in groups], kept)
    smaller = remove_channels(module, groups, keep, observations[:4])
    counted = ParameterCount(module, groups)([k / g.channels for k, g in zip(kept, groups, strict=True)])
    assert counted == pytest.approx(parameter_count(smaller))


def test_network_without_hidden_layer_has_nothing_to_prune() -> None:
    module = Mlp(MlpArchitecture(hidden=()), 3, 1)
    with pytest.raises(PruningError, match="nothing to prune"):
        find_groups(module, module.components(), torch.zeros(2, 3))


def test_member_outside_every_component_is_named(module: Mlp, observations: torch.Tensor) -> None:
    with pytest.raises(PruningError, match=r"layers\.1 belongs to none of the components first"):
        find_groups(module, {"first": ["layers.0"]}, observations[:4])


def test_group_across_components_is_inter_component(module: Mlp, observations: torch.Tensor) -> None:
    groups = find_groups(module, {"first": ["layers.0"], "rest": ["layers.1", "layers.2"]}, observations[:4])
    assert [group.kind for group in groups] == ["inter-component", "intra-component"]
    assert groups[0].components == ("first", "rest")
