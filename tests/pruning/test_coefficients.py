from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from nncontrol_prune.controllers.mlp import Mlp, parameter_count
from nncontrol_prune.controllers.specs import MlpArchitecture
from nncontrol_prune.progress import Cancelled, Progress
from nncontrol_prune.pruning import coefficients, gradient
from nncontrol_prune.pruning.architectures import recipe_for
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.coefficients import CoefficientProblem, uniform
from nncontrol_prune.pruning.errors import NoChoice, PruningError
from nncontrol_prune.pruning.network import Network
from nncontrol_prune.pruning.problem import coefficient_problem, optimizer_of
from nncontrol_prune.pruning.search import threshold, tpe
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.pruning.terms import Term, chosen_terms
from tests.pruning.networks import StackedEnsemble, WorldModel

METHODS = ["gradient", "grid", "threshold", "tpe", "uniform"]
SEARCHES = ["gradient", "grid", "tpe"]


@pytest.fixture(autouse=True)
def _optuna(request: pytest.FixtureRequest) -> None:
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("method") == "tpe":
        pytest.importorskip("optuna")


def problem(module: Mlp, calibration: Calibration, **settings) -> CoefficientProblem[Mlp]:
    recipe = recipe_for(module)
    chosen = PruningSettings(**{"tolerance": 0.02, **settings})
    terms = chosen_terms(recipe.terms, chosen.terms, chosen.limits)
    return coefficient_problem(recipe.network, calibration, terms, chosen, Progress())


def solve(method: str, to_solve: CoefficientProblem[Mlp]) -> list[int]:
    return optimizer_of(PruningSettings(method=method))(to_solve, Progress())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7, 0.9])
def test_every_method_lands_within_the_tolerance(
    method: str, sparsity: float, module: Mlp, calibration: Calibration
) -> None:
    to_solve = problem(module, calibration, sparsity=sparsity)
    kept = solve(method, to_solve)
    removed = 1 - parameter_count(to_solve.build(kept)) / parameter_count(module)
    assert removed == pytest.approx(sparsity, abs=0.02)
    assert removed == pytest.approx(to_solve.sparsity_of(kept))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.4, 0.7])
def test_every_method_keeps_multiples_within_the_tolerance(
    method: str, sparsity: float, module: Mlp, calibration: Calibration
) -> None:
    to_solve = problem(module, calibration, sparsity=sparsity, channel_multiple=4, tolerance=0.05)
    kept = solve(method, to_solve)
    assert all(count % 4 == 0 for count in kept)
    assert to_solve.sparsity_of(kept) == pytest.approx(sparsity, abs=0.05)


def test_gradient_finds_its_way_between_multiples_that_are_far_apart(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coefficients, "MOST_CHOICES", 0)  # as if there were too many to try one and all
    monkeypatch.setattr(gradient, "STEPS", 0)
    to_solve = dataclasses.replace(with_redundant_layer(calibration), channel_multiple=8, tolerance=0.1)
    start = uniform(to_solve, Progress())
    assert to_solve.gaps == [0.25, 0.25]  # further than the trust region is wide
    assert start == [16, 24]
    assert solve("gradient", to_solve) == [32, 8]


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_where_few_choices_meet_the_budget_gradient_finds_the_best(
    sparsity: float, module: Mlp, calibration: Calibration
) -> None:
    to_solve = problem(module, calibration, sparsity=sparsity, channel_multiple=4, tolerance=0.1)
    every = to_solve.on_budget
    assert every is not None
    assert 1 < len(every) <= gradient.DRAFTS
    best = min(to_solve.score(choice) for choice in every.tolist())
    assert to_solve.score(solve("gradient", to_solve)) == best


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("hidden", [(32, 48, 24), (64, 16, 64, 16, 96, 16)])
def test_a_budget_that_some_choice_meets_is_landed_on(
    method: str, hidden: tuple[int, ...], calibration: Calibration
) -> None:
    module = Mlp(MlpArchitecture(hidden=hidden), 5, 2).eval()
    settings = {"sparsity": 0.3, "channel_multiple": 8, "tolerance": 0.01, "importance": "l2"}
    to_solve = problem(module, calibration, **settings)
    assert to_solve.sparsity_of(solve(method, to_solve)) == pytest.approx(0.3, abs=0.01)


