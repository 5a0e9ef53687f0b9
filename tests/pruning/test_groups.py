from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.controllers.specs import MlpArchitecture
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.groups import NothingToPrune, check_components, describe, find_groups, kept_channels
from nncontrol_prune.pruning.network import Network
from tests.pruning.networks import ConvNet, ResidualNet, StackedEnsemble, WorldModel


def groups_of(network: Network[Mlp], observations: Tensor):
    return network.groups({"observation": observations})


def test_each_hidden_layer_is_a_group_with_the_layer_after_it(network: Network[Mlp], observations: Tensor) -> None:
    groups = groups_of(network, observations)
    assert [(g.name, g.producers, g.consumers, g.channels) for g in groups] == [
        ("layers.0", ("layers.0",), ("layers.1",), 24),
        ("layers.1", ("layers.1",), ("layers.2",), 16),
    ]
    assert {g.components for g in groups} == {("policy",)}
    assert {g.kind for g in groups} == {"intra-component"}


def test_the_latent_of_a_world_model_is_one_group_of_whole_simplices() -> None:
    module = WorldModel()
    groups = find_groups(module, module.components, lambda m: m(torch.randn(3, 5), torch.randn(3, 2, 2)))
    by_name = {group.name: group for group in groups}
    latent = by_name["encoder.3"]
    assert latent.channels == 24 // 4
    assert set(latent.components) == {"encoder", "dynamics", "reward", "policy", "q"}
    assert latent.kind == "inter-component"
    assert latent.producers == ("encoder.3", "dynamics.3")
    assert set(latent.consumers) == {"policy.0", "reward.0", "q.0.0", "q.1.0", "q.2.0", "dynamics.0"}
    assert {member.positions[1].tolist() == [4, 5, 6, 7] for member in latent.members} == {True}
    assert {name for name, group in by_name.items() if group.kind == "intra-component"} == {
        "encoder.0", "dynamics.0", "reward.0", "policy.0", "q.0.0", "q.1.0", "q.2.0"
    }  # fmt: skip


def test_one_step_of_the_dynamics_does_not_show_that_they_give_out_a_latent() -> None:
    module = WorldModel()
    module.steps = 1
    groups = find_groups(module, module.components, lambda m: m(torch.randn(3, 5), torch.randn(3, 2, 2)))
    assert "dynamics.3" not in next(group for group in groups if group.name == "encoder.3").producers


@pytest.mark.parametrize(
    ("norm", "fewest"),
    [(nn.LayerNorm, 3), (nn.RMSNorm, 2), (nn.Identity, 1), (lambda channels: nn.GroupNorm(1, channels), 3)],
)
def test_a_norm_over_channels_keeps_as_many_as_it_needs_to_tell_inputs_apart(
    norm: Callable[[int], nn.Module], fewest: int
) -> None:
    module = nn.Sequential(nn.Linear(5, 12), norm(12), nn.Tanh(), nn.Linear(12, 2))
    (group,) = find_groups(module, {"all": [""]}, lambda m: m(torch.randn(3, 5)))
    assert group.fewest == fewest


@pytest.mark.parametrize(("size", "fewest"), [(3, 3), (4, 2), (8, 1)])
def test_a_norm_over_all_channels_of_an_image_has_its_pixels_too(size: int, fewest: int) -> None:
    module = nn.Sequential(nn.Conv1d(2, 12, 3), nn.GroupNorm(1, 12), nn.ReLU(), nn.Conv1d(12, 2, 1))
    (group,) = find_groups(module, {"all": [""]}, lambda m: m(torch.randn(3, 2, size)))
    assert (group.channels, group.fewest, {member.width for member in group.members}) == (12, fewest, {1})


def test_groups_of_a_norm_leave_as_a_whole() -> None:
    module = nn.Sequential(nn.Linear(5, 12), nn.GroupNorm(3, 12), nn.Tanh(), nn.Linear(12, 2))
    (group,) = find_groups(module, {"all": [""]}, lambda m: m(torch.randn(3, 5)))
    assert (group.channels, group.fewest, {member.width for member in group.members}) == (3, 1, {4})


