"""How each architecture of a controller is pruned: its components, how it is run, and what matters of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.controllers.tdmpc import TdMpc
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.network import Batch, Network
from nncontrol_prune.pruning.terms import Term, mean_squared

JACOBIAN_STEP = 0.05
"""Step of the differences that estimate the policy's Jacobian, in standard deviations of the observation."""
UNROLLED_STEPS = 3
"""Steps that a model of the dynamics is unrolled over; two are the least that show what they share."""


@dataclass(frozen=True)
class Recipe:
    """How a controller's network is pruned.

    Attributes:
        network: The network.
        terms: What may matter, with the weights that are taken where the user names none.
        horizon: Steps of the rollouts that a row needs after its observation.
    """

    network: Network[Any]
    terms: Sequence[Term]
    horizon: int = 0


def recipe_for(module: nn.Module) -> Recipe:
    """Return how a controller's network is pruned.

    Raises:
        PruningError: Its architecture is not known.
    """
    if isinstance(module, Mlp):
        return _mlp(module)
    if isinstance(module, TdMpc):
        return _tdmpc(module)
    raise PruningError(
        f"there is no recipe for pruning {type(module).__name__}; mlp and tdmpc controllers can be pruned"
    )


def sample_batch(recipe: Recipe, observations: NDArray[np.float32], action_size: int) -> dict[str, Tensor]:
    """Return a batch of these observations (rows, n) to trace a recipe's network with; actions are zero."""
    rows = torch.from_numpy(observations)
    batch = {"observation": rows}
    if recipe.horizon:
        batch["action"] = torch.zeros(len(rows), recipe.horizon, action_size)
        batch["next_observation"] = rows[:, None].expand(-1, recipe.horizon, -1)
        batch["reward"] = torch.zeros(len(rows), recipe.horizon)
        batch["alternative"] = torch.zeros(len(rows), recipe.horizon, action_size)
        batch["logged"] = torch.ones(len(rows))
    return batch


def _mlp(module: Mlp) -> Recipe:
    scale = 2 * module.output.half_range
    return Recipe(
        network=Network(module, module.components(), run_policy),
        terms=(Term("action", scale=scale), Term("jacobian", weight=0.0, scale=scale)),
    )


def run_policy(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return `action` (rows, m) and, if the batch has a `direction` d (rows, n), the policy's `jacobian` along it.

    That is ∂π/∂o · d by central differences: the gains of the loop, as far as one random direction of a standard
    deviation a row shows them; their mean square over rows is that of the Jacobian, weighted by the states' spread.
    """
    observation = batch["observation"]
    outputs: dict[str, Tensor] = {"action": module(observation)}
    if "direction" in batch:
        outputs["jacobian"] = _along(module, observation, batch["direction"])
    return outputs


def _along(policy: Callable[[Tensor], Tensor], observation: Tensor, direction: Tensor) -> Tensor:
    step = JACOBIAN_STEP * direction
    difference: Tensor = policy(observation + step) - policy(observation - step)
    return difference / (2 * JACOBIAN_STEP)


def _tdmpc(module: TdMpc) -> Recipe:
    architecture = module.architecture
    members = range(architecture.q_members)
    return Recipe(
        network=Network(
            module,
            module.components(),
            run_world_model,
            # Each member loses channels of its own choice, but as many as the others, so that all have one shape.
            ties=[[f"q.{member}.{3 * layer}" for member in members] for layer in range(len(architecture.q))],
            contrasts=True,
            once=_one_step,
        ),
        terms=(
            Term("action", weight=10.0, scale=2.0, error=mean_squared),
            # By squares alone, some ten states decide: those at the edge of what the agent can still swing up from.
            Term("plan", weight=0.1, scale=None, transform=torch.asinh),
            Term("reward", scale=None),
            Term("value", scale=None),
            Term("latent", target="zero", error=mean_squared),
            Term("jacobian", weight=0.0, scale=2.0),
            Term("logged_reward", weight=0.0, scale=None, target="reward"),
        ),
        horizon=UNROLLED_STEPS,
    )


def _one_step(batch: Batch) -> Batch:
    steps = ("action", "alternative", "next_observation", "reward")
    return {name: values[:, :1] if name in steps else values for name, values in batch.items()}


def run_world_model(module: Any, batch: Batch) -> dict[str, Tensor]:
    """Run all parts of a world model, each step on the latent that the step before predicted.

    Every row is run twice, along the batch's `action` and along its `alternative`: on the logs an action follows from
    its observation, so that a layer fitted to them alone could put down to the one what comes of the other.

    Returns, for rows, steps h of the horizon H and the two of them,
        `action` (rows, H, 2, m): the policy's mean action, in ±1;
        `reward` (rows, H, 2) and `value` (rows, H, 2): of the action taken, in the reward's units;
        `plan` (rows,): by how much the planner would rank the one above the other. States differ in what they are
            worth by far more than the plans from one of them do, and only the latter matters here;
        `latent` (rows, H): how far the latent predicted along `action` is from that of the observation that followed,
            in standard deviations of the latter; 0 where the row was not logged;
        `logged_reward` (rows, H): the reward along `action`, to be compared with what was logged; and the batch's
            where the row was not logged;
        `jacobian` (rows, m): the policy's along the batch's `direction`, if it has one.
    """
    tried = module.scaled(torch.stack([batch["action"], batch["alternative"]], dim=1)).clamp(-1.0, 1.0)
    logged = batch["logged"][:, None]
    latents = module.encode(batch["observation"])[:, None].expand(-1, 2, -1)
    policy, reward, value, predicted = [], [], [], []
    returns, discount = torch.zeros(tried.shape[:2]), 1.0
    for actions in tried.unbind(2):
        policy.append(module.act(latents))
        reward.append(module.decode(module.reward_logits(latents, actions)))
        value.append(module.decode(module.value_logits(latents, actions)).mean(dim=0))
        latents = module.predict(latents, actions)
        predicted.append(latents[:, 0])
        returns = returns + discount * reward[-1]
        discount *= module.architecture.discount
    returns = returns + discount * module.decode(module.value_logits(latents, module.act(latents))).mean(dim=0)
    rewards = torch.stack(reward, dim=1)
    following = module.encode(batch["next_observation"])
    spread = (following - following.mean(dim=0)).square().sum(dim=-1).mean()
    distance = (torch.stack(predicted, dim=1) - following).square().sum(dim=-1)
    outputs = {
        "action": torch.stack(policy, dim=1),
        "reward": rewards,
        "value": torch.stack(value, dim=1),
        "plan": returns[:, 0] - returns[:, 1],
        # The root has no slope at zero.
        "latent": (distance / spread.clamp_min(1e-12) + 1e-12).sqrt() * logged,
        "logged_reward": torch.where(logged > 0, rewards[:, :, 0], batch["reward"]),
    }
    if "direction" in batch:
        outputs["jacobian"] = _along(
            lambda observation: module.act(module.encode(observation)), batch["observation"], batch["direction"]
        )
    return outputs
