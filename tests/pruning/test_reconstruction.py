from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.controllers.specs import MlpArchitecture
from nncontrol_prune.pruning.architectures import recipe_for
from nncontrol_prune.pruning.groups import Group, Member
from nncontrol_prune.pruning.network import Network
from nncontrol_prune.pruning.reconstruction import (
    Target,
    affine_fit,
    blown_up,
    contrast_factor,
    fitted_layers,
    least_squares,
    reconstruct,
)
from nncontrol_prune.pruning.ridge import weighted_ridge
from nncontrol_prune.pruning.surgery import remove_channels
from nncontrol_prune.pruning.terms import Term
from tests.pruning.networks import NormedLinear, WorldModel


def test_a_layer_follows_many_noisy_rows_and_where_they_are_scarce_a_part_of_the_way() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 3).double()
    left = layer.weight.detach().T
    for rows, follows in ((1000, True), (12, False), (6, False)):
        inputs = torch.randn(rows, 8).double()
        wanted = layer(inputs).detach() + torch.randn(rows, 3).double()
        found, _ = least_squares(layer, inputs, wanted, torch.ones(rows).double(), left)
        closest, _ = weighted_ridge(inputs, wanted, torch.ones(rows).double(), towards=left)
        share = float((found - left).norm() / (closest - left).norm())
        assert share == pytest.approx(1.0, abs=1e-3) if follows else share < 0.9


def test_affine_fit_finds_scale_and_offset_of_every_channel() -> None:
    found = torch.randn(200, 3)  # of 100 rows with two positions each
    scale, offset = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.0, 3.0, -1.0])
    wanted = found * scale + offset
    a, b = affine_fit(found, wanted, torch.rand(100), intercept=True)
    torch.testing.assert_close(a, scale, atol=1e-4, rtol=0)
    torch.testing.assert_close(b, offset, atol=1e-4, rtol=0)


def test_duplicated_channels_are_removed_without_any_loss(network: Network[Mlp], observations: Tensor) -> None:
    module, batch = network.module, {"observation": observations}
    with torch.no_grad():
        module.layers[0].weight[12:] = module.layers[0].weight[:12]
        module.layers[0].bias[12:] = module.layers[0].bias[:12]
    groups = network.groups(batch)
    keep = [torch.arange(12), torch.arange(16)]
    pruned = remove_channels(module, groups, keep)
    dense = module(observations).detach()
    without = (pruned(observations) - dense).abs().max()
    warnings = reconstruct(pruned, network, groups, keep, batch, torch.ones(len(observations)))
    assert (pruned(observations) - dense).abs().max() < 1e-2 < without
    assert warnings == []


def test_it_lowers_the_error_of_a_real_removal(network: Network[Mlp], observations: Tensor) -> None:
    module, batch = network.module, {"observation": observations}
    groups = network.groups(batch)
    keep = [torch.arange(10), torch.arange(8)]
    pruned = remove_channels(module, groups, keep)
    dense = module(observations).detach()
    before = (pruned(observations) - dense).square().mean()
    reconstruct(pruned, network, groups, keep, batch, torch.ones(len(observations)))
    assert (pruned(observations) - dense).square().mean() < 0.1 * before


def test_a_saturated_action_is_fitted_where_it_is_not() -> None:
    torch.manual_seed(6)
    module = Mlp(MlpArchitecture(hidden=(48, 48)), 5, 2)
    with torch.no_grad():
        module.layers[-1].weight *= 60.0  # at its limit nearly everywhere
    recipe = recipe_for(module)
    batch = {"observation": torch.randn(2000, 5)}
    groups = recipe.network.groups(batch)
    keep = [torch.arange(12), torch.arange(12)]
    error = {}
    for terms in ((), recipe.terms[:1]):
        pruned = remove_channels(module, groups, keep)
        reconstruct(pruned, recipe.network, groups, keep, batch, torch.ones(2000), terms=terms)
        with torch.no_grad():
            error[len(terms)] = float((module(batch["observation"]) - pruned(batch["observation"])).square().mean())
    assert error[1] < 0.95 * error[0]


