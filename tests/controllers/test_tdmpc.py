from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from nncontrol_prune.controllers.errors import BundleError
from nncontrol_prune.controllers.modules import export_onnx, first_actions
from nncontrol_prune.controllers.policy import PLANS_AT_ONCE, OnnxPolicy, PlannerPolicy, load_policy
from nncontrol_prune.controllers.specs import ActionSpec, PlannerSpec, TdMpcArchitecture
from nncontrol_prune.controllers.tdmpc import Mish, SimNorm, TdMpc, symlog, two_hot

ACTION = ActionSpec(joints=("a", "b"), lower=(-1.0, -10.0), upper=(1.0, 10.0))


def architecture(**changes: Any) -> TdMpcArchitecture:
    planner = PlannerSpec(horizon=3, samples=12, policy_samples=4, elites=4, iterations=2)
    sizes: dict[str, Any] = {
        "encoder": (16,), "dynamics": (16,), "reward": (12,), "policy": (12,), "q": (10,), "latent": 16, "simplex": 4,
        "bins": 11, "v_min": -2.0, "v_max": 2.0, "planner": planner,
    }  # fmt: skip
    return TdMpcArchitecture(**{**sizes, **changes})


@pytest.fixture(scope="module")
def agent() -> TdMpc:
    torch.manual_seed(0)
    return TdMpc.for_action(architecture(), 5, ACTION).eval()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(1)


@pytest.fixture(scope="module")
def model(agent: TdMpc) -> bytes:
    return export_onnx(agent, 5)


@pytest.fixture
def policy(model: bytes) -> PlannerPolicy:
    return PlannerPolicy(model, 5, 2, 3)


def test_simplices_of_the_latent_sum_to_one(agent: TdMpc) -> None:
    latent = agent.encode(torch.randn(7, 5))
    torch.testing.assert_close(latent.unflatten(-1, (-1, 4)).sum(dim=-1), torch.ones(7, 4))
    assert SimNorm(4)(torch.randn(2, 8)).shape == (2, 8)


def test_mish_is_torch_s_everywhere() -> None:
    values = torch.cat([torch.linspace(-200, 200, 4001), torch.tensor([0.0, 1e-8, -1e-8])])
    torch.testing.assert_close(Mish()(values), torch.nn.functional.mish(values), atol=1e-5, rtol=1e-6)


