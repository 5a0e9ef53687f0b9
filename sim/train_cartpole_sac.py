"""Train the soft actor-critic actor that ships for the cart-pole, and save it as a Stable-Baselines3 zip.

    pip install stable-baselines3
    python sim/train_cartpole_sac.py --out cartpole_sac.zip
    nncontrol-prune import sb3 cartpole_sac.zip --env nncontrol_prune/CartPoleSwingUp-v0 \
        --name cartpole_swingup_sac --out sim/controllers/cartpole_swingup_sac
"""

from __future__ import annotations

import argparse

import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.monitor import Monitor

from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.environments import make_environment
from nncontrol_prune.plants.tasks import task_of
from nncontrol_prune.plants.training_starts import TrainingStarts


def successes(model: SAC, episodes: int, seed: int) -> int:
    """Count the episodes that end with the pole upright for the last two seconds."""
    env, task = make_environment(CARTPOLE), task_of(CARTPOLE)
    count = 0
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        last_fall, done, step = 0, False, 0
        while not done:
            action, _ = model.predict(observation, deterministic=True)
            observation, _, terminated, truncated, _ = env.step(action)
            step += 1
            done = terminated or truncated
            if not task.at_goal(observation):
                last_fall = step
        count += last_fall <= 800
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="cartpole_sac.zip")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    env = Monitor(TrainingStarts(make_environment(CARTPOLE), arguments.seed))
    evaluation = Monitor(make_environment(CARTPOLE))
    model = SAC("MlpPolicy", env, gamma=0.99, learning_starts=2_000, seed=arguments.seed, verbose=0)
    best = arguments.out.removesuffix(".zip") + "_best"
    callback = EvalCallback(evaluation, best_model_save_path=best, eval_freq=5_000, n_eval_episodes=5)
    model.learn(arguments.steps, callback=callback)
    model = SAC.load(f"{best}/best_model.zip")
    model.save(arguments.out)
    print(f"{successes(model, 50, 10_000)} of 50 starts end balanced")


if __name__ == "__main__":
    main()
