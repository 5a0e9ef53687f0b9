from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nncontrol_prune.controllers.bundle import Bundle, load_bundle, make_bundle
from nncontrol_prune.controllers.mlp import parameter_count
from nncontrol_prune.controllers.observations import ObservationSpec, ObservationTerm
from nncontrol_prune.controllers.specs import ActionSpec, PlannerSpec, TdMpcArchitecture
from nncontrol_prune.controllers.tdmpc import TdMpc
from nncontrol_prune.pruning.architectures import recipe_for, sample_batch
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.pipeline import controller_calibration, largest_sparsity, prune_bundle
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.pruning.surgery import most_important, remove_channels
from nncontrol_prune.rollouts.reader import Rollouts
from tests.pruning.networks import masked

ACTION = ActionSpec(joints=("a", "b"), lower=(-1.0, -10.0), upper=(1.0, 10.0), unit="N")
SMALL = TdMpcArchitecture(
    encoder=(20,), dynamics=(24, 20), reward=(16,), policy=(18, 16), q=(14, 12), latent=24, simplex=4, q_members=3,
    bins=11, v_min=-2.0, v_max=2.0, planner=PlannerSpec(horizon=2, samples=6, policy_samples=2, elites=3, iterations=1),
)  # fmt: skip


@pytest.fixture
def agent() -> TdMpc:
    """An agent with random weights, its norms and biases included."""
    torch.manual_seed(0)
    module = TdMpc.for_action(SMALL, 5, ACTION)
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.3)
    return module.eval()


@pytest.fixture
def bundle(agent: TdMpc) -> Bundle:
    """The same as a bundle."""
    return make_bundle(
        agent,
        name="agent",
        observation=ObservationSpec(terms=(ObservationTerm(name="all", size=5),)),
        action=ACTION,
        rate=100.0,
        environment=None,
        reference_observations=np.random.default_rng(0).normal(size=(50, 5)),
    )


@pytest.fixture
def rollouts(make_rollouts: Any) -> Rollouts:
    """Eight episodes of a linear system."""
    rng = np.random.default_rng(1)
    observation, action = np.zeros((800, 5)), rng.uniform(-1, 1, (800, 2)) * np.array([1.0, 10.0])
    drift = 0.9 * np.linalg.qr(rng.normal(size=(5, 5)))[0]
    for row in range(1, 800):
        start = rng.normal(size=5)
        pushed = drift @ observation[row - 1] + 0.1 * action[row - 1].sum() / 10
        observation[row] = start if row % 100 == 0 else pushed
    made: Rollouts = make_rollouts(observation, np.repeat(np.arange(8), 100))
    made.action.resize((800, 2), refcheck=False)
    made.action[:] = action
    return made


def test_all_parts_share_one_latent_that_leaves_in_whole_simplices(agent: TdMpc) -> None:
    recipe = recipe_for(agent)
    groups = recipe.network.groups(sample_batch(recipe, np.zeros((4, 5), dtype=np.float32), 2))
    (latent,) = [group for group in groups if group.kind == "inter-component"]
    assert set(latent.components) == {"encoder", "dynamics", "reward", "policy", "q"}
    assert latent.channels == 24 // 4
    assert {member.width for member in latent.members} == {4}
    assert len(groups) == 1 + 1 + 2 + 1 + 2 + 3 * 2
    assert len(recipe.network.tied(groups)) == 1 + 1 + 2 + 1 + 2 + 2


