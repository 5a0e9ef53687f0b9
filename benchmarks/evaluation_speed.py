"""How fast the closed loop is evaluated: control steps a second on one core, against stepping MuJoCo alone.

    python benchmarks/evaluation_speed.py

Both step the same plants for as many control periods from the same starts, in turns. Alone means `mj_step` for all
substeps of a period, the commands written into `ctrl`, and nothing else: no policy, observation, reward or termination.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from nncontrol_prune.controllers.bundle import Bundle, load_bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.environments import make_environment
from nncontrol_prune.resources import shipped_controllers
from nncontrol_prune.validation.evaluation import run_episodes, trajectories

CONTROLLERS = Path(__file__).parent / "controllers"
EPISODES = 64
TURNS = 5


def main() -> None:
    subjects = {
        CARTPOLE: load_bundle(shipped_controllers()["cartpole_swingup_sac"]),
        "Walker2d-v5": load_bundle(CONTROLLERS / "walker2d_ppo"),
        "HalfCheetah-v5": load_bundle(CONTROLLERS / "halfcheetah_sac"),
    }
    print("| environment | closed loop, steps/s | MuJoCo alone, steps/s | share |")
    print("|---|---:|---:|---:|")
    for environment, bundle in subjects.items():
        rates = np.array([speeds(bundle, environment, turn) for turn in range(TURNS)])
        ours, alone = rates.max(axis=0)  # what other programs take only ever makes both slower
        print(f"| {environment} | {ours:,.0f} | {alone:,.0f} | {ours / alone:.0%} |", flush=True)


def speeds(bundle: Bundle, environment: str, turn: int) -> tuple[float, float]:
    """Return the control steps a second of the closed loop, and of MuJoCo alone."""
    seeds = range(EPISODES * turn, EPISODES * (turn + 1))
    start = time.perf_counter()
    steps = sum(episode.steps for episode in run_episodes(bundle, environment, seeds))
    ours = steps / (time.perf_counter() - start)
    actions = next(iter(trajectories(bundle, environment, seeds[:1]))).actions
    env = make_environment(environment)
    base: Any = env.unwrapped
    model, data, frames = base.model, base.data, base.frame_skip
    env.reset(seed=seeds[0])
    start = time.perf_counter()
    for _ in range(10):
        for action in actions:
            data.ctrl[:] = action
            mujoco.mj_step(model, data, frames)
    alone = 10 * len(actions) / (time.perf_counter() - start)
    env.close()
    return ours, alone


if __name__ == "__main__":
    main()