def test_channels_pass_through_a_norm_without_parameters_and_it_stays_without() -> None:
    norm = nn.LayerNorm(12, elementwise_affine=False)
    module = nn.Sequential(nn.Linear(5, 12), norm, nn.Tanh(), nn.Linear(12, 2))
    (group,) = find_groups(module, {"all": [""]}, lambda m: m(torch.randn(3, 5)))
    assert (group.channels, group.fewest, group.consumers) == (12, 3, ("3",))
    assert group.parameters_per_channel(module) == 5 + 1 + 2
    assert norm.weight is None
    assert not norm.state_dict()


@pytest.mark.parametrize(("norm", "fewest"), [(nn.LayerNorm, 3), (nn.RMSNorm, 2)])
def test_with_one_channel_less_a_norm_would_leave_signs(norm: type[nn.Module], fewest: int) -> None:
    outputs = norm(fewest - 1, eps=0.0)(torch.randn(20, fewest - 1))
    assert torch.allclose(outputs.abs(), torch.ones(()), atol=1e-4)


@pytest.mark.parametrize(
    ("between", "fewest"),
    [
        (lambda h: (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True) + 1e-5), 3),
        (lambda h: (h - h.mean(-1, keepdim=True)) / (h.var(dim=-1, correction=0, keepdim=True) + 1e-5).sqrt(), 3),
        (lambda h: h / torch.var_mean(h, 2, keepdim=True)[0], 3),
        (lambda h: functional.layer_norm(h, h.shape[-1:]), 3),
        (lambda h: functional.rms_norm(h, h.shape[-1:]), 2),
        (lambda h: h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-5), 2),
        (lambda h: functional.normalize(h, dim=-1), 2),
        (lambda h: h * h.mean(-1).unsqueeze(-1), 1),
        (lambda h: h / (1 + h.square().mean(1, keepdim=True)), 1),
        (lambda h: h / h.std(), 1),
        (lambda h: h / (1 + h.var(1, keepdim=True)), 1),
        (lambda h: (h.view(2, 5, 4, 3) / (h.view(2, 5, 4, 3).std((-1, -2), keepdim=True))).flatten(2), 1),
    ],
)
def test_a_norm_written_out_keeps_as_many_channels_as_it_needs(between: Any, fewest: int) -> None:
    module = nn.ModuleList([nn.Linear(4, 12), nn.Linear(12, 2)])
    (group,) = find_groups(module, {"all": [""]}, lambda m: m[1](between(m[0](torch.randn(2, 5, 4)))))
    assert group.fewest == fewest


def test_simplices_are_entries_enough_for_a_norm_over_them() -> None:
    module = WorldModel()
    groups = find_groups(module, module.components, lambda m: m(torch.randn(3, 5), torch.randn(3, 2, 2)))
    assert {group.name: group.fewest for group in groups if group.name in ("encoder.0", "encoder.3")} == {
        "encoder.0": 3,
        "encoder.3": 1,
    }


def test_residuals_and_concatenations_couple_what_they_add_and_nothing_else() -> None:
    module = ResidualNet()
    groups = find_groups(module, module.components, lambda m: m(torch.randn(3, 5)))
    assert [(g.name, g.channels, g.components, g.consumers) for g in groups] == [
        ("first", 20, ("trunk", "head"), ("inner", "second", "head")),
        ("second", 12, ("trunk", "head"), ("head",)),
    ]
    assert groups[0].producers == ("first", "inner")


def test_groups_of_one_layers_outputs_have_names_of_their_own() -> None:
    class Added(nn.Module):
        """A layer that is added to a concatenation of two others, so that its outputs are in two groups."""

        def __init__(self) -> None:
            super().__init__()
            self.both, self.left, self.right, self.head = (
                nn.Linear(4, 10), nn.Linear(4, 6), nn.Linear(4, 4), nn.Linear(10, 2)
            )  # fmt: skip

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.both(inputs) + torch.cat([self.left(inputs), self.right(inputs)], dim=1))

    module = Added()
    network = Network(module, {"all": [""]}, lambda m, b: {"y": m(b["x"])}, [("both#2",)])
    groups = network.groups({"x": torch.randn(3, 4)})
    assert [(g.name, g.producers, g.channels) for g in groups] == [
        ("both", ("both", "left"), 6),
        ("both#2", ("both", "right"), 4),
    ]
    assert network.tied(groups) == [[0], [1]]