def world_model_network() -> tuple[Network[WorldModel], dict[str, Tensor]]:
    torch.manual_seed(4)
    module = WorldModel().eval()
    batch = {"observation": torch.randn(2000, 5), "action": torch.rand(2000, 2, 2) * 2 - 1}
    return Network(module, module.components, lambda m, b: m(b["observation"], b["action"])), batch


def test_it_works_through_norms_and_unrolled_dynamics() -> None:
    network, batch = world_model_network()
    groups = network.groups(batch)
    keep = [torch.arange(max(1, round(0.7 * group.channels))) for group in groups]
    pruned = remove_channels(network.module, groups, keep)
    with torch.no_grad():
        dense = network.run(network.module, batch)
        before = {name: (output - dense[name]).square().mean() for name, output in network.run(pruned, batch).items()}
    reconstruct(pruned, network, groups, keep, batch, torch.ones(2000))
    with torch.no_grad():
        found = network.run(pruned, batch)
    for name in ("action0", "reward0", "value0"):
        assert (found[name] - dense[name]).square().mean() < 0.2 * before[name]


def test_the_affine_part_of_a_norm_is_refitted_for_its_new_statistics() -> None:
    torch.manual_seed(5)
    module = nn.Sequential(nn.Linear(4, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 2))
    with torch.no_grad():
        module[0].bias[6:] += 20.0  # the channels that leave have made up most of the norm's statistics
    network = Network(module, {"all": [""]}, lambda m, b: {"output": m(b["x"])})
    batch = {"x": torch.randn(500, 4)}
    groups = network.groups(batch)
    keep = [torch.arange(6)]
    pruned = remove_channels(module, groups, keep)
    with torch.no_grad():
        wanted = module[:2](batch["x"])[:, :6]
        before = (pruned[:2](batch["x"]) - wanted).square().mean()
        reconstruct(pruned, network, groups, keep, batch, torch.ones(500))
        after = (pruned[:2](batch["x"]) - wanted).square().mean()
    assert after < 0.2 * before


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_norms_over_convolutions_of_any_number_of_dimensions_are_fitted(dimensions: int, norm: str) -> None:
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
    batch_norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dimensions]
    middle = batch_norm(8) if norm == "batch" else nn.GroupNorm(2, 8)
    module = nn.Sequential(convolution(1, 8, 3), middle, nn.ReLU(), convolution(8, 1, 3)).eval()
    network = Network(module, {"all": [""]}, lambda m, b: {"output": m(b["x"])})
    groups = network.groups({"x": torch.randn(4, 1, *[6] * dimensions)})
    assert set(fitted_layers(module, groups)) == {"1", "3"}


def test_rows_without_weight_are_none(network: Network[Mlp], observations: Tensor) -> None:
    groups = network.groups({"observation": observations})
    keep = [torch.arange(20), torch.arange(14)]
    few = torch.arange(len(observations)) < 20
    found = []
    for rows, weights in ((observations, few.float()), (observations[few], torch.ones(20))):
        pruned = remove_channels(network.module, groups, keep)
        warnings = reconstruct(pruned, network, groups, keep, {"observation": rows}, weights)
        found.append((pruned(observations), warnings))
    assert found[0][1] == found[1][1]
    assert "fitted on 20 rows only" in found[0][1][0]
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-3, rtol=1e-3)


def test_too_few_rows_are_regularized_and_it_says_so(network: Network[Mlp], observations: Tensor) -> None:
    batch = {"observation": observations[:20]}
    groups = network.groups(batch)
    keep = [torch.arange(20), torch.arange(14)]
    pruned = remove_channels(network.module, groups, keep)
    warnings = reconstruct(pruned, network, groups, keep, batch, torch.ones(20))
    assert [warning[:8] for warning in warnings] == ["layers.1", "layers.2"]
    assert "20 rows only, so it is regularized strongly; record more rollouts" in warnings[0]
    assert torch.isfinite(pruned(observations)).all()


