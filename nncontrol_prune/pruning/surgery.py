"""Surgery: channels leave the module for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nncontrol_prune.pruning.copying import copied
from nncontrol_prune.pruning.groups import CHANNEL_NORMS, LINEAR, TRANSPOSED, Group, leaving_entries, weighted_norms

Module = TypeVar("Module", bound=nn.Module)


def most_important(scores: Sequence[Tensor], kept: Sequence[int]) -> list[Tensor]:
    """Return, by group, the sorted indices of the `kept[g]` channels with the highest scores."""
    return [
        torch.sort(torch.argsort(score, descending=True, stable=True)[:count]).values
        for score, count in zip(scores, kept, strict=True)
    ]


def remove_channels(module: Module, groups: Sequence[Group], keep: Sequence[Tensor]) -> Module:
    """Return a copy of a module that has only the channels to keep, physically smaller.

    Args:
        module: The dense network.
        groups: Its groups.
        keep: Sorted indices of the channels that stay, by group.
    """
    return with_entries(module, leaving_entries(groups, keep), {})


def with_entries(
    module: Module, leaving: Mapping[tuple[str, int], Tensor], repeated: Mapping[tuple[str, int], Tensor]
) -> Module:
    """Return a copy of a module with other entries along dimensions of its tensors.

    Args:
        module: The network.
        leaving: Indices of the entries that leave, by (tensor, dimension).
        repeated: Indices of those that are there once more, behind all others.
    """
    changed = copied(module)
    with weighted_norms(changed):
        tensors = {**dict(changed.named_parameters()), **dict(changed.named_buffers())}
        replacements: dict[int, Tensor] = {}
        for name, dim in {**leaving, **repeated}:
            tensor = replacements.get(id(tensors[name]), tensors[name]).detach()
            stays = torch.ones(tensor.shape[dim], dtype=torch.bool)
            stays[leaving.get((name, dim), [])] = False
            entries = torch.cat([torch.nonzero(stays)[:, 0], repeated.get((name, dim), torch.empty(0)).long()])
            replacements[id(tensors[name])] = tensor.index_select(dim, entries).contiguous()
        _replace(changed, replacements)
    return changed


def _replace(module: nn.Module, replacements: dict[int, Tensor]) -> None:
    """Put tensors in the places of others, which they go by the identity of, and make the layers know of it."""
    for submodule in module.modules():
        # By identity and not by name, so that a tensor that two modules share stays shared.
        for name, parameter in submodule.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in replacements:
                replacement = replacements[id(parameter)]
                if not isinstance(replacement, nn.Parameter):
                    replacement = nn.Parameter(replacement, requires_grad=parameter.requires_grad)
                    replacements[id(parameter)] = replacement
                setattr(submodule, name, replacement)
        for name, buffer in submodule.named_buffers(recurse=False, remove_duplicate=False):
            if id(buffer) in replacements:
                setattr(submodule, name, replacements[id(buffer)])
        _correct_sizes(submodule)


def _correct_sizes(module: nn.Module) -> None:
    """Make the sizes that a layer remembers those that its tensors have."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, (*LINEAR, *TRANSPOSED)):
        groups: Any = module.groups
        if groups > 1:
            if groups == module.in_channels == module.out_channels:  # depthwise; others stay
                module.groups = module.in_channels = module.out_channels = weight.shape[0]
        elif isinstance(module, TRANSPOSED):
            module.in_channels, module.out_channels = weight.shape[:2]
        else:
            module.out_channels, module.in_channels = weight.shape[:2]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, CHANNEL_NORMS):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = max(1, module.num_groups * weight.shape[0] // module.num_channels)
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.Unflatten) and not isinstance(module.dim, str):
        module.unflattened_size = _freed(module.unflattened_size)


def _freed(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return sizes to unflatten to with the first that is not one left open: it is the channels that lead."""
    first = next((place for place, size in enumerate(sizes) if size != 1), None)
    return tuple(sizes) if first is None or -1 in sizes else (*sizes[:first], -1, *sizes[first + 1 :])