def test_a_channel_of_an_image_takes_all_its_pixels_along() -> None:
    module = ConvNet()
    groups = find_groups(module, module.components, lambda m: m(torch.rand(2, 1, 12, 12)))
    widths = {group.name: {(m.tensor, m.dim): m.width for m in group.members} for group in groups}
    assert widths["encoder.3"]["encoder.7.weight", 1] == 9
    assert widths["decoder.0"]["decoder.0.weight", 0] == 9
    assert widths["decoder.3"]["decoder.4.weight", 0] == 2  # a group of the norm leaves as a whole
    assert next(group for group in groups if group.name == "encoder.7").kind == "inter-component"


def test_widths_are_multiples_in_every_member_or_as_they_were() -> None:
    module = ConvNet()
    by_name = {g.name: g for g in find_groups(module, module.components, lambda m: m(torch.rand(2, 1, 12, 12)))}
    image = by_name["encoder.3"]  # a channel is 9 pixels for the layer after it, and one for the convolution
    assert [image.counts(multiple) for multiple in (1, 3, 4, 16)] == [[*range(1, 9)], [3, 6, 8], [4, 8], [8]]
    module = WorldModel()
    groups = find_groups(module, module.components, lambda m: m(torch.randn(3, 5), torch.randn(3, 2, 2)))
    latent = next(group for group in groups if group.name == "encoder.3")  # of 6 simplices of 4 entries
    assert latent.fewest == 1
    assert [latent.counts(multiple) for multiple in (4, 8, 16)] == [[1, 2, 3, 4, 5, 6], [2, 4, 6], [4, 6]]
    hidden = next(group for group in groups if group.name == "encoder.0")
    assert (hidden.fewest, hidden.counts(2)[0]) == (3, 4)


