from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from nncontrol_prune.controllers.mlp import parameter_count
from nncontrol_prune.pruning.engine import Pruned
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.importance import Evidence
from nncontrol_prune.pruning.prune import Budget, prune
from tests.pruning.networks import WorldModel


def pruned_in_rounds(first: int, second: int, budget: Budget, **settings: Any) -> Pruned[nn.Sequential]:
    """Prune two hidden layers on data (rows, positions, entries)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 3))
    return prune(
        model, data=torch.randn(200, 5, 6), budget=budget,
        **{"rounds": 8, "method": "uniform", "components": {"all": [""]}, **settings},
    )  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "threshold"},
        {"ties": [("0",), ("2",)]},
        {
            "method": "threshold",
            "components": {"trunk": ["0", "2"], "head": ["4"]},
            "component_weights": {"head": 0.5},
        },
    ],
)
def test_a_group_that_is_down_to_one_channel_keeps_it_in_later_rounds(settings: dict[str, Any]) -> None:
    chosen = pruned_in_rounds(16, 4, Budget(0.82, tolerance=0.02), **settings).chosen
    kept = [outcome.kept for outcome in chosen.groups]
    assert kept == [chosen.module[0].out_features, chosen.module[2].out_features]
    assert kept[1] == 1
    dense = 7 * 16 + 17 * 4 + 5 * 3
    assert chosen.sparsity == pytest.approx(1 - parameter_count(chosen.module) / dense)
    assert chosen.sparsity == pytest.approx(0.82, abs=0.02)


def test_a_group_that_is_down_to_one_simplex_keeps_it_in_later_rounds() -> None:
    torch.manual_seed(0)
    model = WorldModel().eval()
    data = {"observation": torch.randn(200, 5), "actions": torch.rand(200, 2, 2)}
    result = prune(
        model, data=data, budget=Budget(0.93, tolerance=0.03), components=model.components, rounds=8, method="uniform",
        trace=lambda m, rows: m(rows["observation"], rows["actions"]),
    )  # fmt: skip
    latent = next(outcome for outcome in result.chosen.groups if outcome.group.name == "encoder.3")
    assert latent.kept == 1
    assert parameter_count(result.chosen.module) == pytest.approx(0.07 * parameter_count(model), rel=0.5)


def test_a_norm_that_is_down_to_one_of_its_groups_keeps_that_in_later_rounds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 16), nn.GroupNorm(2, 16), nn.ReLU(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 2)
    )
    chosen = prune(model, data=torch.randn(300, 6), budget=Budget(0.8, tolerance=0.05), components={"all": [""]},
                   method="uniform", rounds=4).chosen  # fmt: skip
    norm: Any = chosen.module[1]
    assert (chosen.groups[0].kept, norm.num_groups, norm.num_channels) == (1, 1, 8)
    assert chosen.sparsity == pytest.approx(1 - parameter_count(chosen.module) / parameter_count(model))


@pytest.mark.parametrize("method", ["uniform", "threshold", "gradient"])
def test_only_the_last_round_has_to_meet_the_budget(method: str) -> None:
    chosen = pruned_in_rounds(32, 8, Budget(0.85, tolerance=0.01), method=method).chosen
    assert chosen.sparsity == pytest.approx(0.85, abs=0.01)


def test_a_budget_that_rounds_do_not_meet_is_told_in_shares_of_the_dense_network() -> None:
    with pytest.raises(PruningError, match=r"removed 0\.\d+, and .* within 0.01 of sparsity 0.9; take fewer rounds"):
        pruned_in_rounds(16, 4, Budget(0.9, tolerance=0.01))
    with pytest.raises(PruningError, match="sparsity 0.95 cannot be reached"):
        pruned_in_rounds(16, 4, Budget(0.95, tolerance=0.01))


@pytest.mark.parametrize("rounds", [2, 3])
def test_what_goes_wrong_in_a_later_round_is_told_as_in_the_first(rounds: int) -> None:
    asked: list[int] = []

    def importance(evidence: Evidence) -> list[torch.Tensor]:
        asked.append(len(asked))
        return [torch.full((group.channels,), float("nan") if len(asked) == 2 else 1.0) for group in evidence.groups]

    with pytest.raises(PruningError, match="^importance returned NaN or infinity for the group 0;"):
        pruned_in_rounds(32, 8, Budget(0.5, tolerance=0.05), rounds=rounds, importance=importance)
    assert len(asked) == 2


def test_rounds_that_no_whole_number_of_channels_fits_are_left_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))  # 6/26 of the parameters a channel
    result = prune(
        model, data=torch.randn(200, 3), budget=Budget(18 / 26, tolerance=0.01), components={"all": [""]},
        rounds=3, method="uniform",
    )  # fmt: skip
    assert [outcome.kept for outcome in result.chosen.groups] == [1]


@pytest.mark.parametrize("choose", [None, lambda candidates: len(candidates) - 1], ids=["objective", "varied"])
def test_what_the_user_should_know_of_any_round_is_told_once(choose: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 2))
    rows = 64  # 48 to fit: scarce for what has more than 24 inputs, as only the first round has
    result = prune(
        model, data=torch.randn(rows, 6), budget=Budget(0.75, tolerance=0.03), components={"all": [""]}, rounds=3,
        choose=choose, variations=0 if choose is None else 2, method="uniform" if choose is None else "threshold",
    )  # fmt: skip
    assert result.chosen.module[2].in_features <= 24
    (warning,) = result.warnings
    assert re.match(r"2 has (2[5-9]|3\d) inputs and is fitted on 48 rows only", warning)


def test_of_what_is_told_in_several_rounds_the_last_stands() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU())
    model.register_parameter("matrix", nn.Parameter(torch.randn(60, 3)))
    chosen = prune(
        model, data=torch.randn(64, 6), budget=Budget(0.5, tolerance=0.03), components={"all": [""]}, rounds=3,
        method="uniform", trace=lambda module, rows: module(rows) @ module.matrix,
    ).chosen  # fmt: skip
    cannot_refit, scarce = chosen.warnings
    assert cannot_refit.startswith("reconstruction cannot refit matrix;")
    assert scarce.startswith(f"2 has {chosen.module[2].in_features} inputs and is fitted on 48 rows only")
