"""Plants: gymnasium MuJoCo environments, and the live simulated plant."""

CARTPOLE = "nncontrol_prune/CartPoleSwingUp-v0"
"""Our own environment; importing `plants.environments` registers it with gymnasium."""
