from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.progress import Cancelled, Progress
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.importance import (
    IMPORTANCES,
    Evidence,
    Importance,
    checked,
    fisher,
    magnitude,
    normalized,
    obs,
    taylor,
)
from nncontrol_prune.pruning.network import Network
from nncontrol_prune.pruning.reconstruction import reconstruct
from nncontrol_prune.pruning.surgery import most_important, remove_channels
from nncontrol_prune.pruning.terms import Term
from tests.pruning.networks import ConvNet, StackedEnsemble, WorldModel


def evidence_of(network: Network[Any], batch: dict[str, Tensor], *terms: Term) -> Evidence:
    rows = len(next(iter(batch.values())))
    return Evidence(network, network.groups(batch), batch, torch.ones(rows), terms or (Term("action"),))


@pytest.mark.parametrize("name", sorted(set(IMPORTANCES) - {"random"}))
def test_channel_that_does_nothing_is_least_important(name: str, network: Network[Mlp], observations: Tensor) -> None:
    module = network.module
    with torch.no_grad():
        module.layers[0].weight[5], module.layers[0].bias[5] = 0.0, 0.0
        module.layers[1].weight[:, 5] = 0.0
    scores = IMPORTANCES[name](evidence_of(network, {"observation": observations}))
    assert [len(score) for score in scores] == [24, 16]
    assert scores[0].argmin() == 5
    assert scores[0][5] == pytest.approx(0.0, abs=1e-9)


def test_taylor_predicts_the_effect_of_small_removals(network: Network[Mlp], observations: Tensor) -> None:
    module = network.module
    with torch.no_grad():
        module.layers[2].weight *= 1e-3
    scores = taylor(evidence_of(network, {"observation": observations}))[1]
    hidden = torch.tanh(module.layers[1](torch.tanh(module.layers[0](observations))))
    dense = module(observations).detach()
    hidden = hidden.detach()
    for channel in range(16):
        changed = hidden.clone()
        changed[:, channel] = hidden[:, channel].mean()
        with torch.no_grad():
            effect = (module.output(module.layers[2](changed)) - dense).square().sum(dim=1).mean()
        assert scores[channel] == pytest.approx(float(effect), rel=0.02)


def test_scores_are_in_the_units_of_the_terms(network: Network[Mlp], observations: Tensor) -> None:
    batch = {"observation": observations}
    for metric in (taylor, fisher):
        plain = metric(evidence_of(network, batch))
        scaled = metric(evidence_of(network, batch, Term("action", weight=4.0, scale=0.5)))
        torch.testing.assert_close(scaled[0], 16 * plain[0])


def test_fisher_counts_a_constant_channel_and_taylor_does_not(network: Network[Mlp], observations: Tensor) -> None:
    with torch.no_grad():
        network.module.layers[0].weight[3], network.module.layers[0].bias[3] = 0.0, 2.0
    evidence = evidence_of(network, {"observation": observations})
    assert taylor(evidence)[0][3] == pytest.approx(0.0, abs=1e-6)
    assert fisher(evidence)[0][3] > 1e-3


def test_obs_takes_a_channel_for_unimportant_if_others_can_stand_in_for_it(
    network: Network[Mlp], observations: Tensor
) -> None:
    module = network.module
    with torch.no_grad():  # two channels that do the same, and much
        module.layers[0].weight[7], module.layers[0].bias[7] = module.layers[0].weight[2], module.layers[0].bias[2]
        module.layers[1].weight[:, 2] *= 5
        module.layers[1].weight[:, 7] *= 5
    score = obs(evidence_of(network, {"observation": observations}))[0]
    assert {2, 7} & set(score.argsort()[:2].tolist())
    assert {2, 7} & set(score.argsort()[-12:].tolist())  # but only one of the two


def test_obs_leaves_less_error_after_reconstruction_than_magnitude(network: Network[Mlp], observations: Tensor) -> None:
    batch = {"observation": observations}
    evidence = evidence_of(network, batch)
    dense = network.module(observations).detach()
    left = {}
    for name in ("obs", "l2", "random"):
        keep = most_important(IMPORTANCES[name](evidence), [8, 6])
        pruned = remove_channels(network.module, evidence.groups, keep)
        reconstruct(pruned, network, evidence.groups, keep, batch, torch.ones(len(observations)))
        left[name] = float((pruned(observations) - dense).square().mean())
    assert left["obs"] < min(left["l2"], left["random"])