def test_layers_go_by_how_their_weight_is_used() -> None:
    class Halved(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return functional.linear(inputs, 0.5 * self.weight, self.bias)

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second, self.third = (
                nn.Linear(3, 8),
                nn.LayerNorm(8),
                Halved(8, 6),
                nn.Linear(6, 4),
            )
            self.last = nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.second(self.norm.weight * torch.relu(self.first(inputs)) + self.norm.bias)
            hidden = functional.linear(torch.relu(hidden), self.third.weight, self.third.bias)  # without running it
            return torch.relu(hidden) @ self.last.weight.T + self.last.bias

    first, second, third = find_groups(Written(), {"all": [""]}, lambda m: m(torch.randn(5, 3)))
    assert (first.consumers, first.opaque, first.multiplied) == (("second",), ("second", "norm"), ())
    assert (second.consumers, second.opaque, second.multiplied) == (("third",), (), ())
    assert (third.consumers, third.opaque, third.multiplied) == ((), (), ("last.weight",))


def test_members_of_a_stacked_ensemble_lose_the_same_channels() -> None:
    module = StackedEnsemble()
    groups = find_groups(module, module.components, lambda m: m(torch.randn(4, 5)))
    assert [(g.name, g.channels) for g in groups] == [("member.weight0", 10), ("member.weight1", 8)]
    assert {(m.tensor, m.dim) for m in groups[0].members} == {
        ("member.bias0", 1), ("member.weight0", 1), ("member.weight1", 2)
    }  # fmt: skip


def test_cost_of_a_channel_is_a_row_of_the_table(network: Network[Mlp], observations: Tensor) -> None:
    rows = list(describe(groups_of(network, observations), network.module))
    assert [row["parameters_per_channel"] for row in rows] == [5 + 1 + 16, 24 + 1 + 2]
    assert rows[0]["kind"] == "intra-component"


def test_network_without_hidden_layer_has_nothing_to_prune() -> None:
    module = Mlp(MlpArchitecture(hidden=()), 3, 1)
    with pytest.raises(PruningError, match="nothing to prune"):
        find_groups(module, module.components(), lambda m: m(torch.zeros(2, 3)))


def test_member_outside_every_component_is_named(network: Network[Mlp], observations: Tensor) -> None:
    with pytest.raises(PruningError, match=r"layers\.1 belongs to none of the components first"):
        find_groups(network.module, {"first": ["layers.0"]}, lambda m: m(observations[:4]))


def test_model_that_holds_parameters_itself_is_told_of_a_component_that_holds_all() -> None:
    class Scaled(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(5, 12), nn.Linear(12, 2))
            self.scale = nn.Parameter(torch.ones(12))

        def forward(self, inputs: Tensor) -> Tensor:
            return self[1](self.scale * self[0](inputs))

    inputs = torch.randn(3, 5)
    with pytest.raises(PruningError, match=r'the model itself .* none of the components a, b; .*=\{"all": \[""\]\}'):
        find_groups(Scaled(), {"a": ["0"], "b": ["1"]}, lambda m: m(inputs))
    (group,) = find_groups(Scaled(), {"all": [""]}, lambda m: m(inputs))
    assert group.channels == 12


def test_group_across_components_is_inter_component(network: Network[Mlp], observations: Tensor) -> None:
    components = {"first": ["layers.0"], "rest": ["layers.1", "layers.2"]}
    groups = find_groups(network.module, components, lambda m: m(observations[:4]))
    assert [group.kind for group in groups] == ["inter-component", "intra-component"]
    assert groups[0].components == ("first", "rest")


def test_components_have_to_be_parts_of_the_module(module: Mlp) -> None:
    with pytest.raises(PruningError, match="component policy names 'head', and the network has no such module"):
        check_components(module, {"policy": ["head"]})


def test_components_may_not_overlap(module: Mlp) -> None:
    with pytest.raises(PruningError, match=r"the components all and first overlap: both hold layers\.0"):
        check_components(module, {"all": ["layers"], "first": ["layers.0"]})


def test_operation_that_cannot_be_traced_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.second(torch.fft.rfft(self.first(inputs)).real.repeat(1, 2)[:, :4])

    module = Odd()
    with pytest.raises(PruningError, match=r"the operation aten\._fft_r2c"):
        find_groups(module, {"all": [""]}, lambda m: m(torch.zeros(2, 4)))


@pytest.mark.parametrize("layer", [nn.LSTM(4, 4), nn.GRU(4, 4), nn.GRUCell(4, 4)])
def test_recurrent_networks_are_refused(layer: nn.Module) -> None:
    module = nn.Sequential(layer)
    with pytest.raises(PruningError, match="0 is recurrent .*recurrent networks cannot be pruned yet"):
        find_groups(module, {"all": [""]}, lambda m: m(torch.zeros(2, 4)))


class Hidden(nn.Module):
    """A hidden layer of 12 channels with something done to them, `h`, of inputs `x`."""

    def __init__(self, between: Callable[[Hidden, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(4, 12), nn.Linear(12, 12), nn.Linear(12, 2)
        self.register_buffer("scale", torch.ones(12))
        self.attribute = torch.ones(12)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, torch.relu(self.first(x)), x))


def recurrent(start: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Hidden, Tensor, Tensor], Tensor]:
    def between(net: Hidden, h: Tensor, x: Tensor) -> Tensor:
        state = start(h, x)
        for _ in range(2):
            state = torch.tanh(h + net.again(state))
        return state

    return between


MADE = r"the 12 channels of first.* meet a tensor that is made in the forward pass \({}\): make it a buffer, or like"


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (lambda net, h, x: h + torch.zeros(12), MADE.format(r"aten\.zeros")),
        (lambda net, h, x: torch.zeros(len(x), 12) + h, MADE.format(r"aten\.zeros")),
        (lambda net, h, x: torch.zeros(len(x), 12).add_(h), MADE.format(r"aten\.zeros")),
        (recurrent(lambda h, x: torch.zeros(len(x), 12)), MADE.format(r"aten\.zeros")),
        (recurrent(lambda h, x: x.new_zeros(len(x), 12)), MADE.format(r"aten\.new_zeros")),
        (lambda net, h, x: h * torch.arange(12).sin().unsqueeze(0), MADE.format(r"aten\.arange")),
        (lambda net, h, x: h * torch.tensor([0.5] * 12), MADE.format(r"torch\.tensor")),
        (
            lambda net, h, x: h * net.attribute,
            "first meet attribute, a tensor that is no buffer: make it one, with reg",
        ),
        (
            lambda net, h, x: torch.softmax(h, 1),
            r"first are kept by the operation aten\._softmax\.default, which needs",
        ),
        (lambda net, h, x: h[:, list(range(12))], r"first are kept by the operation aten\.index\.Tensor"),
        (
            lambda net, h, x: torch.ones(len(x), 12).copy_(h),
            "first are written into a part of a tensor: join the parts",
        ),
    ],
)
def test_what_keeps_the_channels_of_a_hidden_layer_is_told(between: Any, message: str) -> None:
    with pytest.raises(NothingToPrune, match=f"there is nothing to prune: .*{message}"):
        find_groups(Hidden(between), {"all": [""]}, lambda m: m(torch.randn(3, 4)))


