"""What is in a bundle or a bag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.rollouts.reader import read_rollouts


def inspect_groups(bundle: Bundle) -> list[dict[str, Any]]:
    """Return a controller's prunable groups: components, kind, channels, and parameters a channel costs."""
    import torch

    from nncontrol_prune.pruning.errors import PruningError
    from nncontrol_prune.pruning.groups import find_groups

    module = bundle.module()
    try:
        groups = find_groups(module, module.components(), torch.from_numpy(bundle.reference_observations[:8]))
    except PruningError:
        return []  # a network without hidden layers is a controller too, it only has nothing to prune
    return [
        {
            "name": group.name,
            "components": group.components,
            "kind": group.kind,
            "channels": group.channels,
            "parameters_per_channel": group.parameters_per_channel(module),
        }
        for group in groups
    ]


def inspect_rollouts(path: Path) -> dict[str, Any]:
    """Return what bags hold: transitions, episodes, controllers, returns, and what is wrong with them."""
    rollouts = read_rollouts(path)
    summary: dict[str, Any] = {
        "transitions": len(rollouts.stamp),
        "observation size": rollouts.observation.shape[1],
        "action size": rollouts.action.shape[1],
        "duration [s]": round(float(np.ptp(rollouts.stamp)), 3),
        "controllers": rollouts.controllers,
        "episodes": len(np.unique(rollouts.episode)),
        "digest": rollouts.digest,
    }
    if rollouts.has_rewards:
        returns = [float(np.nansum(rollouts.reward[rollouts.episode == e])) for e in np.unique(rollouts.episode)]
        summary["returns"] = [round(value, 2) for value in returns]
    if rollouts.warnings:
        summary["warnings"] = rollouts.warnings
    return summary
