"""What is pruned: a network with its components and a way to run it on rows of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import torch
from torch import Tensor

from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.groups import Components, Group, NothingToPrune, find_groups, kept_channels
from nncontrol_prune.pruning.surgery import Module
from nncontrol_prune.pruning.unused import unused_parts

Batch = Mapping[str, Tensor]
"""Named tensors of as many rows each; the row is the first dimension."""
Outputs = Mapping[str, Tensor]
"""Named outputs of a run, a row for each row of the batch."""
Run = Callable[[Any, Batch], Outputs]
"""Runs a network on a batch. In every layer to be fitted the first dimension has to be the row, or as many items for
each row, one row's behind the other's."""

TRACED_ROWS = 4


@dataclass(frozen=True)
class Network(Generic[Module]):
    """A network to be pruned.

    Attributes:
        module: The dense network.
        components: Names of the modules of each component.
        run: Runs it on a batch.
        ties: Groups, by name, that keep as many channels as each other, such as those of an ensemble's members.
        keep: Groups, by name, that keep all their channels.
        contrasts: Whether the positions of a row, in layers that have (rows, positions, channels), are alternatives
            to each other: reconstruction then fits how they differ as well as how rows do.
        once: Cuts a batch to what runs every layer once. Layers are fitted to their first call, so what a network does
            with its own predictions need not be computed for that.
    """

    module: Module
    components: Components
    run: Run
    ties: Sequence[Sequence[str]] = field(default=())
    keep: Sequence[str] = field(default=())
    contrasts: bool = False
    once: Callable[[Batch], Batch] = lambda batch: batch

    def groups(self, batch: Batch) -> list[Group]:
        """Find the groups that may lose channels, by a trace over the first rows of a batch.

        Raises:
            PruningError: See `find_groups`; or of those to keep there is no such group, or they are all.
        """
        groups = find_groups(self.module, self.components, self._run_few(batch))
        names = [group.name for group in groups]
        for name in self.keep:
            if name not in names:
                raise PruningError(f"keep names the group {name!r}; there are {', '.join(names)}")
        left = [group for group in groups if group.name not in self.keep]
        if not left:
            raise NothingToPrune(f"there is nothing to prune: keep names all groups, {', '.join(names)}")
        return left

    def kept_channels(self, batch: Batch, *, needlessly: bool) -> list[str]:
        """Return which channels stay and why; see `groups.kept_channels`."""
        return kept_channels(self.module, self._run_few(batch), needlessly=needlessly)

    def unused_parts(self, batch: Batch) -> list[str]:
        """Return which parts the run does not use; see unused.py."""
        return unused_parts(self.module, self._run_few(batch))

    def _run_few(self, batch: Batch) -> Callable[[Any], dict[str, Tensor]]:
        few = take(batch, torch.arange(min(TRACED_ROWS, rows_of(batch))))

        def run(module: Any) -> dict[str, Tensor]:
            try:
                return dict(self.run(module, few))
            except PruningError:
                raise
            except Exception as error:
                raise PruningError(
                    f"the network fails where it is traced, on {rows_of(few)} rows of the data, with "
                    f"{type(error).__name__}: {error}; it has to take any number of rows, and all at once, "
                    "not under torch.vmap"
                ) from error

        return run

    def tied(self, groups: Sequence[Group]) -> list[list[int]]:
        """Return the groups' indices, those that are tied together; ties that share a group are one.

        Raises:
            PruningError: A tie names no group, one that there is not, or groups of different numbers of channels.
        """
        index = {group.name: number for number, group in enumerate(groups)}
        tied: list[list[int]] = []
        for number, names in enumerate(self.ties):
            if not names:
                raise PruningError(f"ties[{number}] names no group; allowed are {', '.join(index)}")
            for name in names:
                if name not in index:
                    raise PruningError(f"a tie names the group {name!r}; there are {', '.join(index)}")
            members = list(dict.fromkeys(index[name] for name in names))
            if len({groups[member].channels for member in members}) > 1:
                raise PruningError(f"groups of different numbers of channels cannot be tied: {', '.join(names)}")
            for other in [other for other in tied if not set(other).isdisjoint(members)]:
                tied.remove(other)
                members = list(dict.fromkeys([*other, *members]))
            tied.append(members)
        taken = {member for members in tied for member in members}
        return sorted([*tied, *([number] for number in range(len(groups)) if number not in taken)])


def rows_of(batch: Batch) -> int:
    """Return the number of rows of a batch."""
    return len(next(iter(batch.values())))


def take(batch: Batch, rows: Tensor) -> dict[str, Tensor]:
    """Return some rows of a batch."""
    return {name: tensor[rows] for name, tensor in batch.items()}


def finite_rows(batch: Batch) -> Tensor:
    """Return the numbers of the rows that hold neither NaN nor infinity."""
    finite = [torch.isfinite(values).unsqueeze(-1).flatten(1).all(dim=1) for values in batch.values()]
    return torch.nonzero(torch.stack(finite).all(dim=0))[:, 0]


def joined(first: Batch, second: Batch) -> dict[str, Tensor]:
    """Return the rows of one batch and then those of another."""
    return {name: torch.cat([tensor, second[name]]) for name, tensor in first.items()}


def spread_rows(rows: int, limit: int) -> Tensor:
    """Return at most `limit` row numbers, evenly spread."""
    return torch.linspace(0, rows - 1, min(rows, limit)).round().long()
