"""Surgery: channels leave the module for good."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch_pruning
from torch import Tensor, nn

from nncontrol_prune.pruning.groups import Group

Module = TypeVar("Module", bound=nn.Module)


def most_important(scores: Sequence[Tensor], kept: Sequence[int]) -> list[Tensor]:
    """Return, by group, the sorted indices of the `kept[g]` channels with the highest scores."""
    return [
        torch.sort(torch.argsort(score, descending=True, stable=True)[:count]).values
        for score, count in zip(scores, kept, strict=True)
    ]


def remove_channels(module: Module, groups: Sequence[Group], keep: Sequence[Tensor], observation: Tensor) -> Module:
    """Return a copy of a module that has only the channels to keep, physically smaller.

    Args:
        module: The dense network.
        groups: Its groups.
        keep: Sorted indices of the channels that stay, by group.
        observation: Observations (batch, n) for the forward pass that is traced.
    """
    pruned = copy.deepcopy(module)
    graph = torch_pruning.DependencyGraph().build_dependency(pruned, example_inputs=observation)
    for group, indices in zip(groups, keep, strict=True):
        leaving = sorted(set(range(group.channels)) - set(indices.tolist()))
        if leaving:
            producer = pruned.get_submodule(group.producers[0])
            graph.get_pruning_group(producer, torch_pruning.prune_linear_out_channels, idxs=leaving).prune()
    return pruned