def test_the_pruned_agent_equals_the_masked_dense_one(agent: TdMpc) -> None:
    recipe = recipe_for(agent)
    batch = sample_batch(recipe, torch.randn(7, 5).numpy(), 2)
    batch = {**batch, "action": torch.rand(7, 3, 2) * 2 - 1}
    groups = recipe.network.groups(batch)
    keep = most_important([torch.rand(group.channels) for group in groups], [g.channels // 2 for g in groups])
    pruned = remove_channels(agent, groups, keep)
    compared = ("action", "reward", "value", "plan")
    with torch.no_grad(), masked(agent, groups, keep):
        # A masked simplex still sums to one; what takes it in ignores it, as the pruned network has none.
        wanted = recipe.network.run(agent, batch)
        found = recipe.network.run(pruned, batch)
        for name in compared:
            torch.testing.assert_close(found[name], wanted[name], atol=1e-5, rtol=0)
    assert pruned.current_architecture().latent == 12


def test_no_single_state_decides_how_well_plans_are_ranked(agent: TdMpc) -> None:
    ranking = next(term for term in recipe_for(agent).terms if term.label == "plan")
    found = {"plan": torch.tensor([1.0, 100.0])}  # spreads off
    slightly, far = replace(ranking, scale=1.0).errors(found, {"plan": torch.zeros(2)}, {}).tolist()
    assert slightly < far < 50 * slightly


@pytest.mark.parametrize("method", ["uniform", "gradient"])
def test_an_agent_is_pruned_to_a_bundle_that_plans(bundle: Bundle, rollouts: Rollouts, method: Any, tmp_path) -> None:
    settings = PruningSettings(sparsity=0.6, tolerance=0.02, method=method, distill_steps=20, max_rows=600)
    pruned, report = prune_bundle(bundle, rollouts, settings)
    assert pruned.manifest.parameters == pytest.approx(0.4 * bundle.manifest.parameters, rel=0.06)
    architecture = pruned.manifest.architecture
    assert isinstance(architecture, TdMpcArchitecture)
    assert architecture.latent % architecture.simplex == 0
    assert architecture.planner == SMALL.planner
    assert set(report.terms[report.chosen]) == {"action", "plan", "reward", "value", "latent"}
    pruned.write(tmp_path / "pruned")
    loaded = load_bundle(tmp_path / "pruned")
    action = np.zeros(2)
    loaded.policy.act(np.zeros(5), action)
    assert np.isfinite(action).all()
    assert parameter_count(loaded.module()) == pruned.manifest.parameters


def test_a_term_on_logged_rewards_needs_them(bundle: Bundle, rollouts: Rollouts) -> None:
    settings = PruningSettings(sparsity=0.5, terms={"logged_reward": 1.0}, method="uniform", max_rows=600)
    with pytest.raises(PruningError, match="the rollouts hold none.*use the term reward"):
        prune_bundle(bundle, rollouts, settings)
    rollouts.reward[:] = rollouts.observation[:, 0]
    rollouts.reward[5] = np.nan
    _, report = prune_bundle(bundle, rollouts, settings)
    assert report.terms[report.chosen]["logged_reward"] > 0
    assert "skipped 1 transitions that hold NaN or infinity" in report.warnings


def test_on_policy_rounds_need_what_a_planner_does_not_log(bundle: Bundle, rollouts: Rollouts) -> None:
    settings = PruningSettings(sparsity=0.5, distill_steps=10, on_policy_rounds=1)
    with pytest.raises(PruningError, match="on-policy rounds are not possible for tdmpc"):
        prune_bundle(bundle, rollouts, settings, observe=lambda _: np.zeros((10, 5)))


def test_the_largest_sparsity_leaves_one_simplex(bundle: Bundle) -> None:
    assert 0.9 < largest_sparsity(bundle) < 1.0


def test_the_largest_sparsity_in_multiples_is_the_one_that_can_be_reached(bundle: Bundle, rollouts: Rollouts) -> None:
    largest = largest_sparsity(bundle, 8)
    assert 0.5 < largest < largest_sparsity(bundle)
    settings = PruningSettings(sparsity=largest, channel_multiple=8, method="uniform", max_rows=600)
    candidate, report = prune_bundle(bundle, rollouts, settings)
    assert report.sparsity == pytest.approx(largest)
    widths = candidate.manifest.architecture
    assert {width % 8 for width in (*widths.encoder, *widths.dynamics, *widths.q, widths.latent)} == {0}


def test_distance_of_latents_counts_only_where_the_observation_was_logged(agent: TdMpc) -> None:
    recipe = recipe_for(agent)
    batch = sample_batch(recipe, torch.randn(6, 5).numpy(), 2)
    batch["logged"] = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    with torch.no_grad():
        outputs = recipe.network.run(agent, batch)
    assert (outputs["latent"][:3] > 0).all()
    assert (outputs["latent"][3:] == 0).all()
    torch.testing.assert_close(outputs["logged_reward"][3:], batch["reward"][3:])


def test_calibration_rows_hold_what_follows_them(bundle: Bundle, rollouts: Rollouts) -> None:
    recipe = recipe_for(bundle.module())
    data = controller_calibration(bundle, rollouts, recipe, recipe.terms[:5], PruningSettings(max_rows=400))
    assert isinstance(data, Calibration)
    assert data.fit["action"].shape[1:] == (3, 2)
    rows = len(data.fit["observation"]) // 2
    assert not torch.equal(data.fit["action"][:rows], data.fit["action"][rows:])