@pytest.mark.parametrize(
    "between",
    [
        lambda net, h, x: h * net.scale,
        lambda net, h, x: h * torch.ones(()) + torch.ones(1) - torch.zeros(len(x), 1),
        lambda net, h, x: torch.zeros_like(h) + torch.full_like(h, 0.3) + torch.ones_like(h) * h,
        lambda net, h, x: h + torch.randn_like(h) + torch.empty_like(h).normal_() + torch.empty_like(h).zero_(),
        recurrent(lambda h, x: torch.zeros_like(h)),
    ],
)
def test_tensors_like_a_hidden_one_and_buffers_lose_its_channels(between: Any) -> None:
    groups = find_groups(Hidden(between), {"all": [""]}, lambda m: m(torch.randn(3, 4)))
    assert [(group.name, group.channels) for group in groups] == [("first", 12)]


def test_weights_computed_from_others_are_refused_with_how_to_put_them_in_place() -> None:
    def refusal(change: Callable[[nn.Module], Any]) -> str:
        module = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 2))
        change(module[0])
        with pytest.raises(PruningError, match=r"^0 \(.*\) computes its weight from other parameters") as error:
            find_groups(module, {"all": [""]}, lambda m: m(torch.randn(3, 4)))
        return str(error.value).rpartition(" ")[0].rpartition("with ")[2]

    utils = torch.nn.utils
    for parametrization in (utils.parametrizations.weight_norm, utils.parametrizations.spectral_norm):
        assert refusal(parametrization) == "torch.nn.utils.parametrize.remove_parametrizations(module,"
    with pytest.warns(FutureWarning):
        assert refusal(utils.weight_norm) == "torch.nn.utils.remove_weight_norm(module,"
    assert refusal(utils.spectral_norm) == "torch.nn.utils.remove_spectral_norm(module,"
    assert refusal(lambda layer: utils.prune.identity(layer, "weight")) == "torch.nn.utils.prune.remove(module,"


def test_torchscript_is_refused() -> None:
    module = torch.jit.trace(nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 2)), torch.randn(3, 4))
    with pytest.raises(PruningError, match="is a TorchScript module, which cannot be taken apart; pass the torch.nn"):
        find_groups(module, {"all": [""]}, lambda m: m(torch.randn(3, 4)))


def test_torchs_attention_keeps_its_embedding_and_the_layers_around_it_are_pruned() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    module = nn.Sequential(nn.Linear(4, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 2)).eval()
    groups = find_groups(module, {"all": [""]}, lambda m: m(torch.randn(3, 5, 4)))
    assert [(g.name, g.consumers, g.channels) for g in groups] == [
        (f"1.layers.{number}.linear1", (f"1.layers.{number}.linear2",), 24) for number in (0, 1)
    ]
    assert torch.backends.mha.get_fastpath_enabled()


def test_where_torchs_attention_keeps_all_channels_another_way_to_write_it_is_told() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.attention, self.last = (
                nn.Linear(4, 16), nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 2)
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            return self.last(hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0])

    message = (
        r"16 channels of first meet the embedding of attention \(nn.MultiheadAttention\), .*scaled_dot_product_att"
    )
    with pytest.raises(NothingToPrune, match=message):
        find_groups(Attending().eval(), {"all": [""]}, lambda m: m(torch.randn(3, 5, 4)))


