"""Rows that a pruned network meets where it is used, by a function of the user's, checked against the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nncontrol_prune.pruning.copying import copied
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.network import Batch

Observe = Callable[[Any], Tensor | Batch]
"""Runs a network where it is used and returns the rows that it met: a tensor, or named ones as the data are."""


def rows_met(observe: Observe, data: Batch, module: Any) -> Batch:
    """Return rows that a network meets.

    Args:
        observe: Runs a copy of the network.
        data: The rows that pruning began with.
        module: The network.

    Raises:
        PruningError: What is met is not like the data.
    """
    with torch.no_grad():
        found: Any = observe(copied(module).eval())
    if isinstance(found, Tensor) and len(data) == 1:
        found = {next(iter(data)): found}
    if not isinstance(found, Mapping) or set(found) != set(data):
        raise _refused(
            f"the names {', '.join(map(str, found))}" if isinstance(found, Mapping) else type(found).__name__, data
        )
    for name, values in data.items():
        if (difference := _difference(values, found[name])) is not None:
            raise _refused(f"{difference} for {name!r}", data)
    rows = {name: found[name].detach().to(values.dtype) for name, values in data.items()}
    counts = [len(values) for values in rows.values()]
    if len(set(counts)) > 1:
        raise _refused(f"as many rows as {counts}", data)
    return rows


def _difference(values: Tensor, found: Any) -> str | None:
    """Return what rows are that are not like the data's; None if they are."""
    if not isinstance(found, Tensor):
        return type(found).__name__
    if not found.dim() or found.shape[1:] != values.shape[1:]:
        return str(tuple(found.shape))
    dense = found.layout == torch.strided and not found.is_meta
    return None if dense and torch.can_cast(found.dtype, values.dtype) else f"a tensor of the type {found.type()}"


def _refused(what: str, data: Batch) -> PruningError:
    like = (
        f"{name} (rows{''.join(f', {size}' for size in rows.shape[1:])}), {rows.dtype}" for name, rows in data.items()
    )
    return PruningError(f"observe returned {what}; it has to return rows like the data's, {', '.join(like)}")
