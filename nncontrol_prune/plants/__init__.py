"""Plants: gymnasium MuJoCo environments, and the live simulated plant."""

import gymnasium

CARTPOLE = "nncontrol_prune/CartPoleSwingUp-v0"

if CARTPOLE not in gymnasium.registry:
    gymnasium.register(
        id=CARTPOLE,
        entry_point="nncontrol_prune.plants.cartpole:CartPoleSwingUpEnv",
        max_episode_steps=1000,
    )
