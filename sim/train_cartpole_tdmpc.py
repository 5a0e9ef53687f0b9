"""Train the TD-MPC agent that ships for the cart-pole, and write it as a bundle.

    python sim/train_cartpole_tdmpc.py --out sim/controllers/cartpole_swingup_tdmpc

It starts from demonstrations of the shipped soft actor-critic actor, with noise of all levels, and goes on with what it
does itself; half an hour on one core.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nncontrol_prune.controllers.bundle import load_bundle, make_bundle
from nncontrol_prune.controllers.policy import Policy
from nncontrol_prune.controllers.specs import PlannerSpec, TdMpcArchitecture
from nncontrol_prune.controllers.tdmpc import TdMpc, two_hot
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.environments import environment_specs, make_environment
from nncontrol_prune.plants.tasks import task_of
from nncontrol_prune.plants.training_starts import TrainingStarts
from nncontrol_prune.resources import shipped_controllers

ENVIRONMENTS = 8
HORIZON, BATCH = 3, 128
RHO = 0.5
CONSISTENCY, REWARD, VALUE = 20.0, 0.1, 0.1
ENTROPY = 1e-4
TARGET_RATE = 0.01
UPDATES_PER_STEP = 4
"""Gradient steps for each step of all environments."""
OBSERVATION_SCALE = (1.0, 1.0, 1.0, 2.0, 5.0)
DEMONSTRATOR = "cartpole_swingup_sac"
DEMONSTRATED_STEPS, PRETRAINING_UPDATES = 2_500, 3_000
RESTART = 1 / 400
"""Chance of a new episode in each step, so that many starts are seen."""
EVALUATED_EVERY = 1_000


class Replay:
    """Whole episodes of every environment, as they came; sequences never cross an end."""

    def __init__(self, capacity: int, observation_size: int, action_size: int) -> None:
        self.observation = torch.zeros(capacity + 1, ENVIRONMENTS, observation_size)
        self.action = torch.zeros(capacity + 1, ENVIRONMENTS, action_size)
        self.reward = torch.zeros(capacity + 1, ENVIRONMENTS)
        self.ends = torch.zeros(capacity + 1, ENVIRONMENTS, dtype=torch.bool)
        self.size = 0

    def add(self, observation: Tensor, action: Tensor, reward: Tensor, ends: Tensor) -> None:
        """Add one step of every environment; `ends` where the next row is the start of another episode."""
        for field, value in zip(
            (self.observation, self.action, self.reward, self.ends), (observation, action, reward, ends), strict=True
        ):
            field[self.size] = value
        self.size += 1

    def sample(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return observations (horizon + 1, batch, n), actions and rewards (horizon, batch, ...)."""
        starts = torch.randint(self.size - HORIZON - 1, (2 * BATCH,), generator=generator)
        columns = torch.randint(ENVIRONMENTS, (2 * BATCH,), generator=generator)
        steps = starts + torch.arange(HORIZON + 1)[:, None]
        whole = ~self.ends[steps[:-1], columns].any(dim=0)
        steps, columns = steps[:, whole][:, :BATCH], columns[whole][:BATCH]
        return self.observation[steps, columns], self.action[steps[:-1], columns], self.reward[steps[:-1], columns]