@pytest.mark.parametrize(("rows", "kept"), [(20, True), (200, False)])
@pytest.mark.parametrize("terms", [(), (Term("output"),)], ids=["once", "twice fitted"])
def test_few_rows_leave_the_weight_of_a_channel_that_they_do_not_excite(
    terms: tuple[Term, ...], rows: int, kept: bool
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 2))
    with torch.no_grad():
        module[0].bias[0] = -100.0  # off in all rows
    network = Network(module, {"all": [""]}, lambda m, b: {"output": m(b["x"])})
    batch = {"x": torch.randn(rows, 4)}
    groups, keep = network.groups(batch), [torch.arange(11)]
    pruned = remove_channels(module, groups, keep)
    reconstruct(pruned, network, groups, keep, batch, torch.ones(rows), terms=terms)
    assert torch.allclose(pruned[2].weight[:, 0], module[2].weight[:, 0]) == kept


class _MultipliesByItself(nn.Module):
    """Uses a layer's weights without running it, and a matrix that belongs to none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 6)
        self.matrix = nn.Parameter(torch.randn(6, 2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(inputs))
        return torch.relu(functional.linear(hidden, self.second.weight, self.second.bias)) @ self.matrix


def test_matrices_that_cannot_be_refitted_are_named() -> None:
    module = _MultipliesByItself()
    network = Network(module, {"all": [""]}, lambda m, b: {"y": m(b["x"])})
    batch = {"x": torch.randn(100, 3)}
    groups = network.groups(batch)
    keep = [torch.arange(group.channels // 2) for group in groups]
    pruned = remove_channels(module, groups, keep)
    warnings = reconstruct(pruned, network, groups, keep, batch, torch.ones(100), terms=[Term("y")])
    assert warnings == ["reconstruction cannot refit matrix; distillation can make up for what they lose"]
    assert pruned(batch["x"]).shape == (100, 2)
    assert not torch.allclose(pruned.second.weight, module.second.weight[:3, :4])


class _Paired(NormedLinear):
    """Takes a pair in, except for the first, and gives one out."""

    def forward(self, inputs: Any) -> Any:
        hidden = inputs if isinstance(inputs, Tensor) else inputs[1]
        return inputs, super().forward(hidden)


class _Adapted(nn.Linear):
    """A layer with a correction of low rank, as LoRA has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + inputs @ self.down.T @ self.up.T


class _Padding(nn.Conv2d):
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(super().forward(functional.pad(inputs, [1] * 4)))


class _Strided(nn.Conv2d):
    def forward(self, inputs: Tensor) -> Tensor:
        return functional.conv2d(inputs, self.weight, self.bias, stride=2)


class _ChannelsFirst(nn.LayerNorm):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.movedim(1, -1)).movedim(-1, 1)


class _Halved(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, 0.5 * self.weight, self.bias)


