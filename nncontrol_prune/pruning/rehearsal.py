"""Rehearsal: whether a network can lose channels as the trace says, before anything takes long.

A trace sees values and not where they come from: a size that is written into the forward pass as a number looks like
one that is taken from a tensor, and stays what it is when channels leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.groups import Group, find_groups
from nncontrol_prune.pruning.network import TRACED_ROWS, Batch, Network, rows_of, take
from nncontrol_prune.pruning.surgery import remove_channels


def rehearse(network: Network[Any], batch: Batch) -> None:
    """Take a channel from every group, and check that the network runs and has the same groups as before.

    Raises:
        PruningError: It does not; the message names a group that it does not without.
    """
    groups = network.groups(batch)
    # Where one of two channels leaves, the other broadcasts and is no channel any more, which is nobody's mistake.
    able = [group for group in groups if group.channels > max(group.fewest, 2)]
    try:
        _check_without(network, groups, able, batch)
    except PruningError:
        for group in able:
            _check_without(network, groups, [group], batch)
        raise


def _check_without(network: Network[Any], groups: Sequence[Group], less: Sequence[Group], batch: Batch) -> None:
    keep = [torch.arange(group.channels - (group in less)) for group in groups]
    smaller = remove_channels(network.module, groups, keep)
    few = take(batch, torch.arange(min(TRACED_ROWS, rows_of(batch))))
    who = f"without one of the channels of {', '.join(f'{group.name} ({group.channels})' for group in less)}"
    try:
        found = find_groups(smaller, network.components, lambda module: dict(network.run(module, few)))
    except Exception as error:
        raise PruningError(
            f"{who} the network fails with {type(error).__name__}: {error}; if a size is written into its forward pass "
            "as a number, write -1 or take it from a tensor's shape"
        ) from error
    if not {group.places for group in less} <= {group.places for group in found}:
        raise PruningError(
            f"{who} the network divides the others into other parts than before; if the number of parts is written "
            "into its forward pass, write their size instead and -1 for the number"
        )
