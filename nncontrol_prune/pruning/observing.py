"""Rows that a pruned network meets where it is used, by a function of the user's, checked against the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nncontrol_prune.pruning.copying import copied
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.network import Batch, finite_rows

Observe = Callable[[Any], Tensor | Batch]
"""Runs a network where it is used and returns the rows that it met: a tensor, or named ones as the data are."""


class Observer:
    """Returns the rows that a network meets, and remembers how often there was none to learn from.

    When called with a network, it raises `PruningError` where what is met is not like the data.

    Args:
        observe: Runs a copy of the network.
        data: The rows that pruning began with.
    """

    def __init__(self, observe: Observe, data: Batch) -> None:
        self._observe = observe
        self._data = data
        self._runs = self._in_vain = 0

    def __call__(self, module: Any) -> Batch:
        with torch.no_grad():
            found: Any = self._observe(copied(module).eval())
        rows = _checked(found, self._data)
        self._runs += 1
        self._in_vain += not len(finite_rows(rows))
        return rows

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of what was met, as sentences."""
        if not self._in_vain:
            return ()
        return (
            f"in {self._in_vain} of {self._runs} calls observe returned no row that is finite, and nothing was learned "
            "from those",
        )


def _checked(found: Any, data: Batch) -> Batch:
    """Return what was met as named rows of the data's types.

    Raises:
        PruningError: It is not like the data.
    """
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
    if found.device.type not in ("cpu", "meta"):
        return f"a tensor on the device {found.device}"
    dense = found.layout == torch.strided and not found.is_meta
    return None if dense and torch.can_cast(found.dtype, values.dtype) else f"a tensor of the type {found.type()}"


def _refused(what: str, data: Batch) -> PruningError:
    like = (
        f"{name} (rows{''.join(f', {size}' for size in rows.shape[1:])}), {rows.dtype}" for name, rows in data.items()
    )
    return PruningError(f"observe returned {what}; it has to return rows like the data's, {', '.join(like)}")
