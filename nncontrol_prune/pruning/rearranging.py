"""What operations do to labels that give entries other places and compute nothing: views, parts, joins of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nncontrol_prune.pruning.coupling import FIXED, PARTS, Coupling, Labels, Row, Rule


def _view(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    source: Tensor = args[0]
    coupling.label(result, reshaped(coupling, source.shape, coupling.labels(source), result.shape))


def reshaped(coupling: Coupling, before: Sequence[int], labels: Labels, after: Sequence[int]) -> Labels:
    """Return labels after a reshape; where a dimension is split, what shares its leading index leaves together.

    That is right for an image that is flattened and unflattened (a channel leaves with all its pixels), for the
    simplices of SimNorm and for the heads of an attention, all of which lead.
    """
    rows: list[Row] = [None] * len(after)
    for ours, theirs in _blocks(before, after):
        labelled = [dim for dim in ours if labels[dim] is not None]
        if not labelled:
            continue
        # One of several can be told apart afterwards: that of most entries which may leave, as positions may not that
        # something was added to, and an ensemble's members are few; of as many the last, since members come first.
        chosen = max(labelled, key=lambda dim: (coupling.leaving(labels[dim]), before[dim], dim))
        for dim in labelled:
            if dim != chosen:
                coupling.fix(labels[dim])
        shape = [before[dim] for dim in ours]
        spread = [1] * len(ours)
        spread[ours.index(chosen)] = -1
        row = labels[chosen]
        assert row is not None
        entries = np.broadcast_to(row.reshape(spread), shape).reshape([after[dim] for dim in theirs])
        wide = [position for position, dim in enumerate(theirs) if after[dim] > 1]
        if not wide:
            continue
        along = next((position for position in wide if _constant_across(entries, position)), None)
        if along is None:
            along = wide[0]
            for across in np.moveaxis(entries, along, 0).reshape(entries.shape[along], -1):
                coupling.join_all(across.tolist())
        rows[theirs[along]] = np.moveaxis(entries, along, 0).reshape(entries.shape[along], -1)[:, 0].copy()
    return tuple(rows)


def _constant_across(entries: NDArray[np.int64], along: int) -> bool:
    flat = np.moveaxis(entries, along, 0).reshape(entries.shape[along], -1)
    return bool((flat == flat[:, :1]).all())


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split a reshape into the smallest blocks of dimensions that hold the same entries."""
    blocks = []
    i = j = 0
    while i < len(before) or j < len(after):
        ours, theirs = [], []
        left = right = 1
        if i < len(before):
            ours.append(i)
            left = before[i]
            i += 1
        if j < len(after):
            theirs.append(j)
            right = after[j]
            j += 1
        while left != right:
            if left < right:
                ours.append(i)
                left *= before[i]
                i += 1
            else:
                theirs.append(j)
                right *= after[j]
                j += 1
        blocks.append((ours, theirs))
    return blocks


