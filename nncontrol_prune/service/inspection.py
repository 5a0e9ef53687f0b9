"""What is in a bundle or a bag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.rollouts.joining import stretches
from nncontrol_prune.rollouts.reader import read_rollouts


def inspect_groups(bundle: Bundle) -> list[dict[str, Any]]:
    """Return a controller's prunable groups: components, kind, channels, and parameters a channel costs."""
    from nncontrol_prune.pruning.architectures import recipe_for, sample_batch
    from nncontrol_prune.pruning.groups import NothingToPrune, describe

    recipe = recipe_for(bundle.module())
    try:
        groups = recipe.network.groups(sample_batch(recipe, bundle.reference_observations, bundle.manifest.action.size))
    except NothingToPrune:
        return []  # a network without hidden layers is a controller too
    return list(describe(groups, recipe.network.module))


def inspect_rollouts(path: Path) -> dict[str, Any]:
    """Return what bags hold: transitions, episodes, controllers, returns, and what is wrong with them."""
    rollouts = read_rollouts(path)
    summary: dict[str, Any] = {
        "transitions": len(rollouts.stamp),
        "observation size": rollouts.observation.shape[1],
        "action size": rollouts.action.shape[1],
        "duration [s]": round(sum(float(np.ptp(rollouts.stamp[rows])) for rows in stretches(rollouts.episode)), 3),
        "controllers": rollouts.controllers,
        "episodes": len(rollouts.episodes),
        "digest": rollouts.digest,
    }
    if rollouts.has_rewards:
        returns = [float(np.nansum(rollouts.reward[rollouts.episode == e])) for e in rollouts.episodes]
        summary["returns"] = [round(value, 2) for value in returns]
    if rollouts.warnings:
        summary["warnings"] = rollouts.warnings
    return summary
