"""Train the actors that the comparison of pruners starts from, with Stable-Baselines3, and import them as bundles.

    pip install 'nncontrol_prune[train]'
    python benchmarks/train_actors.py                    # all of them, hours; those that exist are left alone
    python benchmarks/train_actors.py halfcheetah_sac    # one

Of what was trained the checkpoint with the best return in 10 episodes is kept, the last of those that are as good.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

CONTROLLERS = Path(__file__).resolve().parent / "controllers"
EVALUATIONS = 30
EVALUATION_EPISODES = 10


@dataclass(frozen=True)
class Recipe:
    """How one actor is trained: environment, steps, algorithm and its settings."""

    environment: str
    steps: int
    algorithm: Callable[..., Any]
    settings: dict[str, Any] = field(default_factory=dict)
    environments: int = 1
    normalized: bool = False


# Half as many updates as steps: in the same time that sees more of what matters on two cores.
OFF_POLICY = {"learning_starts": 10_000, "batch_size": 256, "train_freq": 32, "gradient_steps": 16}
RECIPES = {
    "double_pendulum_sac": Recipe("InvertedDoublePendulum-v5", 60_000, SAC, {"learning_starts": 1_000}),
    "walker2d_ppo": Recipe(
        "Walker2d-v5",
        2_000_000,
        PPO,
        {
            "n_steps": 512,
            "batch_size": 256,
            "n_epochs": 10,
            "learning_rate": 3e-4,
            "clip_range": 0.2,
            "policy_kwargs": {"net_arch": [256, 256], "log_std_init": -1.0},
        },
        environments=8,
        normalized=True,
    ),
    "hopper_td3": Recipe(
        "Hopper-v5",
        333_330,
        TD3,
        {
            **OFF_POLICY,
            "batch_size": 100,
            "action_noise": NormalActionNoise(np.zeros(3), np.full(3, 0.1)),
            "policy_kwargs": {"net_arch": [256, 256]},
        },
    ),
    "halfcheetah_sac": Recipe("HalfCheetah-v5", 150_000, SAC, OFF_POLICY),
}


class KeepBest(BaseCallback):
    """Saves the model whenever it does better than before in episodes of its own, with its normalization."""

    def __init__(self, evaluation: VecEnv, every: int, path: Path) -> None:
        super().__init__()
        self._evaluation = evaluation
        self._every = every
        self._path = path
        self._best = -float("inf")
        self._started = time.monotonic()

    def _on_step(self) -> bool:
        if self.n_calls % self._every:
            return True
        if isinstance(self._evaluation, VecNormalize):
            sync_envs_normalization(self.training_env, self._evaluation)
        mean, _ = evaluate_policy(self.model, self._evaluation, EVALUATION_EPISODES, warn=False)
        minutes = (time.monotonic() - self._started) / 60
        print(f"{self._path.name}: {self.num_timesteps} steps, {minutes:.0f} min, return {mean:.0f}", flush=True)
        if float(mean) >= self._best:
            self._best = float(mean)
            self.model.save(self._path.with_suffix(".zip"))
            if isinstance(self._evaluation, VecNormalize):
                self._evaluation.save(str(self._path.with_suffix(".pkl")))
        return True


def train(name: str, recipe: Recipe, seed: int, directory: Path) -> Path:
    """Train one actor and return the path of its zip; its normalization lies beside it as .pkl."""
    environment: Any = make_vec_env(recipe.environment, recipe.environments, seed=seed)
    evaluation: Any = make_vec_env(recipe.environment, 1, seed=seed + 1_000)
    if recipe.normalized:
        environment = VecNormalize(environment)
        evaluation = VecNormalize(evaluation, training=False, norm_reward=False)
    model = recipe.algorithm("MlpPolicy", environment, seed=seed, device="cpu", **recipe.settings)
    every = recipe.steps // recipe.environments // EVALUATIONS
    model.learn(recipe.steps, callback=KeepBest(evaluation, every, directory / name))
    return (directory / name).with_suffix(".zip")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[], help=f"of {', '.join(RECIPES)}; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoints", type=Path, default=Path("out/training"))
    parser.add_argument("--out", type=Path, default=CONTROLLERS)
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(RECIPES)
    if unknown:
        parser.error(f"there is no actor {', '.join(sorted(unknown))}; there are {', '.join(RECIPES)}")
    torch.set_num_threads(1)
    arguments.checkpoints.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or RECIPES:
        recipe = RECIPES[name]
        bundle = arguments.out / name
        if bundle.exists():
            print(f"{bundle} exists")
            continue
        checkpoint = train(name, recipe, arguments.seed, arguments.checkpoints)
        command = [sys.executable, "-m", "nncontrol_prune.cli", "import", "sb3", str(checkpoint)]
        command += ["--env", recipe.environment, "--name", name, "--out", str(bundle)]
        if recipe.normalized:
            command += ["--vecnormalize", str(checkpoint.with_suffix(".pkl"))]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