def _expand(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    source: Tensor = args[0]
    offset = result.dim() - source.dim()
    rows: list[Row] = [None] * result.dim()
    for index, row in enumerate(coupling.labels(source)):
        if source.shape[index] == result.shape[offset + index]:
            rows[offset + index] = row
    coupling.label(result, tuple(rows))


def _repeat(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    source, times = args[0], args[1]
    rows: list[Row] = [None] * (result.dim() - source.dim())
    rows += coupling.labels(source)
    tiled = [None if row is None else np.tile(row, count) for row, count in zip(rows, times, strict=True)]
    coupling.label(result, tuple(tiled))


def fix_along(coupling: Coupling, source: Tensor, dims: Sequence[int], result: Any) -> None:
    """Make the entries along some dimensions stay; the result, of the same shape, has the others' labels."""
    rows = list(coupling.labels(source))
    for dim in dims:
        coupling.fix(rows[dim])
        rows[dim] = None
    coupling.label(result, tuple(rows))


def _flip(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Entries change places, so these dimensions stay."""
    fix_along(coupling, args[0], args[1] if len(args) > 1 else kwargs["dims"], result)


def _roll(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Entries change places, so these dimensions stay; without any it goes through all of them."""
    dims = args[2] if len(args) > 2 else kwargs.get("dims")
    fix_along(coupling, args[0], dims or range(args[0].dim()), result)


def _transpose(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    source, first, second = args
    rows = list(coupling.labels(source))
    rows[first], rows[second] = rows[second], rows[first]
    coupling.label(result, tuple(rows))


def _t(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    coupling.label(result, coupling.labels(args[0])[::-1])


def _permute(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    rows = coupling.labels(args[0])
    coupling.label(result, tuple(rows[dim] for dim in args[1]))


def _unsqueeze(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    rows = list(coupling.labels(args[0]))
    rows.insert(args[1] % result.dim(), None)
    coupling.label(result, tuple(rows))


def _squeeze(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    source: Tensor = args[0]
    asked = range(source.dim()) if len(args) < 2 else [args[1]] if isinstance(args[1], int) else args[1]
    gone = {dim % source.dim() for dim in asked if source.shape[dim] == 1}
    coupling.label(result, tuple(row for dim, row in enumerate(coupling.labels(source)) if dim not in gone))


def _slice(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """A part of a dimension is addressed by number, so all of that dimension stays."""
    source: Tensor = args[0]
    start, end, step = [*args[2:], None, None, None][:3]
    rows = list(coupling.labels(source))
    for dim, size in enumerate(result.shape):
        row = rows[dim]
        if size != source.shape[dim] and row is not None:
            coupling.begin(PARTS, coupling.operands)
            coupling.fix(row)
            rows[dim] = row[start:end:step]  # see _split
    coupling.label(result, tuple(rows))


def _select(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    source, dim = args[0], args[1] if len(args) > 1 else 0
    rows = list(coupling.labels(source))
    coupling.fix(rows.pop(dim))
    coupling.label(result, tuple(rows))


def _split(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Parts of a size stay; of parts that are taken by their number, as many entries can leave each."""
    source, dim = args[0], args[2] if len(args) > 2 else kwargs.get("dim", 0)
    rows = list(coupling.labels(source))
    row = rows[dim]
    sizes = [part.shape[dim] for part in result]
    # One entry cannot leave its part; and seven parts asked of eight entries are four of two.
    if len(result) == coupling.parts and len(set(sizes)) == 1 and sizes[0] > 1:
        coupling.divide(row, len(result))
    elif len(result) > 1:
        if not coupling.parts:
            coupling.begin(PARTS, coupling.operands)
        coupling.fix(row)
    ends = np.cumsum(sizes).tolist()
    for part, size, end in zip(result, sizes, ends, strict=True):
        # What stays goes on with its label, which tells whether it ends as an output.
        rows[dim] = None if row is None else row[end - size : end]
        coupling.label(part, tuple(rows))


def _index_select(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    fix_along(coupling, args[0], [args[1]], result)


def _index(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Entries along some dimensions are addressed by number, so these stay; where a mask is for several, all do."""
    coupling.operands = ()  # whatever the numbers come from
    source, indices = args[0], args[1]
    given = [dim for dim, index in enumerate(indices) if index is not None]
    rows = list(coupling.labels(source))
    masks = any(indices[dim].dtype == torch.bool and indices[dim].dim() > 1 for dim in given)
    for dim in range(len(rows)) if masks else given:
        coupling.fix(rows[dim])
    for index in indices:
        if index is not None:
            for row in coupling.labels(index):
                coupling.fix(row)
    if not masks:
        others = [row for dim, row in enumerate(rows) if dim not in given]
        # What is found lies where the indices stood, or first if they did not stand together.
        place = given[0] if given == list(range(given[0], given[-1] + 1)) else 0
        others[place:place] = [None] * (result.dim() - len(others))
        coupling.label(result, tuple(others))


def _unbind(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    rows = list(coupling.labels(args[0]))
    coupling.fix(rows.pop(args[1] if len(args) > 1 else 0))
    for part in result:
        coupling.label(part, tuple(rows))


def _cat(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    tensors: list[Tensor] = [tensor for tensor in args[0] if tensor.numel()]
    along = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % result.dim()
    rows = list(coupling.labels(tensors[0]))
    for tensor in tensors[1:]:
        for dim, row in enumerate(coupling.labels(tensor)):
            if dim != along:
                coupling.join(rows[dim], row)
    parts = [(coupling.labels(tensor)[along], tensor.shape[along]) for tensor in tensors]
    known = any(row is not None for row, _ in parts)
    rows[along] = (
        np.concatenate([np.full(size, FIXED) if row is None else row for row, size in parts]) if known else None
    )
    coupling.label(result, tuple(rows))


def _stack(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    along = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % result.dim()
    rows = list(coupling.labels(args[0][0]))
    for tensor in args[0][1:]:
        for dim, row in enumerate(coupling.labels(tensor)):
            coupling.join(rows[dim], row)
    rows.insert(along, None)
    coupling.label(result, tuple(rows))


REARRANGING: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "view_as"), _view),
    **dict.fromkeys(("expand", "broadcast_to"), _expand),
    "repeat": _repeat,
    "flip": _flip,
    "roll": _roll,
    "t": _t,
    "transpose": _transpose,
    "permute": _permute,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "slice": _slice,
    "select": _select,
    "index_select": _index_select,
    "index": _index,
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    "unbind": _unbind,
    "cat": _cat,
    "stack": _stack,
}
"""By the operations' ATen names, see propagation.py."""