def test_in_multiples_uniform_coefficients_are_as_even_as_the_budget_lets_them(calibration: Calibration) -> None:
    module = Mlp(MlpArchitecture(hidden=(51, 30, 24)), 5, 2).eval()
    to_solve = problem(module, calibration, sparsity=0.5, channel_multiple=8, tolerance=0.02)
    kept = uniform(to_solve, Progress())
    assert max(to_solve.coefficients_of(kept)) - min(to_solve.coefficients_of(kept)) < 0.5
    assert all(count % 8 == 0 for count in kept)


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.85])
def test_the_nearest_sparsity_there_is_is_told(sparsity: float, calibration: Calibration) -> None:
    module = Mlp(MlpArchitecture(hidden=(48, 64)), 5, 2).eval()
    to_solve = problem(module, calibration, sparsity=sparsity, channel_multiple=16, tolerance=1e-4)
    with pytest.raises(NoChoice, match="the nearest is") as raised:
        uniform(to_solve, Progress())
    every = [to_solve.sparsity_of([first, second]) for first in (16, 32, 48) for second in (16, 32, 48, 64)]
    assert raised.value.nearest == min(every, key=lambda found: abs(found - sparsity))


@pytest.mark.parametrize("method", METHODS)
def test_groups_that_cost_nothing_keep_what_they_have(method: str) -> None:
    class Ensemble(nn.Module):
        """Two members in one tensor, whose products are no layer's, beside a layer that stays as it is."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(2, 6, 8)), nn.Parameter(torch.randn(2, 8, 1))
            self.layer = nn.Linear(6, 1)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return torch.relu(rows @ self.first).matmul(self.second).sum(0) + self.layer(rows)

    torch.manual_seed(0)
    batch = {"x": torch.randn(200, 6)}
    network = Network(Ensemble(), {"all": [""]}, lambda m, b: {"y": m(b["x"])})
    data = Calibration(batch, torch.ones(200), batch, torch.ones(200))
    settings = PruningSettings(sparsity=0.0, cost="multiplications", method=method)
    to_solve = coefficient_problem(network, data, [Term("y")], settings, Progress())
    assert optimizer_of(settings)(to_solve, Progress()) == [8]


@pytest.mark.parametrize("cost", ["multiplications", "latency"])
def test_a_budget_on_multiplications_without_layers_is_refused(cost: str) -> None:
    module = StackedEnsemble()
    batch = {"x": torch.randn(200, 5)}
    network = Network(module, module.components, lambda m, b: {"y": m(b["x"]).transpose(0, 1)})
    data = Calibration(batch, torch.ones(200), batch, torch.ones(200))
    settings = PruningSettings(sparsity=0.5, cost=cost)
    with pytest.raises(PruningError, match=f"a budget on {cost} goes by .* there are none in this network; ask for"):
        coefficient_problem(network, data, [Term("y")], settings, Progress(), latency=lambda _: 1.0)


def test_what_cannot_be_met_in_multiples_is_told_so(module: Mlp, calibration: Calibration) -> None:
    with pytest.raises(PruningError, match="with as few channels in multiples of 16 as may be left .* it is 0.3"):
        problem(module, calibration, sparsity=0.5, channel_multiple=16)
    with pytest.raises(PruningError, match="no whole number of channels in multiples of 8 comes within 0.001 of"):
        uniform(problem(module, calibration, sparsity=0.5, channel_multiple=8, tolerance=0.001), Progress())


def test_a_latency_budget_where_nothing_can_be_removed_is_told_so(module: Mlp, calibration: Calibration) -> None:
    settings = PruningSettings(sparsity=0.3, cost="latency", channel_multiple=64)
    recipe = recipe_for(module)
    with pytest.raises(
        PruningError, match="nothing to remove .* has as few channels in multiples of 64 as may be left"
    ):
        coefficient_problem(recipe.network, calibration, recipe.terms, settings, Progress(), latency=lambda _: 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_deterministic(method: str, module: Mlp, calibration: Calibration) -> None:
    to_solve = problem(module, calibration, sparsity=0.6)
    assert solve(method, to_solve) == solve(method, to_solve)


@pytest.mark.parametrize("method", SEARCHES)
def test_optimized_coefficients_are_no_worse_than_uniform_ones(
    method: str, module: Mlp, calibration: Calibration
) -> None:
    to_solve = problem(module, calibration, sparsity=0.6)
    assert to_solve.score(solve(method, to_solve)) <= to_solve.score(uniform(to_solve, Progress()))


def with_redundant_layer(calibration: Calibration) -> CoefficientProblem[Mlp]:
    torch.manual_seed(0)
    module = Mlp(MlpArchitecture(hidden=(32, 32), activation="tanh"), 5, 2).eval()
    with torch.no_grad():  # the second layer needs two channels, the first all of its own
        module.layers[0].weight *= 3.0
        module.layers[1].weight[2:] = module.layers[1].weight[:2].repeat(15, 1)
        module.layers[1].bias[2:] = module.layers[1].bias[:2].repeat(15)
    return problem(module, calibration, sparsity=0.6)


@pytest.mark.parametrize("method", SEARCHES)
def test_redundant_layer_is_pruned_first(method: str, calibration: Calibration) -> None:
    first, second = solve(method, with_redundant_layer(calibration))
    assert first > 3 * second  # uniform coefficients keep one channel more of the first


@pytest.mark.parametrize(("without", "least"), [("STEPS", 1e-3), ("DRAFTS", 0.25)])
def test_descent_and_drafts_find_the_redundant_layer_each_alone(
    without: str, least: float, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient, without, 0)
    to_solve = with_redundant_layer(calibration)
    first, second = found = solve("gradient", to_solve)
    assert first > 2 * second
    assert to_solve.score(found) < least * to_solve.score(uniform(to_solve, Progress()))


def test_gradient_is_no_worse_than_uniform_even_where_drafts_mislead(
    module: Mlp, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Misleading(CoefficientProblem[Mlp]):
        def score(self, kept):
            return 1.0 / super().score(kept)

    to_solve = problem(module, calibration, sparsity=0.6)
    parts = {part.name: getattr(to_solve, part.name) for part in dataclasses.fields(to_solve)}
    even = uniform(to_solve, Progress())
    monkeypatch.setattr(CoefficientProblem, "draft", lambda _: Misleading(**parts))
    monkeypatch.setattr(gradient, "JUDGED", 1)  # what the draft thinks the best
    assert to_solve.score(solve("gradient", to_solve)) <= to_solve.score(even)


def test_a_choice_near_another_holds_the_budget_and_differs_by_a_channel_where_these_are_few(
    module: Mlp, calibration: Calibration
) -> None:
    to_solve = problem(module, calibration, sparsity=0.6)
    start, rng = uniform(to_solve, Progress()), np.random.default_rng(0)
    found = [to_solve.near(start, 1e-6, rng) for _ in range(10)]
    assert all(abs(to_solve.sparsity_of(kept) - 0.6) <= to_solve.tolerance for kept in found)
    assert any(kept != start for kept in found)


def test_a_choice_near_another_differs_by_a_multiple(module: Mlp, calibration: Calibration) -> None:
    to_solve = problem(module, calibration, sparsity=0.6, channel_multiple=4, tolerance=0.1)
    start, rng = uniform(to_solve, Progress()), np.random.default_rng(0)
    found = [to_solve.near(start, 1e-6, rng) for _ in range(10)]
    assert all(count % 4 == 0 for kept in found for count in kept)
    assert any(kept != start for kept in found)


def test_a_draft_is_the_same_problem_on_fewer_rows(module: Mlp, calibration: Calibration) -> None:
    to_solve = problem(module, calibration, sparsity=0.6)
    draft = to_solve.draft()
    assert len(draft.calibration.fit_weights) < len(calibration.fit_weights) / 2
    assert len(draft.calibration.held_out_weights) <= len(calibration.held_out_weights)
    start = uniform(to_solve, Progress())
    assert uniform(draft, Progress()) == start
    assert draft.score(start) == pytest.approx(to_solve.score(start), rel=0.5)


def test_last_layers_are_fitted_a_second_time_only_where_that_is_asked_for(
    module: Mlp, calibration: Calibration
) -> None:
    twice = problem(module, calibration, sparsity=0.6)
    once = dataclasses.replace(twice, twice_fitted=False)
    kept = uniform(twice, Progress())
    pruned = [to_solve.build(kept) for to_solve in (twice, once)]
    middle, last = ([network.layers[number].weight for network in pruned] for number in (1, 2))
    assert torch.equal(*middle)
    assert not torch.equal(*last)
    assert "sensitivity" not in vars(once)  # which takes the longest
    assert not twice.draft().twice_fitted


def test_grid_finds_the_same_with_several_jobs(module: Mlp, calibration: Calibration) -> None:
    to_solve = problem(module, calibration, sparsity=0.6)
    found = [optimizer_of(PruningSettings(method="grid", jobs=jobs))(to_solve, Progress()) for jobs in (1, 2)]
    assert found[0] == found[1]


def test_threshold_keeps_more_of_a_component_that_weighs_more(calibration: Calibration) -> None:
    torch.manual_seed(0)
    module = Mlp(MlpArchitecture(hidden=(24, 24), activation="tanh"), 5, 2).eval()
    network = Network(module, {"first": ["layers.0"], "rest": ["layers.1", "layers.2"]}, recipe_for(module).network.run)
    kept = {}
    for weight in (0.2, 5.0):
        settings = PruningSettings(sparsity=0.5, method="threshold", component_weights={"rest": weight})
        to_solve = coefficient_problem(network, calibration, [Term("action")], settings, Progress())
        kept[weight] = optimizer_of(settings)(to_solve, Progress())
    assert kept[5.0][1] > kept[0.2][1]


def with_tied_members(settings: PruningSettings) -> CoefficientProblem[WorldModel]:
    torch.manual_seed(0)
    module = WorldModel().eval()
    batch = {"o": torch.randn(200, 5), "a": torch.rand(200, 2, 2)}
    network = Network(module, module.components, lambda m, b: m(b["o"], b["a"]), [("q.0.0", "q.1.0", "q.2.0")])
    data = Calibration(batch, torch.ones(200), batch, torch.ones(200))
    return coefficient_problem(network, data, [Term("action1"), Term("value1")], settings, Progress())


def test_tied_groups_keep_as_many_channels_as_each_other() -> None:
    for method in ("uniform", "threshold", "gradient"):
        settings = PruningSettings(sparsity=0.5, tolerance=0.03, method=method)
        to_solve = with_tied_members(settings)
        pruned = to_solve.build(optimizer_of(settings)(to_solve, Progress()))
        assert len({member[0].out_features for member in pruned.q}) == 1


def test_tied_groups_keep_multiples_that_all_of_them_may() -> None:
    to_solve = with_tied_members(PruningSettings(sparsity=0.5, tolerance=0.1, channel_multiple=4))
    tied = next(number for number, members in enumerate(to_solve.ties) if len(members) > 1)
    assert to_solve.counts[tied] == [4, 8, 12]
    pruned = to_solve.build(uniform(to_solve, Progress()))
    assert {member[0].out_features for member in pruned.q} <= {4, 8, 12}
    assert len({member[0].out_features for member in pruned.q}) == 1


def test_how_channels_of_tied_groups_are_numbered_makes_no_difference_to_the_threshold() -> None:
    to_solve = with_tied_members(PruningSettings(sparsity=0.5, tolerance=0.03))
    members = next(members for members in to_solve.ties if len(members) > 1)
    found = []
    for directions in ([False, False, False], [False, True, True]):
        scores = list(to_solve.scores)
        for member, descending in zip(members, directions, strict=True):
            scores[member] = torch.linspace(0.1, 1.9, len(scores[member])).sort(descending=descending).values
        found.append(threshold(dataclasses.replace(to_solve, scores=scores), Progress()))
    assert found[0] == found[1]


def test_ties_of_unlike_groups_are_refused() -> None:
    module = WorldModel().eval()
    batch = {"o": torch.randn(8, 5), "a": torch.rand(8, 2, 2)}
    for ties, message in (
        ([("q.0.0", "reward.0")], "different numbers of channels cannot be tied: q.0.0, reward.0"),
        ([("q.0.0", "q.9.0")], "a tie names the group 'q.9.0'"),
        ([("q.0.0", "q.1.0"), ()], r"ties\[1\] names no group; allowed are encoder\.0, encoder\.3, "),
    ):
        network = Network(module, module.components, lambda m, b: m(b["o"], b["a"]), ties)
        with pytest.raises(PruningError, match=message):
            network.tied(network.groups(batch))


@pytest.mark.parametrize(
    ("ties", "tied"),
    [
        ([["0", "2"], ["2", "4"]], [[0, 1, 2], [3]]),
        ([["2", "4"], ["6", "0"], ["4", "0"]], [[3, 0, 1, 2]]),
        ([["4", "4"], ["2", "0"]], [[1, 0], [2], [3]]),
        ([["0", "2"], ["4", "6"]], [[0, 1], [2, 3]]),
    ],
)
def test_ties_that_share_a_group_are_one(ties: list[list[str]], tied: list[list[int]]) -> None:
    layers = [layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.ReLU())]
    network = Network(nn.Sequential(*layers, nn.Linear(8, 2)), {"all": [""]}, lambda m, b: {"y": m(b["x"])}, ties)
    assert network.tied(network.groups({"x": torch.randn(8, 8)})) == tied


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 1))
        self.right = nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 1))


@pytest.mark.parametrize("method", SEARCHES)
def test_a_limit_is_held_at_the_cost_of_the_objective(method: str, calibration: Calibration) -> None:
    torch.manual_seed(0)
    module = TwoHeads().eval()
    network = Network(
        module,
        {"left": ["left"], "right": ["right"]},
        lambda m, b: {"left": m.left(b["observation"]), "right": m.right(b["observation"])},
    )
    settings = PruningSettings(sparsity=0.6, tolerance=0.03)
    free = coefficient_problem(network, calibration, [Term("left"), Term("right", weight=0.0)], settings, Progress())
    even = free.errors(free.build(uniform(free, Progress())))[1]["right"]
    neglected = solve(method, free)
    assert free.errors(free.build(neglected))[1]["right"] > 1.2 * even
    terms = [Term("left"), Term("right", weight=0.0, limit=1.1 * even)]
    bound = dataclasses.replace(free, terms=terms)
    for kept, exceeded in ((neglected, ["right"]), (solve(method, bound), [])):
        _, errors = bound.errors(bound.build(kept))
        assert bound.violated(errors) == exceeded


def test_small_networks_are_landed_wherever_a_whole_number_of_channels_allows_it(calibration: Calibration) -> None:
    module = Mlp(MlpArchitecture(hidden=(16, 16)), 5, 2).eval()
    to_solve = problem(module, calibration, sparsity=0.5, tolerance=0.01)
    every = [to_solve.sparsity_of([a, b]) for a in range(1, 17) for b in range(1, 17)]
    for target in np.arange(0.05, 0.95, 0.02):
        if min(abs(found - target) for found in every) <= 0.01:
            kept = uniform(dataclasses.replace(to_solve, sparsity=float(target)), Progress())
            assert abs(to_solve.sparsity_of(kept) - target) <= 0.01


def test_unreachable_sparsity_names_the_reachable_range(module: Mlp, calibration: Calibration) -> None:
    largest = problem(module, calibration, sparsity=0.5).largest_sparsity
    with pytest.raises(PruningError, match=f"it is {largest:.4g}, which is the largest .* smallest is 0"):
        problem(module, calibration, sparsity=0.999, tolerance=0.001)


def test_sparsity_between_whole_channels_names_the_nearest(calibration: Calibration) -> None:
    module = Mlp(MlpArchitecture(hidden=(3,)), 5, 2).eval()
    with pytest.raises(PruningError, match="nearest is"):
        uniform(problem(module, calibration, sparsity=0.45, tolerance=0.001), Progress())


def test_a_size_written_into_the_forward_pass_is_named_as_the_cause() -> None:
    class Rigid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(inputs)).view(-1, 4, 2).view(-1, 8))

    batch = {"x": torch.randn(100, 4)}
    network = Network(Rigid(), {"all": [""]}, lambda m, b: {"y": m(b["x"])})
    data = Calibration(batch, torch.ones(100), batch, torch.ones(100))
    settings = PruningSettings(sparsity=0.5, tolerance=0.2)
    to_solve = coefficient_problem(network, data, [Term("y")], settings, Progress())
    with pytest.raises(PruningError, match=r"^the pruned network fails with RuntimeError: .*; if a size is"):
        to_solve.build(uniform(to_solve, Progress()))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_cancelled(method: str, module: Mlp, calibration: Calibration) -> None:
    to_solve = problem(module, calibration, sparsity=0.6)
    with pytest.raises(Cancelled, match="coefficients"):
        optimizer_of(PruningSettings(method=method))(to_solve, Progress(cancelled=lambda: True))


def test_parzen_estimator_takes_every_seed_that_torch_takes(module: Mlp, calibration: Calibration) -> None:
    pytest.importorskip("optuna")
    to_solve = problem(module, calibration, sparsity=0.6, seed=2**63 - 1)
    assert abs(to_solve.sparsity_of(tpe(to_solve, Progress(), trials=2)) - 0.6) <= 0.02
    with pytest.raises(ValidationError, match="more than torch takes"):
        PruningSettings(seed=2**63)


def test_a_search_that_is_cancelled_tells_of_no_failed_trial(
    module: Mlp, calibration: Calibration, caplog: pytest.LogCaptureFixture
) -> None:
    import optuna

    steps = iter(range(3))
    optuna.logging.enable_propagation()
    try:
        with pytest.raises(Cancelled, match="coefficients"):
            tpe(problem(module, calibration, sparsity=0.6), Progress(cancelled=lambda: next(steps, None) is None))
    finally:
        optuna.logging.disable_propagation()
    assert caplog.text == ""