def test_what_is_spread_over_two_bins_is_decoded_again(agent: TdMpc) -> None:
    values = torch.tensor([-5.0, -0.3, 0.0, 0.7, 6.0])
    spread = two_hot(values, agent.support)
    torch.testing.assert_close(spread.sum(dim=-1), torch.ones(5))
    assert ((spread > 0).sum(dim=-1) <= 2).all()
    torch.testing.assert_close(agent.decode(torch.log(spread + 1e-30)), values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(symlog(torch.tensor([np.e - 1, 1 - np.e])), torch.tensor([1.0, -1.0]))


def test_plans_are_within_the_limits_and_repeatable(agent: TdMpc) -> None:
    observations, plan = 10 * torch.randn(20, 5), torch.zeros(20, 3, 2)
    with torch.no_grad():
        actions, following = agent(observations, plan)
        again, _ = agent(observations, plan)
    assert torch.equal(actions, again)
    assert (actions.abs() <= torch.tensor([1.0, 10.0])).all()
    assert (following[:, -1] == 0).all()


def test_planning_finds_what_the_model_thinks_better_of(agent: TdMpc) -> None:
    observations, plan = torch.randn(50, 5), torch.zeros(50, 3, 2)
    with torch.no_grad():
        latent = agent.encode(observations)[:, None]
        actions, following = agent(observations, plan)
        planned = torch.cat([agent.scaled(actions)[:, None], following[:, :-1]], dim=1)
        gain = agent.expected_return(latent, torch.stack([planned, plan], dim=1))
    assert (gain[:, 0] > gain[:, 1]).float().mean() > 0.9


def test_the_export_plans_the_same_for_any_batch(agent: TdMpc, policy: PlannerPolicy) -> None:
    observations = torch.randn(9, 5)
    wanted = first_actions(agent, observations).numpy()
    np.testing.assert_allclose(policy.batch(observations.numpy()), wanted, atol=1e-4)
    action = np.zeros(2)
    policy.act(observations[3].double().numpy(), action)
    np.testing.assert_allclose(action, wanted[3], atol=1e-4)


def test_many_observations_are_planned_from_a_few_at_a_time(
    agent: TdMpc, policy: PlannerPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    observations = torch.randn(2 * PLANS_AT_ONCE + 3, 5)
    wanted = first_actions(agent, observations).numpy()
    sizes: list[int] = []
    batch_from = policy.batch_from

    def counted(rows: np.ndarray, plans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes.append(len(rows))
        return batch_from(rows, plans)

    monkeypatch.setattr(policy, "batch_from", counted)
    np.testing.assert_allclose(policy.batch(observations.numpy()), wanted, atol=1e-4)
    assert sizes == [PLANS_AT_ONCE, PLANS_AT_ONCE, 3]


def test_a_plan_is_carried_on_by_advance_alone(policy: PlannerPolicy) -> None:
    observation, first, second, third = np.ones(5), np.zeros(2), np.zeros(2), np.zeros(2)
    policy.act(observation, first)
    policy.act(observation, second)
    assert first.tolist() == second.tolist()
    policy.advance()
    policy.act(observation, third)
    assert first.tolist() != third.tolist()
    policy.reset()
    policy.act(observation, second)
    assert first.tolist() == second.tolist()


def test_another_planner_goes_on_where_one_is(model: bytes, policy: PlannerPolicy) -> None:
    observation, ours, theirs = np.ones(5), np.zeros(2), np.zeros(2)
    policy.act(observation, ours)
    policy.advance()
    other = PlannerPolicy(model, 5, 2, 3)
    other.take_over(policy)
    policy.act(observation, ours)
    other.act(observation, theirs)
    assert ours.tolist() == theirs.tolist()


def test_a_planner_of_another_shape_starts_from_nothing(policy: PlannerPolicy) -> None:
    longer = architecture(planner=PlannerSpec(horizon=4, samples=6, policy_samples=2, elites=2, iterations=1))
    other = PlannerPolicy(export_onnx(TdMpc.for_action(longer, 5, ACTION).eval(), 5), 5, 2, 4)
    fresh, after = np.zeros(2), np.zeros(2)
    other.act(np.ones(5), fresh)
    other.advance()
    other.take_over(policy)
    other.act(np.ones(5), after)
    assert fresh.tolist() == after.tolist()


def test_one_bad_observation_does_not_spoil_the_plans_after_it(policy: PlannerPolicy) -> None:
    fresh, action = np.zeros(2), np.zeros(2)
    policy.act(np.ones(5), fresh)
    policy.act(np.full(5, np.nan), action)
    policy.advance()
    policy.act(np.ones(5), action)
    assert action.tolist() == fresh.tolist()


def test_the_manifest_decides_how_a_policy_is_loaded(model: bytes) -> None:
    assert isinstance(load_policy(model, architecture(), 5, 2), PlannerPolicy)
    with pytest.raises(BundleError, match="the manifest says"):
        OnnxPolicy(model, 5, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent": 18}, "a latent of 18 cannot be divided into simplices of 4"),
        ({"q_members": 0}, "greater than or equal to 1"),
        ({"discount": 1.0}, "less than 1"),
        ({"v_min": 10.0, "v_max": -10.0}, "v_min 10 is not below v_max -10"),
        ({"log_std_min": 3.0}, "log_std_min 3 is not below log_std_max 2"),
    ],
)
def test_sizes_that_contradict_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        architecture(**changes)


def test_planner_needs_a_proposal_of_the_policy() -> None:
    with pytest.raises(ValidationError, match="policy_samples"):
        PlannerSpec(policy_samples=0)


@pytest.mark.parametrize("seed", [2**63, 2**64])
def test_seed_that_torch_does_not_take_is_refused(seed: int) -> None:
    with pytest.raises(ValidationError, match=f"a seed of {seed} is more than torch takes"):
        PlannerSpec(seed=seed)
    TdMpc(architecture(planner=PlannerSpec(seed=2**63 - 1)), 5, 2)


def test_more_elites_than_sequences_are_refused() -> None:
    with pytest.raises(ValidationError, match="9 elites are more than the sequences"):
        PlannerSpec(samples=4, policy_samples=4, elites=9)