class _Above(nn.Linear):
    """Does what its weight and bias say, and says so in its own words."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight.T + self.bias


class _Standardized(nn.Conv2d):
    def forward(self, inputs: Tensor) -> Tensor:
        return self._conv_forward(inputs, self.weight / self.weight.std(), self.bias)


class _Scaling(nn.LayerNorm):
    def forward(self, inputs: Tensor) -> Tensor:
        return functional.layer_norm(inputs, self.normalized_shape, 2 * self.weight, self.bias)


def _reconstructed(module: nn.Module, inputs: Tensor) -> tuple[Any, list[str]]:
    network = Network(module, {"all": [""]}, lambda m, b: {"y": m(b["x"])})
    groups = network.groups({"x": inputs})
    keep = [torch.arange(group.channels // 2) for group in groups]
    pruned = remove_channels(module, groups, keep)
    return pruned, reconstruct(pruned, network, groups, keep, {"x": inputs}, torch.ones(len(inputs)), terms=[Term("y")])


def _is_fitted_like(module: nn.Module, twin: nn.Module, inputs: Tensor) -> bool:
    """Return whether two networks of the same parameters have the same ones after reconstruction, without warnings."""
    (pruned, warnings), (other, _) = _reconstructed(module, inputs), _reconstructed(twin, inputs)
    pairs = zip(pruned.parameters(), other.parameters(), strict=True)
    return warnings == [] and all(torch.equal(found, wanted) for found, wanted in pairs)


def test_a_linear_layer_with_norm_and_activation_in_it_is_fitted_as_these_are_behind_it() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(NormedLinear(4, 16), NormedLinear(16, 12, act=nn.ReLU()), nn.Linear(12, 2))
    composed = nn.Sequential(module[0].composed(), module[1].composed(), module[2])
    assert _is_fitted_like(module, composed, torch.randn(200, 4))


def test_a_layer_that_takes_in_and_gives_out_more_than_one_tensor_is_fitted() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 2)

        def forward(self, pair: tuple[Any, Tensor]) -> Tensor:
            return self.layer(pair[1])

    torch.manual_seed(0)
    module = nn.Sequential(_Paired(4, 16), _Paired(16, 12), Last())
    composed = nn.Sequential(module[0].composed(), module[1].composed(), module[2].layer)
    assert _is_fitted_like(module, composed, torch.randn(200, 4))


@pytest.mark.parametrize("kind", [_Padding, _Strided])
def test_a_convolution_is_fitted_as_its_forward_runs_it(kind: Any) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), kind(8, 8, 3), nn.Conv2d(8, 2, 3))
    layer = nn.Conv2d(8, 8, 3, stride=2 if kind is _Strided else 1)
    layer.weight, layer.bias = module[2].weight, module[2].bias
    inside = [layer] if kind is _Strided else [nn.ZeroPad2d(1), layer, nn.ReLU()]
    twin = nn.Sequential(module[0], module[1], nn.Sequential(*inside), module[3])
    assert _is_fitted_like(module, twin, torch.randn(200, 1, 15, 15))


def test_the_weight_of_a_layer_with_a_correction_is_fitted_to_what_it_does_itself() -> None:
    torch.manual_seed(0)
    module, inputs = (
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), _Adapted(8, 8), nn.ReLU(), nn.Linear(8, 2)),
        torch.randn(200, 4),
    )
    plain = nn.Sequential(module[0], module[1], nn.Linear(8, 8), module[3], module[4])
    plain[2].weight, plain[2].bias = module[2].weight, module[2].bias
    (pruned, warnings), (other, _) = _reconstructed(module, inputs), _reconstructed(plain, inputs)
    assert torch.equal(pruned[2].weight, other[2].weight)
    assert warnings == ["reconstruction cannot refit 2.down, 2.up; distillation can make up for what they lose"]


@pytest.mark.parametrize("kind", [_Halved, _Above, _Standardized])
def test_a_layer_whose_forward_makes_something_else_of_its_weight_is_left_as_it_is_and_named(kind: Any) -> None:
    torch.manual_seed(0)
    if issubclass(kind, nn.Conv2d):
        first, own, last, inputs = nn.Conv2d(1, 8, 3), kind(8, 8, 3), nn.Conv2d(8, 2, 3), torch.randn(200, 1, 9, 9)
    else:
        first, own, last, inputs = nn.Linear(4, 8), kind(8, 8), nn.Linear(8, 2), torch.randn(200, 4)
    pruned, warnings = _reconstructed(nn.Sequential(first, nn.ReLU(), own, nn.ReLU(), last), inputs)
    torch.testing.assert_close(pruned[2].weight, own.weight[:4, :4])
    assert not torch.allclose(pruned[4].weight, last.weight[:, :4])
    (warning,) = [warning for warning in warnings if "weight and bias" in warning]
    assert warning.startswith(
        "reconstruction cannot refit 2: weight and bias are not used there as they are, in one operation"
    )


def test_a_hook_that_makes_something_else_of_an_output_changes_nothing_of_the_fit() -> None:
    torch.manual_seed(0)
    module, inputs = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(200, 4)
    other, _ = _reconstructed(module, inputs)
    module[2].register_forward_hook(lambda layer, inputs, output: 3.0 * output)
    pruned, warnings = _reconstructed(module, inputs)
    assert warnings == []
    assert torch.equal(pruned[2].weight, other[2].weight)


def test_a_norm_that_runs_over_another_dimension_by_a_forward_of_its_own_is_fitted() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 3), _ChannelsFirst(8), nn.ReLU(), nn.Conv2d(8, 2, 3))
    pruned, warnings = _reconstructed(module, torch.randn(200, 1, 9, 9))
    assert not torch.allclose(pruned[1].weight, torch.ones(4), atol=1e-3)
    assert warnings == []


def test_a_norm_whose_forward_makes_something_else_of_its_weight_is_left_as_it_is_and_named() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), _Scaling(8), nn.ReLU(), nn.Linear(8, 2))
    pruned, warnings = _reconstructed(module, torch.randn(200, 4))
    assert torch.equal(pruned[1].weight, torch.ones(4))
    assert "cannot refit 1:" in warnings[0]


def test_nothing_is_said_of_tensors_that_are_only_added_or_scaled() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.table, self.last = nn.Linear(4, 8), nn.Embedding(2, 8), nn.Linear(8, 2)
            self.position, self.scale = nn.Parameter(torch.randn(1, 5, 8)), nn.Parameter(torch.randn(5, 8))

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.position + self.first(inputs) + self.table((inputs[..., 0] > 0).long())
            return self.last(torch.relu(self.scale * hidden))

    module, batch = Tokens(), {"x": torch.randn(100, 5, 4)}
    network = Network(module, {"all": [""]}, lambda m, b: {"y": m(b["x"])})
    groups, keep = network.groups(batch), [torch.arange(4)]
    pruned = remove_channels(module, groups, keep)
    assert reconstruct(pruned, network, groups, keep, batch, torch.ones(100)) == []
    assert pruned.position.shape == (1, 5, 4)


def test_nothing_is_said_of_layers_that_mix_no_channels() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(1, 8, 3), nn.ConvTranspose1d(8, 8, 3, groups=8), nn.ConvTranspose1d(8, 1, 3))
    network = Network(module, {"all": [""]}, lambda m, b: {"y": m(b["x"])})
    batch = {"x": torch.randn(400, 1, 9)}
    groups = network.groups(batch)
    keep = [torch.arange(4)]
    pruned = remove_channels(module, groups, keep)
    wanted = module(batch["x"])
    before = (pruned(batch["x"]) - wanted).square().mean()
    assert reconstruct(pruned, network, groups, keep, batch, torch.ones(400)) == []
    assert (pruned(batch["x"]) - wanted).square().mean() < 0.2 * before


def test_a_convolution_that_pads_to_the_same_size_is_refitted() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 3, padding="same"), nn.ReLU(), nn.Conv2d(8, 2, 4, padding="same"))
    network = Network(module, {"all": [""]}, lambda m, b: {"y": m(b["x"])})
    batch = {"x": torch.randn(100, 1, 9, 9)}
    groups = network.groups(batch)
    keep = [torch.arange(5)]
    pruned = remove_channels(module, groups, keep)
    with torch.no_grad():
        dense = module(batch["x"])
        before = (pruned(batch["x"]) - dense).square().mean()
        assert reconstruct(pruned, network, groups, keep, batch, torch.ones(100)) == []
        assert (pruned(batch["x"]) - dense).square().mean() < 0.5 * before


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_the_dense_network_is_left_alone(share: float) -> None:
    network, batch = world_model_network()
    before = copy.deepcopy(network.module.state_dict())
    groups = network.groups(batch)
    keep = [torch.arange(max(1, round(share * group.channels))) for group in groups]
    reconstruct(remove_channels(network.module, groups, keep), network, groups, keep, batch, torch.ones(2000))
    for name, tensor in network.module.state_dict().items():
        torch.testing.assert_close(tensor, before[name])


def test_blowing_up_differences_leaves_an_exact_map_exact() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    inputs = torch.randn(50, 2, 6)
    with torch.no_grad():
        outputs = layer(inputs)
        torch.testing.assert_close(layer(blown_up(inputs, 7.0)), blown_up(outputs, 7.0))
    torch.testing.assert_close(blown_up(inputs, 7.0).mean(dim=1), inputs.mean(dim=1))


def test_alternatives_within_a_row_come_to_vary_as_much_as_rows() -> None:
    torch.manual_seed(0)
    outputs = torch.randn(4000, 1, 3) + 0.1 * torch.randn(4000, 2, 3)
    factor = contrast_factor(nn.Linear(3, 3), outputs)
    assert factor == pytest.approx(math.sqrt((1 + 0.01 / 2) / (0.01 / 2)), rel=0.05)
    assert contrast_factor(nn.Linear(3, 3), outputs[:, 0]) == 1.0
    assert contrast_factor(nn.Linear(3, 3), 100 * outputs[:, :1].expand(-1, 2, -1)) == 30.0


@pytest.mark.parametrize("contrasts", [False, True])
def test_a_layer_fitted_with_contrasts_keeps_what_tells_alternatives_apart(contrasts: bool) -> None:
    """One input follows the row, another the alternative; a third, which leaves, had been a mixture of both."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 1, 1, generator=generator).expand(-1, 2, -1)
    choice = 0.05 * torch.randn(500, 2, 1, generator=generator)
    noise = 0.3 * torch.randn(500, 1, 1, generator=generator).expand(-1, 2, -1)
    inputs = torch.cat([rows + choice, choice + noise], dim=2)
    wanted = rows + 2 * choice

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, batch: Any) -> Any:
            return self.layer(batch)

    pruned = Head()
    network = Network(pruned, {"all": ("layer",)}, lambda module, batch: {"y": module(batch["x"])}, contrasts=contrasts)
    group = Group("x", ("all",), 2, (Member("layer.weight", 1, torch.tensor([[0], [1]])),), (), ("layer",))
    targets = {"layer": Target(0, wanted)}
    reconstruct(pruned, network, [group], [torch.tensor([0, 1])], {"x": inputs}, torch.ones(500), targets=targets)
    with torch.no_grad():
        found = pruned(inputs)
    difference, right = (values[:, 0] - values[:, 1] for values in (found, wanted))
    error = float((difference - right).square().mean() / right.square().mean())
    assert error < 0.02 if contrasts else error > 0.1


class Recurrent(nn.Module):
    """Three steps from a state of zeros, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.state, self.outward = nn.Linear(4, 24), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.zeros_like(self.inward(inputs[:, 0]))
        for step in range(3):
            hidden = torch.tanh(self.inward(inputs[:, step]) + self.state(hidden))
        return self.outward(hidden)


def test_a_layer_that_first_takes_in_zeros_is_fitted_to_what_it_takes_in_then() -> None:
    torch.manual_seed(0)
    module, batch = Recurrent(), {"x": torch.randn(400, 3, 4)}
    network = Network(module, {"all": ("",)}, lambda module, batch: {"y": module(batch["x"])})
    groups = network.groups(batch)
    keep = [torch.arange(18)]
    pruned = remove_channels(module, groups, keep)
    untouched = functional.mse_loss(pruned(batch["x"]), module(batch["x"]))
    assert not reconstruct(pruned, network, groups, keep, batch, torch.ones(400))
    assert pruned.state.weight.abs().mean() > 0.05
    assert functional.mse_loss(pruned(batch["x"]), module(batch["x"])) < 0.5 * untouched