def test_greedy_removal_predicts_the_error_it_leaves(observations: Tensor) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 10), nn.Tanh(), nn.Linear(10, 3))
    network = Network(module, {"all": [""]}, lambda m, b: {"action": m(b["observation"])})
    batch = {"observation": observations}
    evidence = evidence_of(network, batch)
    (score,) = obs(evidence)
    for left in (9, 7, 4):
        keep = most_important([score], [left])
        pruned = remove_channels(module, evidence.groups, keep)
        reconstruct(pruned, network, evidence.groups, keep, batch, torch.ones(len(observations)))
        error = float((pruned(observations) - module(observations)).square().sum(dim=1).mean())
        assert error == pytest.approx(float(score.sort().values[10 - left - 1]), rel=0.05, abs=1e-6)


@pytest.mark.parametrize("name", sorted(IMPORTANCES))
def test_every_metric_scores_every_kind_of_network(name: str) -> None:
    torch.manual_seed(1)
    world, images = WorldModel(), ConvNet()
    cases = [
        (world, lambda m, b: m(b["o"], b["a"]), {"o": torch.randn(64, 5), "a": torch.rand(64, 2, 2)}, "action1"),
        (images, lambda m, b: {"image": m(b["image"])}, {"image": torch.rand(64, 1, 12, 12)}, "image"),
        (StackedEnsemble(), lambda m, b: {"q": m(b["o"]).transpose(0, 1)}, {"o": torch.randn(64, 5)}, "q"),
    ]
    for module, run, batch, output in cases:
        network = Network(module.eval(), module.components, run)
        scores = IMPORTANCES[name](evidence_of(network, batch, Term(output)))
        assert all(torch.isfinite(score).all() and (score >= 0).all() for score in scores)
        assert max(float(score.max()) for score in scores) > 0


@pytest.mark.parametrize("name", sorted(IMPORTANCES))
def test_every_metric_scores_a_network_in_double_precision_alike(name: str) -> None:
    torch.manual_seed(1)
    module = ConvNet().eval()
    scores = []
    for dtype in (torch.float32, torch.float64):
        network = Network(module.to(dtype), module.components, lambda m, b: {"image": m(b["image"])})
        batch = {"image": torch.rand(64, 1, 12, 12, generator=torch.Generator().manual_seed(0)).to(dtype)}
        scores.append(IMPORTANCES[name](evidence_of(network, batch, Term("image"))))
    for single, double in zip(*scores, strict=True):
        torch.testing.assert_close(double.float(), single, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Conv3d(1, 6, 3), nn.ReLU(), nn.Conv3d(6, 1, 3)], (1, 6, 6, 6)),
        ([nn.Conv1d(1, 6, 3), nn.ReLU(), nn.ConvTranspose1d(6, 1, 3)], (1, 8)),
        ([nn.Conv2d(1, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 1, 3, dilation=2)], (1, 8, 8)),
    ],
)
def test_the_cheapest_channel_of_any_convolution_is_one_that_the_others_make_up_for(
    layers: list[nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    network = Network(nn.Sequential(*layers), {"all": [""]}, lambda m, b: {"y": m(b["x"])})
    evidence = evidence_of(network, {"x": torch.randn(64, *shape)}, Term("y"))
    first: Any = layers[0]
    with torch.no_grad():  # the last channel is that of the first, half as large
        first.weight[5], first.bias[5] = first.weight[0] / 2, first.bias[0] / 2
    for metric in (taylor, fisher, obs):
        (score,) = metric(evidence)
        assert len(score.unique()) == 6
    (score,) = obs(evidence)
    assert int(score.argmin()) in (0, 5)
    assert score.min() < 1e-3 * score.max()


@pytest.mark.parametrize("metric", [taylor, fisher, obs])
def test_channels_that_no_layer_takes_in_rank_by_magnitude(metric: Any) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU())
    matrix = nn.Parameter(torch.randn(6, 2))
    module.register_parameter("matrix", matrix)
    network = Network(module, {"all": [""]}, lambda m, b: {"y": m(b["x"]) @ m.matrix})
    evidence = evidence_of(network, {"x": torch.randn(64, 3)}, Term("y"))
    taken, not_taken = metric(evidence)
    by_magnitude = IMPORTANCES["l2"](evidence)
    torch.testing.assert_close(not_taken, by_magnitude[1])
    assert not torch.allclose(taken, by_magnitude[0])


def test_where_a_layer_cannot_be_refitted_obs_tells_what_is_lost_without(observations: Tensor) -> None:
    class Halved(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return nn.functional.linear(inputs, 0.5 * self.weight, self.bias)

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), Halved(12, 8), nn.Tanh(), nn.Linear(8, 2))
    network = Network(module, {"all": [""]}, lambda m, b: {"y": m(b["observation"])})
    evidence = evidence_of(network, {"observation": observations}, Term("y"))
    torch.testing.assert_close(obs(evidence)[0], taylor(evidence)[0])
    assert not torch.allclose(obs(evidence)[1], taylor(evidence)[1])


