"""The closed loop as fast as the machine runs it: many plants, and one policy that is asked for all of them at once.

The policy is the deployed one. ONNX Runtime gives each row the same bits in a batch as alone, and a batch's plants do
what single ones do, so a trajectory follows from controller, environment, seed and conditions alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.policy import PlannerPolicy, Policy
from nncontrol_prune.controllers.specs import ActionSpec, Manifest, TdMpcArchitecture
from nncontrol_prune.plants.batch import PlantBatch
from nncontrol_prune.plants.conditions import PUSH_INTERVAL, Conditions

WIDTH = 64
"""Plants that are stepped together."""
FIRST_LENGTH = 1024
"""Steps there is room for at first."""


@dataclass(frozen=True)
class Trajectory:
    """One episode.

    Attributes:
        seed: Of its start.
        observations: What there was to observe before each step, and at the end, without noise, (steps + 1, n).
        actions: What the plant was commanded, (steps, m).
        rewards: (steps,).
        terminated: Whether it ended for good, and not because its time was over; so it does, too, where an observation
            holds NaN or infinity.
        faults: Actions that held NaN or infinity, and were replaced by the safe command.
    """

    seed: int
    observations: NDArray[np.float64]
    actions: NDArray[np.float64]
    rewards: NDArray[np.float64]
    terminated: bool
    faults: int


def run_closed_loop(
    policy: Policy,
    manifest: Manifest,
    plants: PlantBatch,
    seeds: Sequence[int],
    conditions: Conditions | None = None,
) -> Iterator[Trajectory]:
    """Run one episode for each seed, and yield them as they end.

    Args:
        policy: The deployed policy.
        manifest: The controller's.
        plants: WIDTH plants, or as many as there are seeds.
        seeds: Seeds of the episodes' starts.
        conditions: What is different from the environment as it is. Noise and pushes follow from the seed, so they are
            the same for two controllers.
    """
    loop = _Loop(policy, manifest, plants, min(WIDTH, len(seeds)), conditions or Conditions())
    waiting = list(reversed(seeds))
    for plant in range(loop.width):
        loop.start(plant, waiting.pop())
    running = np.arange(loop.width)
    while len(running):
        for plant in loop.tick(running):
            yield loop.trajectory(plant)
            if waiting:
                loop.start(plant, waiting.pop())
            else:
                running = running[running != plant]


class _Loop:
    """Plants in their episodes, and what has happened in these."""

    def __init__(
        self, policy: Policy, manifest: Manifest, plants: PlantBatch, width: int, conditions: Conditions
    ) -> None:
        self.width = width
        self._policy, self._plants, self._delay = policy, plants, conditions.delay
        self._noise, self._push = np.array(conditions.noise), conditions.push
        self._start_of = conditions.start
        self._push_ticks = max(1, round(PUSH_INTERVAL * manifest.rate))
        self._chance = [np.random.default_rng(0)] * width
        self._limits = BatchLimits(manifest.action)
        architecture, actions = manifest.architecture, manifest.action.size
        horizon = architecture.planner.horizon if isinstance(architecture, TdMpcArchitecture) else 0
        self._plans = np.zeros((width, horizon, actions), dtype=np.float32)
        self._on_the_way = np.zeros((width, conditions.delay, actions))
        self._seeds = [0] * width
        self._steps = np.zeros(width, dtype=int)
        self._faults = np.zeros(width, dtype=int)
        self._terminated = np.zeros(width, dtype=bool)
        self._observations = np.zeros((width, FIRST_LENGTH, manifest.observation.size))
        self._actions = np.zeros((width, FIRST_LENGTH, actions))
        self._rewards = np.zeros((width, FIRST_LENGTH))

    def start(self, plant: int, seed: int) -> None:
        self._seeds[plant] = seed
        self._chance[plant] = np.random.default_rng([seed, 1])  # not the stream that the start is drawn from
        self._steps[plant] = self._faults[plant] = 0
        self._plans[plant] = 0.0
        self._on_the_way[plant] = self._limits.safe_command
        self._observations[plant, 0] = self._plants.reset(plant, seed, self._start_of(seed))

    def tick(self, running: NDArray[np.intp]) -> list[int]:
        """Run one tick of the plants of these numbers; return those whose episode is over."""
        steps = self._steps[running]
        if self._push:
            for plant in running[steps % self._push_ticks == self._push_ticks // 2]:
                self._plants.push(int(plant), self._push, self._chance[plant])
        before = self._observations[running, steps]
        actions = self._act(running, before + self._disturbance(running))
        self._faults[running] += self._limits.apply(actions)
        if self._delay:
            arrived = self._on_the_way[running, 0]
            self._on_the_way[running] = np.concatenate([self._on_the_way[running, 1:], actions[:, None]], axis=1)
            actions = arrived
        done = self._plants.step(running, actions)
        if steps.max() + 1 >= self._observations.shape[1]:
            self._make_room()
        self._actions[running, steps] = actions
        # A plant of which nothing can be observed any more has come to its end; the last that could stands for it.
        broken = np.asarray(~np.isfinite(done.observations).all(axis=1))
        self._rewards[running, steps] = np.where(broken & ~np.isfinite(done.rewards), 0.0, done.rewards)
        self._observations[running, steps + 1] = np.where(broken[:, None], before, done.observations)
        self._steps[running] += 1
        self._terminated[running] = done.terminated | broken
        ended: list[int] = running[done.terminated | broken | done.truncated].tolist()
        return ended

    def trajectory(self, plant: int) -> Trajectory:
        """Return the episode that a plant is in."""
        steps = self._steps[plant]
        return Trajectory(
            seed=self._seeds[plant],
            observations=self._observations[plant, : steps + 1].copy(),
            actions=self._actions[plant, :steps].copy(),
            rewards=self._rewards[plant, :steps].copy(),
            terminated=bool(self._terminated[plant]),
            faults=int(self._faults[plant]),
        )

    def _act(self, running: NDArray[np.intp], observations: NDArray[np.float64]) -> NDArray[np.float64]:
        if isinstance(self._policy, PlannerPolicy):
            actions, plans = self._policy.batch_from(observations.astype(np.float32), self._plans[running])
            # As PlannerPolicy.advance does: a plan that an observation spoilt is no start of the next one.
            plans[~np.isfinite(plans).all(axis=(1, 2))] = 0.0
            self._plans[running] = plans
        else:
            actions = self._policy.batch(observations)
        return actions.astype(np.float64)

    def _disturbance(self, running: NDArray[np.intp]) -> NDArray[np.float64] | float:
        if not len(self._noise):
            return 0.0
        return np.stack([self._noise * self._chance[plant].standard_normal(len(self._noise)) for plant in running])

    def _make_room(self) -> None:
        self._observations, self._actions, self._rewards = (
            np.concatenate([values, np.zeros_like(values)], axis=1)
            for values in (self._observations, self._actions, self._rewards)
        )


class BatchLimits:
    """What `ActionLimits` does, for many actions at once.

    Args:
        action: The action spec, with its limits.
    """

    def __init__(self, action: ActionSpec) -> None:
        self._lower, self._upper = np.asarray(action.lower), np.asarray(action.upper)
        self.safe_command = np.clip(np.zeros(action.size), self._lower, self._upper)

    def apply(self, actions: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Clip actions (k, m) to the limits, in place; return which (k,) were replaced for NaN or infinity."""
        faulty = np.asarray(~np.isfinite(actions).all(axis=1))
        actions[faulty] = self.safe_command
        np.clip(actions, self._lower, self._upper, out=actions)
        return faulty
