"""What pruning is for: a planner that the dense TD-MPC agent cannot afford at the loop's rate, and the pruned one can.

    python benchmarks/tdmpc_rescue.py PRUNED                       # a bundle pruned from cartpole_swingup_tdmpc
    python benchmarks/tdmpc_rescue.py PRUNED --rate 100 --samples 128 --iterations 4

Both agents get the same larger planner and drive the cart-pole at the same rate, a divisor of its 100 Hz. A plan that
is not ready by the next tick is sent in the first tick after that, and until then the plant holds the command before,
as in the live loop. Times are those that this machine takes for each plan, one thread, in turns of one episode each; a
third row is the dense agent if time stood still while it plans.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from pathlib import Path

import numpy as np

from nncontrol_prune.controllers.bundle import Bundle, load_bundle, make_bundle
from nncontrol_prune.controllers.limits import ActionLimits
from nncontrol_prune.controllers.specs import PlannerSpec
from nncontrol_prune.controllers.tdmpc import TdMpc
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.environments import make_environment
from nncontrol_prune.plants.tasks import task_of
from nncontrol_prune.resources import shipped_controllers

FIRST_SEED = 40_000


@dataclasses.dataclass
class Result:
    """Of one agent: the seconds of each plan, and the return and success of each episode."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    returns: list[float] = dataclasses.field(default_factory=list)
    balanced: int = 0


def with_planner(bundle: Bundle, planner: PlannerSpec) -> Bundle:
    """Return the same networks with another planner."""
    manifest, dense = bundle.manifest, bundle.module()
    architecture = manifest.architecture.model_copy(update={"planner": planner})
    module = TdMpc.for_action(architecture, manifest.observation.size, manifest.action)
    module.load_state_dict(dense.state_dict())
    return make_bundle(
        module.eval(),
        name=manifest.name,
        observation=manifest.observation,
        action=manifest.action,
        rate=manifest.rate,
        environment=manifest.environment,
        reference_observations=bundle.reference_observations,
    )


def run_episode(bundle: Bundle, seed: int, result: Result, *, steps: int, waits: bool) -> None:
    """Run one episode with so many steps of the plant a tick; with `waits` the plant waits for every plan."""
    env, task = make_environment(CARTPOLE), task_of(CARTPOLE)
    period, limits = 1.0 / bundle.manifest.rate, ActionLimits(bundle.manifest.action)
    observation, _ = env.reset(seed=seed)
    bundle.policy.reset()
    held, planned = np.zeros(1), np.zeros(1)
    ready_in, fallen, total, step, done = 0, 0, 0.0, 0, False
    while not done:
        if ready_in == 0:
            start = time.perf_counter()
            bundle.policy.act(observation, planned)
            seconds = time.perf_counter() - start
            bundle.policy.advance()
            result.seconds.append(seconds)
            # Ready within the tick, it is sent at its end; otherwise some ticks later.
            ready_in = steps * (1 if waits else max(1, math.ceil(seconds / (steps * period))))
        ready_in -= 1
        if ready_in == 0:
            limits.apply(planned)
            held = planned.copy()
        observation, reward, terminated, truncated, _ = env.step(held)
        total, step, done = total + float(reward), step + 1, terminated or truncated
        if not task.at_goal(observation):
            fallen = step
    result.returns.append(total)
    result.balanced += fallen <= step - round(2.0 / period)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pruned", type=Path, help="bundle pruned from cartpole_swingup_tdmpc")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--rate", type=int, default=25, help="of the loop in Hz; 100 divided by a whole number")
    parser.add_argument("--horizon", type=int, default=3)
    parser.add_argument("--samples", type=int, default=488)
    parser.add_argument("--policy-samples", type=int, default=24)
    parser.add_argument("--elites", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=12)
    arguments = parser.parse_args()
    planner = PlannerSpec(
        horizon=arguments.horizon,
        samples=arguments.samples,
        policy_samples=arguments.policy_samples,
        elites=arguments.elites,
        iterations=arguments.iterations,
        max_std=0.5,
    )
    dense = with_planner(load_bundle(shipped_controllers()["cartpole_swingup_tdmpc"]), planner)
    pruned = with_planner(load_bundle(arguments.pruned), planner)
    agents = {"dense": (dense, False), "pruned": (pruned, False), "dense, time stands still": (dense, True)}
    steps, rest = divmod(round(dense.manifest.rate), arguments.rate)
    if rest:
        parser.error(f"--rate must divide {dense.manifest.rate:g} Hz, and {arguments.rate} does not")
    results = {name: Result() for name in agents}
    for episode in range(arguments.episodes):
        for name, (bundle, waits) in agents.items():
            run_episode(bundle, FIRST_SEED + episode, results[name], steps=steps, waits=waits)
        print(f"episode {episode + 1} of {arguments.episodes}", end="\r", flush=True)
    print(f"{planner}\n")
    print("| | parameters | plan, median (ms) | p99 (ms) | late | balanced | return |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, (bundle, _) in agents.items():
        result = results[name]
        seconds = np.array(result.seconds)
        error = np.std(result.returns, ddof=1) / math.sqrt(len(result.returns))
        print(
            f"| {name} | {bundle.manifest.parameters:,} | {1e3 * np.median(seconds):.1f} "
            f"| {1e3 * np.quantile(seconds, 0.99):.1f} | {np.mean(seconds > 1.0 / arguments.rate):.1%} "
            f"| {result.balanced} of {arguments.episodes} | {np.mean(result.returns):.0f} ± {error:.0f} |"
        )


if __name__ == "__main__":
    main()