def test_obs_refuses_a_layer_of_more_inputs_than_there_is_memory_for() -> None:
    class Centred(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return nn.functional.linear(inputs, self.weight - self.weight.mean(), self.bias)

    for layer, refused in ((nn.Linear, True), (Centred, False)):  # the other is not refitted, and ranked by taylor
        module = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Flatten(), layer(8 * 46**2, 2))
        network = Network(module, {"all": [""]}, lambda m, b: {"y": m(b["x"])})
        evidence = evidence_of(network, {"x": torch.rand(4, 1, 46, 46)}, Term("y"))
        if refused:
            with pytest.raises(PruningError, match="by 16,928 for 3, .* up to 16,384 are allowed, and 'taylor' needs"):
                obs(evidence)
        else:
            torch.testing.assert_close(obs(evidence)[0], taylor(evidence)[0])


def test_the_network_and_its_gradients_stay_untouched(network: Network[Mlp], observations: Tensor) -> None:
    for metric in (taylor, fisher, obs):
        metric(evidence_of(network, {"observation": observations}))
    assert all(parameter.grad is None for parameter in network.module.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.module.modules())


@pytest.mark.parametrize("metric", [taylor, fisher, obs])
def test_a_metric_that_takes_long_tells_how_far_it_is(metric: Importance) -> None:
    module = ConvNet().eval()
    network = Network(module, module.components, lambda m, b: {"image": m(b["image"])})
    evidence = evidence_of(network, {"image": torch.rand(600, 1, 12, 12)}, Term("image"))
    shares: list[float] = []
    scores = metric(replace(evidence, progress=Progress(lambda stage, share: shares.append(share))))
    assert shares == sorted(shares)
    assert (shares[0], len(set(shares)) >= 3) == (0.0, True)
    assert shares[-1] < 1.0
    for score, quiet in zip(scores, metric(evidence), strict=True):
        assert torch.equal(score, quiet)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.6])
@pytest.mark.parametrize("metric", [taylor, fisher, obs])
def test_a_metric_can_be_cancelled_on_its_way(metric: Importance, share: float) -> None:
    """As on a wide convolution, where `obs` takes minutes."""
    module = ConvNet().eval()
    network = Network(module, module.components, lambda m, b: {"image": m(b["image"])})
    told: list[float] = []
    progress = Progress(lambda stage, found: told.append(found), lambda: told[-1] >= share)
    evidence = evidence_of(network, {"image": torch.rand(600, 1, 12, 12)}, Term("image"))
    with pytest.raises(Cancelled, match="during importance"):
        metric(replace(evidence, progress=progress))
    assert [found >= share for found in told] == [False] * (len(told) - 1) + [True]
    assert told[-1] < share + 0.35
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_obs_asks_whether_to_stop_at_every_channel_and_before_every_layer() -> None:
    module = nn.Sequential(nn.Conv2d(1, 24, 3), nn.ReLU(), nn.Conv2d(24, 16, 3), nn.ReLU(), nn.Conv2d(16, 1, 3))
    network = Network(module, {"all": [""]}, lambda m, b: {"y": m(b["x"])})
    asked: list[float] = []
    evidence = evidence_of(network, {"x": torch.rand(64, 1, 8, 8)}, Term("y"))
    obs(replace(evidence, progress=Progress(lambda stage, share: asked.append(share))))
    assert len({share for share in asked if share > 0.0}) == 24 + 16 - 1
    assert asked.count(0.0) == 1 + 2 + 2  # the sensitivity, two Gram matrices, an inverse, and the first channel