def test_attention_written_out_loses_channels_of_the_stream_and_of_the_values_of_one_head() -> None:
    class Attending(nn.Module):
        def __init__(self, heads: int) -> None:
            super().__init__()
            self.first, self.last, self.heads = nn.Linear(4, 16), nn.Linear(16, 2), heads
            self.queries, self.keys, self.values, self.back = (nn.Linear(16, 16) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            heads = [
                layer(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for layer in (self.queries, self.keys, self.values)
            ]
            attended = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
            return self.last(hidden + self.back(attended))

    def names(heads: int) -> list[str]:
        return [g.name for g in find_groups(Attending(heads), {"all": [""]}, lambda m: m(torch.randn(3, 5, 4)))]

    assert names(4) == ["first"]
    assert names(1) == ["first", "values"]


@pytest.mark.parametrize(("outputs", "parts"), [(8, 2), (16, 2), (16, 8)])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_channels_on_both_sides_of_a_grouped_convolution_stay(outputs: int, kind: type[nn.Conv2d], parts: int) -> None:
    def run(module: nn.Module) -> Tensor:
        output: Tensor = module(torch.zeros(2, 1, 12, 12))
        return output

    module = nn.Sequential(nn.Conv2d(1, 8, 3), kind(8, outputs, 3, groups=parts), nn.Conv2d(outputs, 1, 3))
    with pytest.raises(NothingToPrune):
        find_groups(module, {"all": [""]}, run)
    told = kept_channels(module, run, needlessly=True)
    why = f"go through a convolution of {parts} groups, which stays: use one of a single group"
    assert [(note.partition(" channels of ")[2][0], why in note) for note in told] == [("0", True), ("1", True)]


def test_channels_that_are_addressed_by_number_stay() -> None:
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.third(self.second(torch.relu(self.first(inputs)))[:, :3])

    module = Sliced()
    assert [g.name for g in find_groups(module, {"all": [""]}, lambda m: m(torch.zeros(2, 4)))] == ["first"]


@pytest.mark.parametrize("shape", [(4, 7, 5), (4, 1, 7, 5)])  # the first is taken apart, the second is one operation
@pytest.mark.parametrize("named", [True, False])
def test_scores_of_an_attention_are_scaled_by_a_size_that_stays(shape: tuple[int, ...], named: bool) -> None:
    class OneHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(5, 12) for _ in range(3))
            self.out = nn.Linear(12, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            parts = {name: getattr(self, name)(inputs) for name in ("query", "key", "value")}
            attend = nn.functional.scaled_dot_product_attention
            return self.out(attend(**parts) if named else attend(*parts.values()))

    groups = find_groups(OneHead(), {"all": [""]}, lambda module: module(torch.randn(shape)))
    assert [(group.name, group.channels) for group in groups] == [("value", 12)]


def test_a_part_in_another_mode_than_the_rest_stays_in_it() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
    module[1].eval()
    find_groups(module, {"all": [""]}, lambda m: m(torch.randn(3, 4)))
    assert [part.training for part in module] == [True, False, True, True]


def test_an_autoencoder_whose_decoder_is_its_encoder_transposed_is_one_group() -> None:
    module = nn.ModuleList([nn.Linear(4, 12)])

    def run(m: Any) -> torch.Tensor:
        return nn.functional.linear(torch.tanh(m[0](torch.randn(2, 4))), m[0].weight.t())

    (group,) = find_groups(module, {"all": [""]}, run)
    assert (group.name, group.channels, group.multiplied) == ("0", 12, ("0.weight",))
    assert {(member.tensor, member.dim) for member in group.members} == {("0.weight", 0), ("0.bias", 0)}


@pytest.mark.parametrize(
    "head", [lambda h: h.mean(-1), lambda h: (h * torch.nn.functional.softplus(h)).sum(-1)], ids=["mean", "gate"]
)
def test_channels_that_no_matrix_takes_in_are_named(head: Any) -> None:
    module = nn.ModuleList([nn.Linear(4, 12)])
    with pytest.raises(PruningError, match="nothing to prune: the 12 channels of 0 are taken in by no matrix"):
        find_groups(module, {"all": [""]}, lambda m: head(torch.relu(m[0](torch.randn(2, 4)))))


@pytest.mark.parametrize("channels", [3, 8])
def test_members_of_an_ensemble_stay_even_if_they_are_as_many_as_its_channels(channels: int) -> None:
    module = nn.ParameterList([torch.randn(3, 4, channels), torch.randn(3, channels), torch.randn(3, channels, 2)])

    def run(m: Any) -> torch.Tensor:
        hidden = torch.einsum("bi,eic->bec", torch.randn(5, 4), m[0]) + m[1]
        return torch.einsum("bec,eco->beo", torch.tanh(hidden), m[2])

    (group,) = find_groups(module, {"all": [""]}, run)
    assert {(member.tensor, member.dim) for member in group.members} == {("0", 2), ("1", 1), ("2", 1)}
