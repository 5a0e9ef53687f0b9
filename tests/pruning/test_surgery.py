from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.controllers.specs import MlpArchitecture
from nncontrol_prune.pruning.groups import find_groups
from nncontrol_prune.pruning.network import Network
from nncontrol_prune.pruning.surgery import most_important, remove_channels
from tests.pruning.networks import ConvNet, ResidualNet, StackedEnsemble, WorldModel, masked


def check_equals_masked(module: Any, components: Any, run: Callable[[Any], Any], share: float = 0.5) -> nn.Module:
    """Check that a pruned network computes what the dense one does without the channels, and return it."""
    for parameter in module.parameters():  # norms and biases that do nothing would hide mistakes
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5, 0.5)
    module.eval()
    groups = find_groups(module, components, run)
    keep = most_important(
        [torch.rand(group.channels) for group in groups], [max(1, round(share * g.channels)) for g in groups]
    )
    pruned = remove_channels(module, groups, keep)
    with torch.no_grad(), masked(module, groups, keep):
        torch.testing.assert_close(run(pruned), run(module), atol=1e-5, rtol=0)
    return pruned


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu", "elu"])
@pytest.mark.parametrize("hidden", [(24,), (24, 16), (12, 20, 8)])
def test_pruned_mlp_equals_the_masked_dense_one(observations: Tensor, activation, hidden: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    module = Mlp(MlpArchitecture(hidden=hidden, activation=activation), 5, 2)
    module.normalizer.mean.normal_()
    pruned = check_equals_masked(module, module.components(), lambda m: m(observations))
    assert isinstance(pruned, Mlp)
    assert pruned.current_architecture().hidden == tuple(width // 2 for width in hidden)
    torch.testing.assert_close(pruned.normalizer.mean, module.normalizer.mean)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("network", [WorldModel, ResidualNet, ConvNet, StackedEnsemble])
def test_pruned_network_equals_the_masked_dense_one(network: type[Any], share: float) -> None:
    torch.manual_seed(2)
    inputs = {
        WorldModel: (torch.randn(7, 5), torch.randn(7, 2, 2)),
        ResidualNet: (torch.randn(7, 5),),
        ConvNet: (torch.rand(3, 1, 12, 12),),
        StackedEnsemble: (torch.randn(7, 5),),
    }[network]
    module = network()
    if network is ConvNet:
        module.encoder[1].running_mean.normal_()
        module.encoder[1].running_var.uniform_(0.5, 2.0)
    check_equals_masked(module, module.components, lambda m: m(*inputs), share)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 2, 3)],
        [nn.Conv1d(2, 6, 3), nn.Conv1d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv1d(6, 2, 3)],
        [nn.Conv1d(2, 6, 3), nn.ConvTranspose1d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv1d(6, 2, 3)],
        [nn.Conv1d(2, 6, 3), nn.Conv1d(6, 4, 1), nn.Conv1d(4, 8, 3, groups=2), nn.Conv1d(8, 2, 3)],
        [nn.Conv1d(2, 6, 3), nn.Conv1d(6, 4, 1), nn.ConvTranspose1d(4, 8, 3, groups=4), nn.Conv1d(8, 2, 3)],
        [nn.Conv1d(2, 6, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 2)],
        [nn.Conv1d(2, 6, 3), nn.InstanceNorm1d(6, affine=True), nn.Upsample(scale_factor=2, mode="linear"),
         nn.ReflectionPad1d(1), nn.Conv1d(6, 2, 3)],
        [nn.Conv1d(2, 6, 3), nn.GroupNorm(1, 6), nn.ReLU(), nn.Conv1d(6, 2, 3)],
        [nn.Linear(8, 6), nn.PReLU(6), nn.Dropout(), nn.Linear(6, 2)],
        [nn.Linear(8, 6), nn.RMSNorm(6), nn.GELU(), nn.Linear(6, 6, bias=False), nn.LayerNorm(6, bias=False),
         nn.Hardswish(), nn.Linear(6, 2)],
        [nn.Linear(8, 54), nn.ReLU(), nn.Unflatten(1, (6, 3, 3)), nn.Conv2d(6, 2, 3)],
        [nn.Linear(8, 54), nn.ReLU(), nn.Unflatten(-1, [1, 6, 9]), nn.Flatten(1, 2), nn.Conv1d(6, 2, 3)],
    ],
    ids=["conv1d", "depthwise", "depthwise transposed", "grouped", "grouped transposed",
         "pooled", "instance norm", "one group norm", "prelu", "norms",
         "unflattened", "unflattened behind a size of one"],
)  # fmt: skip
def test_layers_of_all_kinds(layers: list[nn.Module]) -> None:
    torch.manual_seed(3)
    inputs = torch.randn(3, 2, 8) if isinstance(layers[0], nn.Conv1d) else torch.randn(3, 8)
    check_equals_masked(nn.Sequential(*layers), {"all": [""]}, lambda m: m(inputs))