def test_scores_of_ones_own_that_are_sound_pass_as_they_are(network: Network[Mlp], observations: Tensor) -> None:
    evidence = evidence_of(network, {"observation": observations})
    double: list[Tensor] = [torch.zeros(24), torch.rand(16).double()]
    for metric in (taylor, IMPORTANCES["l2"], lambda _: double, lambda _: tuple(double)):
        for score, before in zip(checked(metric)(evidence), metric(evidence), strict=True):
            assert torch.equal(score, before)
    places, booleans = checked(lambda _: [torch.arange(24), torch.arange(16) > 3])(evidence)
    assert (places.tolist(), booleans.tolist()) == (list(range(24)), [0.0] * 4 + [1.0] * 12)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"importance returned a NoneType; it has to return a list of 2 tensors, one for each group: layers.0"),
        (torch.ones(2, 24), r"importance returned a Tensor; it has to return a list of 2 tensors"),
        ("l2", r"importance returned a str; it has to return a list"),
        ([torch.ones(24)], r"importance returned a list of 1; it has to return a list of 2 tensors"),
        ([torch.ones(16), torch.ones(24)], r"returned a tensor of shape \(16,\) for the group layers.0; allowed"),
        ([torch.ones(24), torch.ones(16, 1)], r"returned a tensor of shape \(16, 1\) for the group layers.1"),
        ([np.ones(24), np.ones(16)], r"returned a ndarray for the group layers.0; allowed is .* \(24,\)"),
        ([torch.ones(24), torch.arange(16) / 0], r"returned NaN or infinity for the group layers.1; .* finite and 0"),
        (
            [torch.ones(24), 1j * torch.ones(16)],
            r"a tensor of the type torch.ComplexFloatTensor for the group",
        ),
        ([torch.ones(24, device="meta"), torch.ones(16)], r"of the type torch.meta.FloatTensor for the group layers.0"),
        ([torch.ones(24).to_sparse(), torch.ones(16)], r"of the type torch.sparse.FloatTensor for the group layers.0"),
        ([torch.ones(24), -torch.ones(16)], r"returned negative scores for the group layers.1; .* 0 or more"),
    ],
)
def test_what_are_no_scores_is_refused_by_the_name_of_the_group(
    network: Network[Mlp], observations: Tensor, returned: Any, message: str
) -> None:
    with pytest.raises(PruningError, match=message):
        checked(lambda _: returned)(evidence_of(network, {"observation": observations}))


def test_normalized_scores_compare_between_groups_and_weigh_components() -> None:
    module = WorldModel()
    network = Network(module, module.components, lambda m, b: m(b["o"], b["a"]))
    groups = network.groups({"o": torch.randn(8, 5), "a": torch.rand(8, 2, 2)})
    scores = [torch.rand(group.channels) * 10**index for index, group in enumerate(groups)]
    even = normalized(groups, scores, {})
    assert [float(score.mean()) for score in even] == pytest.approx([1.0] * len(groups))
    weighted = normalized(groups, scores, {"reward": 3.0})
    for group, before, after in zip(groups, even, weighted, strict=True):
        factor = 3.0 if group.components == ("reward",) else 1.4 if "reward" in group.components else 1.0
        torch.testing.assert_close(after, factor * before)
    with pytest.raises(PruningError, match="a weight for component 'critic'; there are dynamics, encoder"):
        normalized(groups, scores, {"critic": 1.0})


@pytest.mark.parametrize("importance", [taylor, fisher, obs])
def test_what_is_taken_in_where_gradients_are_off_is_ranked_by_its_norm(importance: Importance) -> None:
    class Blind(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(inputs)

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), Blind(12, 8), nn.Tanh(), nn.Linear(8, 2))
    network = Network(module, {"all": [""]}, lambda net, rows: {"action": net(rows["x"])})
    evidence = evidence_of(network, {"x": torch.randn(200, 4)})
    (before, after), norms = importance(evidence), magnitude(evidence)
    torch.testing.assert_close(before, norms[0])
    assert not torch.allclose(after, norms[1])
