"""Rehearsal: whether a network can lose channels as the trace says, before anything takes long.

A trace sees values and not where they come from: a size that is written into the forward pass as a number looks like
one that is taken from a tensor, and stays what it is when channels leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nncontrol_prune.pruning.conduct import check_conduct
from nncontrol_prune.pruning.errors import PruningError, Stuck, failing
from nncontrol_prune.pruning.groups import Group, find_groups
from nncontrol_prune.pruning.importance import inputs_of
from nncontrol_prune.pruning.network import TRACED_ROWS, Batch, Network, rows_of, spread_rows, take
from nncontrol_prune.pruning.surgery import with_entries
from nncontrol_prune.pruning.terms import Term


def rehearse(network: Network[Any], batch: Batch, terms: Sequence[Term] = ()) -> list[str]:
    """Take a channel from every group, or give one to a group of two, and check that the network has the same groups.

    Args:
        network: The dense network.
        batch: Rows of data.
        terms: What matters of the outputs; without, all of them do.

    Returns:
        What the user should know, as sentences: where a number in the forward pass follows how many channels there are,
        and what `check_conduct` has to tell.

    Raises:
        PruningError: It does not; the message names a group that it does not without. Or see `check_conduct`.
    """
    groups = network.groups(batch)
    warnings = check_conduct(network, groups, batch, terms)
    few = take(batch, spread_rows(rows_of(batch), TRACED_ROWS))
    _check_rows(network, groups, few)
    able = [group for group in groups if group.channels > group.fewest]
    try:
        other = _checked(network, able, few)
    except PruningError as error:
        if (named := _naming_groups(network, able, few)) is not None:
            raise named from error
        raise
    before = _numbers(network, network.module, few)
    if _numbers(network, other, few) == before:
        return warnings
    found = ((group, _numbers(network, _with_others(network.module, [group]), few)) for group in able)
    return warnings + [
        f"the forward pass takes how many channels {group.name} has ({group.channels}) for a number, which changes as "
        f"they leave ({_difference(before, numbers)}); if it is a scale, as of an attention, write down what it is now"
        for group, numbers in found
        if numbers != before
    ]


def _naming_groups(network: Network[Any], able: Sequence[Group], few: Batch) -> PruningError | None:
    """Return what is wrong with the first group that can lose no channel even alone; None if there is none."""
    wrong: dict[str, PruningError] = {}
    for group in able:
        try:
            _checked(network, [group], few)
        except PruningError as error:
            wrong[group.name] = error
    first = next(iter(wrong.values()), None)
    return first if first is None or len(wrong) == len(able) else Stuck(str(first), list(wrong))


def _check_rows(network: Network[Any], groups: Sequence[Group], few: Batch) -> None:
    """Check that the layers to be fitted take in an item for each row of the data, or as many for each, in their order.

    These have the row's weight.
    """
    rows = torch.arange(rows_of(few))
    # With one number of rows alone, positions might be as many; without another first row, items might be in any order.
    whole, fewer, altered = (
        _taken_in(network, groups, take(few, part)) for part in (rows, rows[1:], rows.clamp_min(1))
    )
    for name, calls in whole.items():
        for held, less, other in zip(calls, fewer[name], altered[name], strict=True):
            items = len(held) // len(rows)
            apart = items == 1 or torch.allclose(held[items:], other[items:], equal_nan=True)
            if not items or (len(held), len(less)) != (items * len(rows), items * (len(rows) - 1)) or not apart:
                raise PruningError(
                    f"the layer {name} takes in a tensor of shape {tuple(held.shape)} for {len(rows)} rows of data; "
                    "where a layer takes in what may leave, the first dimension has to be the row, as in (rows, "
                    "positions, channels), or what belongs to one row behind what belongs to another, as "
                    "frames.flatten(0, 1) has it of (rows, frames, ...)"
                )


@torch.no_grad()
def _taken_in(network: Network[Any], groups: Sequence[Group], batch: Batch) -> dict[str, list[Tensor]]:
    # Afterwards the generator is as it was, so that noise, if any, is the same for another batch of as many rows.
    with torch.random.fork_rng(devices=()), inputs_of(network.module, groups) as inputs:
        network.run(network.module, batch)
    return inputs


def _checked(network: Network[Any], groups: Sequence[Group], few: Batch) -> Any:
    other = _with_others(network.module, groups)
    named = {more: [f"{g.name} ({g.channels})" for g in groups if _gets_one_more(g) == more] for more in (False, True)}
    who = " and ".join(
        f"{how} {', '.join(named[more])}"
        for more, how in ((False, "without one of the channels of"), (True, "with a third channel in"))
        if named[more]
    )
    try:
        found = find_groups(other, network.components, lambda module: dict(network.run(module, few)))
    except PruningError as error:
        raise PruningError(f"{who} the network cannot be pruned: {error}") from error
    except Exception as error:
        raise failing(f"{who} the network", error) from error
    if not {group.places for group in groups} <= {group.places for group in found}:
        raise PruningError(
            f"{who} the network divides the others into other parts than before; if the number of parts is written "
            "into its forward pass, write their size instead and -1 for the number"
        )
    return other


def _with_others(module: Any, groups: Sequence[Group]) -> Any:
    """Return a copy of a module with the last channel of groups taken away, or there once more."""
    changes: dict[bool, dict[tuple[str, int], list[Tensor]]] = {False: {}, True: {}}
    for group in groups:
        for member in group.members:
            changes[_gets_one_more(group)].setdefault((member.tensor, member.dim), []).append(member.positions[-1])
    leaving, repeated = (
        {place: torch.cat(entries) for place, entries in changes[more].items()} for more in (False, True)
    )
    return with_entries(module, leaving, repeated)


def _gets_one_more(group: Group) -> bool:
    """Where one of two channels leaves, the other broadcasts and is no channel any more, which is nobody's mistake."""
    return group.channels == 2


@torch.no_grad()
def _numbers(network: Network[Any], module: Any, few: Batch) -> list[tuple[str, float]]:
    """Run a module, and return the numbers that its operations are given where they could take a tensor as well."""
    with _Numbers() as seen:
        network.run(module, few)
    return seen.found


def _difference(before: Sequence[tuple[str, float]], after: Sequence[tuple[str, float]]) -> str:
    """Describe the first number that is another one: an operation, and what it is given before and after."""
    pairs = zip(before, after, strict=False)
    return next(
        (f"{name}: {old:g}, then {new:g}" for (name, old), (_, new) in pairs if old != new), "one more or one less"
    )


class _Numbers(TorchDispatchMode):
    """Collects numbers by the operation that is given them; sizes, dimensions and the like are none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = [argument.name for argument in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        for argument in func._schema.arguments:
            value = given.get(argument.name)
            number = isinstance(value, float) or str(argument.type) in ("Tensor", "number")
            if number and isinstance(value, (int, float)):
                self.found.append((str(func), value))
        return func(*args, **(kwargs or {}))