BARE_NORMS = {
    "layer": [nn.Linear(8, 12), nn.LayerNorm(12, elementwise_affine=False), nn.Tanh(), nn.Linear(12, 2)],
    "rms": [nn.Linear(8, 12), nn.Tanh(), nn.RMSNorm(12, elementwise_affine=False), nn.Linear(12, 2)],
    "group": [nn.Linear(8, 12), nn.GroupNorm(4, 12, affine=False), nn.ReLU(), nn.Linear(12, 2)],
    "all": [nn.Linear(8, 12), nn.GroupNorm(1, 12, affine=False), nn.ReLU(), nn.Linear(12, 2)],
    "all of an image": [nn.Conv1d(2, 12, 3), nn.GroupNorm(1, 12, affine=False), nn.ReLU(), nn.Conv1d(12, 2, 3)],
    "batch": [nn.Linear(8, 12), nn.BatchNorm1d(12, affine=False), nn.ReLU(), nn.Linear(12, 2)],
    "images": [nn.Conv1d(2, 12, 3), nn.BatchNorm1d(12, affine=False), nn.GroupNorm(6, 12, affine=False),
               nn.ReLU(), nn.Conv1d(12, 2, 3)],
    "instance": [nn.Conv1d(2, 12, 3), nn.InstanceNorm1d(12), nn.ReLU(), nn.Conv1d(12, 2, 3)],
    "forgetful": [nn.Linear(8, 12), nn.BatchNorm1d(12, affine=False, track_running_stats=False), nn.Linear(12, 2)],
}  # fmt: skip


@pytest.mark.parametrize("kind", BARE_NORMS)
def test_norms_without_parameters_norm_the_channels_that_are_left(kind: str) -> None:
    torch.manual_seed(3)
    module = nn.Sequential(*BARE_NORMS[kind])
    inputs = torch.randn(5, 2, 8) if isinstance(module[0], nn.Conv1d) else torch.randn(5, 8)
    for layer in module:
        if isinstance(layer, nn.BatchNorm1d) and layer.track_running_stats:
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    pruned = check_equals_masked(module, {"all": [""]}, lambda m: m(inputs))
    sizes = ("normalized_shape", "num_features", "num_channels")
    remembered = [getattr(layer, size) for layer in pruned.modules() for size in sizes if hasattr(layer, size)]
    assert remembered
    assert set(remembered) <= {6, (6,)}
    assert list(pruned.state_dict()) == list(module.state_dict())


def test_an_ensemble_whose_members_einsum_runs() -> None:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.bias = nn.Parameter(torch.randn(3, 5, 8)), nn.Parameter(torch.randn(3, 8))
            self.second = nn.Parameter(torch.randn(3, 8, 2))

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = torch.tanh(torch.einsum("bi,eio->beo", inputs, self.first) + self.bias)
            return torch.einsum("bei,eio->beo", hidden, self.second)

    torch.manual_seed(3)
    inputs = torch.randn(7, 5)
    pruned: Any = check_equals_masked(Ensemble(), {"all": [""]}, lambda m: m(inputs))
    assert (pruned.first.shape, pruned.bias.shape, pruned.second.shape) == ((3, 5, 4), (3, 4), (3, 4, 2))


def test_a_depthwise_transposed_convolution_has_a_group_for_each_channel_left() -> None:
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 6, 3), nn.ConvTranspose2d(6, 6, 3, stride=2, groups=6), nn.ReLU(), nn.Conv2d(6, 1, 3)]
    pruned: Any = check_equals_masked(nn.Sequential(*layers), {"all": [""]}, lambda m: m(torch.ones(2, 1, 8, 8)))
    assert (pruned[1].groups, pruned[1].in_channels, pruned[1].out_channels) == (3, 3, 3)


@pytest.mark.parametrize(
    ("sizes", "left"), [((6, 3, 3), (-1, 3, 3)), ((1, 6, 9), (1, -1, 9)), ((6, -1), (6, -1)), ((1, 1), (1, 1))]
)
def test_of_the_sizes_to_unflatten_to_the_channels_are_left_open(sizes: tuple[int, ...], left: tuple[int, ...]) -> None:
    module = nn.Sequential(nn.Unflatten(1, sizes))
    assert remove_channels(module, [], [])[0].unflattened_size == left
    assert module[0].unflattened_size == sizes


def test_an_embedding_loses_channels_and_keeps_its_rows() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.first, self.last = nn.Embedding(3, 8), nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(inputs) + self.table((inputs[:, 0] > 0).long())))

    torch.manual_seed(0)
    module, inputs = Embedded(), torch.randn(5, 4)
    groups = find_groups(module, {"all": [""]}, lambda m: m(inputs))
    keep = [torch.tensor([0, 2, 3, 7])]
    pruned = remove_channels(module, groups, keep)
    assert (pruned.table.num_embeddings, pruned.table.embedding_dim) == (3, 4)
    with masked(module, groups, keep):
        torch.testing.assert_close(pruned(inputs), module(inputs))


def test_a_tensor_that_two_layers_share_stays_shared() -> None:
    module = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    module[2].weight = module[1].weight
    groups = find_groups(module, {"all": [""]}, lambda m: m(torch.randn(2, 5)))
    pruned = remove_channels(module, groups, [torch.arange(group.channels // 2) for group in groups])
    assert pruned[1].weight is pruned[2].weight
    assert pruned(torch.randn(2, 5)).shape == (2, 2)


def test_the_dense_network_is_left_alone(network: Network[Mlp], observations: Tensor) -> None:
    before = network.module(observations)
    groups = network.groups({"observation": observations})
    remove_channels(network.module, groups, [torch.arange(3), torch.arange(2)])
    torch.testing.assert_close(network.module(observations), before)


def test_most_important_channels_come_sorted_and_ties_go_to_the_first() -> None:
    (kept,) = most_important([torch.tensor([0.0, 5.0, 1.0, 5.0, 1.0])], [3])
    assert kept.tolist() == [1, 2, 3]
