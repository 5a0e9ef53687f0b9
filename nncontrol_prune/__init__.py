"""Prune neural-network controllers from the rollouts of a live loop, and swap them in without missing a tick."""

__version__ = "0.1.0"
