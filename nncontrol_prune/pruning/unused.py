"""Unused parts: parameters that are there, and that no forward pass takes; no channel of theirs can leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nncontrol_prune.pruning.calls import TakenTensors
from nncontrol_prune.pruning.tracing import without_fast_path


def unused_parts(module: nn.Module, run: Callable[[nn.Module], Any]) -> list[str]:
    """Return which parts of a module hold parameters that no operation of its forward pass takes, a sentence each.

    Args:
        module: The network.
        run: See `groups.find_groups`.
    """
    with torch.no_grad(), without_fast_path(), TakenTensors() as taken:
        run(module)
    parts: dict[str, int] = {}
    for name, part in (*module.named_modules(), *module.named_parameters()):
        parameters = [part] if isinstance(part, Tensor) else list(part.parameters())
        unused = parameters and not any(id(parameter) in taken.ids for parameter in parameters)
        if unused and not any(name.startswith(f"{whole}.") for whole in parts):
            parts[name] = sum(parameter.numel() for parameter in parameters)
    return [f"{name} ({count:,} parameters) is not used by the forward pass" for name, count in parts.items()]