class Trainer:
    """TD-MPC2's losses (Hansen et al. 2024) and their optimizers."""

    def __init__(self, model: TdMpc) -> None:
        self.model = model
        self.target = copy.deepcopy(model.q).requires_grad_(False)
        groups: list[dict[str, Any]] = [
            {"params": list(model.encoder.parameters()), "lr": 1e-4},
            {"params": [*model.dynamics.parameters(), *model.reward.parameters(), *model.q.parameters()]},
        ]
        self.world = torch.optim.Adam(groups, lr=3e-4)
        self.policy = torch.optim.Adam(model.policy.parameters(), lr=3e-4, eps=1e-5)
        self.scale = 1.0
        self.weights = RHO ** torch.arange(HORIZON + 1)

    def update(self, observation: Tensor, action: Tensor, reward: Tensor) -> dict[str, float]:
        """Take one gradient step on each part."""
        model = self.model
        with torch.no_grad():
            following = model.encode(observation[1:])
            both = torch.cat([following, self._sample(following)[0]], dim=-1)
            least = torch.stack([model.decode(member(both)) for member in self.target]).amin(dim=0)
            target = two_hot(reward + model.architecture.discount * least, model.support)
        latents = [model.encode(observation[0])]
        consistency = torch.zeros(())
        for step in range(HORIZON):
            latents.append(model.predict(latents[-1], action[step]))
            consistency = consistency + self.weights[step] * functional.mse_loss(latents[-1], following[step])
        before = torch.stack(latents[:-1])
        rewards = _cross_entropy(model.reward_logits(before, action), two_hot(reward, model.support))
        values = _cross_entropy(model.value_logits(before, action), target).mean(dim=0)
        weights = self.weights[:HORIZON, None]
        loss = (
            CONSISTENCY * consistency
            + REWARD * (weights * rewards).mean(1).sum()
            + VALUE * (weights * values).mean(1).sum()
        ) / HORIZON
        self.world.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in self.world.param_groups for p in group["params"]], 20.0)
        self.world.step()
        policy_loss = self._improve_policy(torch.stack(latents).detach())
        with torch.no_grad():
            for ours, theirs in zip(model.q.parameters(), self.target.parameters(), strict=True):
                theirs.lerp_(ours, TARGET_RATE)
        losses = {"consistency": consistency, "reward": rewards.mean(), "value": values.mean()}
        return {**{name: float(loss.detach()) for name, loss in losses.items()}, "policy": policy_loss}

    def _improve_policy(self, latents: Tensor) -> float:
        model = self.model
        model.q.requires_grad_(False)
        action, entropy = self._sample(latents)
        value = model.decode(model.value_logits(latents, action)).mean(dim=0)
        low, high = torch.quantile(value.detach()[0], torch.tensor([0.05, 0.95])).tolist()
        self.scale += 0.01 * (max(high - low, 1.0) - self.scale)
        loss = -(self.weights[:, None] * (ENTROPY * entropy + value / self.scale)).mean()
        self.policy.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.policy.parameters(), 20.0)
        self.policy.step()
        model.q.requires_grad_(True)
        return float(loss.detach())

    def _sample(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return an action of the policy and an estimate of its entropy."""
        mean, log_std = self.model.policy_parameters(latent)
        noise = torch.randn_like(mean)
        action = torch.tanh(mean + log_std.exp() * noise)
        log_probability = -0.5 * noise.square() - log_std - torch.log(1 - action.square() + 1e-6)
        return action, -log_probability.sum(dim=-1)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return -(target * torch.log_softmax(logits, dim=-1)).sum(dim=-1)


@torch.no_grad()
def evaluate(model: TdMpc, seeds: range) -> tuple[int, float]:
    """Return how many of the starts end with the pole upright for two seconds, and the mean return."""
    environments, task = [make_environment(CARTPOLE) for _ in seeds], task_of(CARTPOLE)
    observation = np.stack([env.reset(seed=seed)[0] for env, seed in zip(environments, seeds, strict=True)])
    plan = torch.zeros(len(seeds), model.architecture.planner.horizon, model.action_size)
    fallen, total = np.zeros(len(seeds), dtype=int), np.zeros(len(seeds))
    for step in range(1000):
        action, plan = model(torch.from_numpy(observation).float(), plan)
        for index, env in enumerate(environments):
            observation[index], reward, _, _, _ = env.step(action[index].numpy())
            total[index] += float(reward)
            if not task.at_goal(observation[index]):
                fallen[index] = step + 1
    return int((fallen <= 800).sum()), float(total.mean())


class Collector:
    """Steps all environments and keeps what they gave in the replay."""

    def __init__(self, model: TdMpc, replay: Replay, seed: int) -> None:
        self._model, self._replay = model, replay
        self._rng = np.random.default_rng(seed)
        self._environments = [TrainingStarts(make_environment(CARTPOLE), seed + index) for index in range(ENVIRONMENTS)]
        self._observation = np.stack([e.reset(seed=seed + i)[0] for i, e in enumerate(self._environments)])
        self._plan = torch.zeros(ENVIRONMENTS, model.architecture.planner.horizon, model.action_size)

    def demonstrate(self, policy: Policy, steps: int) -> None:
        """Act by another policy, with noise that differs from environment to environment."""
        noise = torch.linspace(0.0, 0.8, ENVIRONMENTS)[:, None]
        for _ in range(steps):
            command = self._model.scaled(torch.from_numpy(policy.batch(self._observation)))
            self._step((command + noise * torch.randn(command.shape)).clamp(-1, 1))

    @torch.no_grad()
    def plan(self, noise: float) -> None:
        """Act once by the model's own plan, with noise."""
        command, self._plan = self._model(torch.from_numpy(self._observation).float(), self._plan)
        self._step((self._model.scaled(command) + noise * torch.randn(command.shape)).clamp(-1, 1))

    def _step(self, action: Tensor) -> None:
        seen = torch.from_numpy(self._observation).float()
        command = self._model.output(action).numpy()
        rewards, ends = torch.zeros(ENVIRONMENTS), torch.zeros(ENVIRONMENTS, dtype=torch.bool)
        for index, env in enumerate(self._environments):
            self._observation[index], reward, _, truncated, _ = env.step(command[index])
            rewards[index], ends[index] = float(reward), truncated or self._rng.random() < RESTART
            if ends[index]:
                self._observation[index], _ = env.reset()
                self._plan[index] = 0.0
        self._replay.add(seen, action, rewards, ends)


def train(model: TdMpc, steps: int, seed: int, checkpoint: Path, minutes: float) -> None:
    """Train for so many steps of all environments; the best by evaluation is kept in `checkpoint`."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    replay = Replay(DEMONSTRATED_STEPS + steps, len(OBSERVATION_SCALE), model.action_size)
    collector, trainer = Collector(model, replay, seed), Trainer(model)
    collector.demonstrate(load_bundle(shipped_controllers()[DEMONSTRATOR]).policy, DEMONSTRATED_STEPS)
    losses: dict[str, float] = {}
    for _ in range(PRETRAINING_UPDATES):
        losses = trainer.update(*replay.sample(generator))
    best, started = (-1, -1.0), time.monotonic()
    for step in range(steps):
        if step % EVALUATED_EVERY == 0:
            result = evaluate(model, range(20_000, 20_010))
            elapsed = (time.monotonic() - started) / 60
            print(f"{step} steps, {elapsed:.1f} min: {result[0]} of 10 balanced, return {result[1]:.0f}; "
                  + ", ".join(f"{name} {loss:.3g}" for name, loss in losses.items()), flush=True)  # fmt: skip
            if result > best:
                best = result
                torch.save(model.state_dict(), checkpoint)
            if elapsed > minutes:
                break
        collector.plan(noise=0.3 * max(0.15, 1.0 - step / 3000))
        for _ in range(UPDATES_PER_STEP):
            losses = trainer.update(*replay.sample(generator))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12_000, help="of eight environments each")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which it stops")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--latent", type=int, default=64)
    parser.add_argument("--checkpoint", type=Path, default=Path("cartpole_tdmpc.pt"))
    parser.add_argument(
        "--out", type=Path, default=Path("cartpole_swingup_tdmpc"), help="bundle to write; its name too"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    specs = environment_specs(CARTPOLE)
    width = arguments.width
    architecture = TdMpcArchitecture(
        encoder=(width,), dynamics=(width, width), reward=(width, width), policy=(width, width), q=(width, width),
        latent=arguments.latent, v_min=-2.0, v_max=6.0, log_std_min=-5.0, log_std_max=1.0,
        planner=PlannerSpec(max_std=0.5),
    )  # fmt: skip
    torch.manual_seed(arguments.seed)
    model = TdMpc.for_action(architecture, specs.observation.size, specs.action)
    model.normalizer.inverse_std.copy_(1.0 / torch.tensor(OBSERVATION_SCALE))
    for head in (model.reward, *model.q):  # as its authors do: values start at zero
        nn.init.zeros_(head[-1].weight)
    train(model, arguments.steps, arguments.seed, arguments.checkpoint, arguments.minutes)
    model.load_state_dict(torch.load(arguments.checkpoint, weights_only=True))
    balanced, mean_return = evaluate(model, range(10_000, 10_050))
    print(f"{balanced} of 50 starts end balanced, return {mean_return:.0f}")
    bundle = make_bundle(
        model.eval(),
        name=arguments.out.name,
        observation=specs.observation,
        action=specs.action,
        rate=specs.rate,
        environment=CARTPOLE,
        reference_observations=load_bundle(shipped_controllers()[DEMONSTRATOR]).reference_observations,
    )
    bundle.write(arguments.out)
    print(bundle.reference)


if __name__ == "__main__":
    main()
