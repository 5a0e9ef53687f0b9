"""Coupling: labels for the entries of a module's tensors, and which of them are joined."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

FIXED = 0
"""Label of all that may not leave."""

Row = NDArray[np.int64] | None
"""Labels along one dimension; None where all are fixed, which is cheaper to carry."""
Labels = tuple[Row, ...]
"""Labels of a tensor, by dimension."""


class Cause(NamedTuple):
    """Why channels stay, as what follows "the channels of a layer" in a sentence, and what the user can do about it."""

    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}" if self.remedy else self.reason


OUTPUT = Cause("are outputs")
PARTS = Cause(
    "are divided by the size of the parts",
    "take the parts with chunk, which goes by how many there are, or give each a layer of its own",
)

Entry = tuple[str, int, int]
"""A tensor of the module, one of its dimensions, and an index along that."""


class Coupling:
    """Labels of a module's tensors and of what is computed from them.

    Args:
        module: Its parameters and buffers get labels.
        whole: Modules in it that nothing may leave, so that their tensors get none, and what to say of each.

    Attributes:
        operation: What is going on, in case that it makes something stay.
        operands: The tensors that it is about.
        parts: The number of parts that it was asked to divide a dimension into; 0 where it was asked for sizes.
    """

    def __init__(self, module: nn.Module, whole: Mapping[nn.Module, Cause] | None = None) -> None:
        self.operation = Cause("are kept")
        self.operands: Sequence[Tensor] = ()
        self.parts = 0
        self._origins: dict[int, Cause] = {}
        self._causes: dict[int, Cause] = {}  # why a label stays; those that it is joined with stay too
        self._staying = {FIXED}  # of joined labels that stay, what stands for them
        self._needed: list[tuple[list[int], int]] = []
        self._weights: set[int] = set()  # tensors that are computed from nothing but the module's, by id
        self._contracted: set[int] = set()
        self._multiplied: set[int] = set()  # of those, what lies in the module's own tensors
        self._parent = [FIXED]
        self._labels: dict[int, Labels] = {}
        self._alive: list[Tensor] = []  # the dictionary goes by id, which is only a tensor's as long as it lives
        self._rows: dict[tuple[str, int], NDArray[np.int64]] = {}
        for part, origin in (whole or {}).items():
            for tensor in (*part.parameters(), *part.buffers()):
                self.originate(tensor, origin)
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            self.weigh(tensor)
            if self.origin(tensor):
                continue
            rows: list[Row] = []
            for dim, size in enumerate(tensor.shape):
                row = np.arange(len(self._parent), len(self._parent) + size, dtype=np.int64)
                self._parent.extend(row.tolist())
                self._rows[name, dim] = row
                rows.append(row)
            self.label(tensor, tuple(rows))

    def label(self, tensor: Tensor, labels: Labels) -> None:
        """Give a tensor its labels."""
        self._labels[id(tensor)] = labels
        self._alive.append(tensor)

    def labels(self, tensor: Tensor) -> Labels:
        """Return the labels of a tensor; all fixed if it was never labelled."""
        return self._labels.get(id(tensor), (None,) * tensor.dim())

    def knows(self, tensor: Tensor) -> bool:
        """Return whether any label of a tensor is not fixed."""
        return any(row is not None for row in self.labels(tensor))

    def begin(self, operation: Cause, operands: Sequence[Tensor] = ()) -> None:
        """Tell what goes on from here, and the tensors that it is about, in case that it makes something stay."""
        self.operation, self.operands = operation, operands

    def originate(self, tensor: Tensor, origin: Cause) -> None:
        """Tell where a tensor comes from that has no labels: what it meets stays, and the user is told this."""
        self._origins[id(tensor)] = origin
        self._alive.append(tensor)

    def origin(self, tensor: Tensor) -> Cause | None:
        """Return where a tensor comes from that has no labels, if that was told."""
        return self._origins.get(id(tensor))

    def find(self, label: int) -> int:
        """Return what stands for all that a label is joined with."""
        root = label
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[label] != root:
            self._parent[label], label = root, self._parent[label]
        return root

    def join(self, first: Row, second: Row) -> None:
        """Join two rows of labels entry by entry; one that is fixed fixes the other."""
        if first is None and second is None:
            return
        if first is None or second is None:
            self.fix(second if first is None else first)
            return
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            self._union(one, other, len(first))

    def join_all(self, labels: Iterable[int]) -> None:
        """Join labels with each other."""
        labels = list(labels)
        for other in labels[1:]:
            self._union(labels[0], other, len(labels))

    def divide(self, row: Row, parts: int) -> Row:
        """Join the entries of so many parts of a row, the first with the first ones, and return those of one part."""
        if row is None:
            return None
        size = len(row) // parts
        for entry in range(size):
            self.join_all(row[entry::size].tolist())
        return row[:size]

    def fix(self, row: Row) -> None:
        """Make the entries of a row stay."""
        if row is not None:
            for label in row.tolist():
                self._union(FIXED, label, len(row))

    def weigh(self, tensor: Tensor) -> None:
        """Tell that a tensor is one of the module's, or computed from nothing but such."""
        self._weights.add(id(tensor))
        self._alive.append(tensor)

    def is_weight(self, tensor: Tensor) -> bool:
        """Return whether a tensor is one of the module's, or computed from nothing but such."""
        return id(tensor) in self._weights

    def contract(self, *operands: tuple[Tensor, int]) -> None:
        """Join two tensors along the dimensions that a product sums over."""
        first, second = (self.labels(tensor)[dim] for tensor, dim in operands)
        self.join(first, second)
        for tensor, dim in operands:
            row = self.labels(tensor)[dim]
            if row is not None:
                self._contracted.update(row.tolist())
                if self.is_weight(tensor):
                    self._multiplied.update(row.tolist())

    def contracted(self) -> set[int]:
        """Return what stands for all that some product sums over."""
        return {self.find(label) for label in self._contracted}

    def root(self, entry: Entry) -> int:
        """Return what stands for all that an entry leaves together with."""
        return self.find(self._label(entry))

    def multiplies(self, entry: Entry) -> bool:
        """Return whether a product sums over an entry where it lies in its own tensor."""
        return self._label(entry) in self._multiplied

    def need(self, row: Row, entries: int) -> None:
        """Tell that so many entries of a row have to be left."""
        if row is not None:
            self._needed.append((row.tolist(), entries))

    def fewest(self, entry: Entry) -> int:
        """Return how many channels have to be left of those that the channel of an entry is one of."""
        root = self.root(entry)
        widths = ((sum(self.find(label) == root for label in row), entries) for row, entries in self._needed)
        return max((math.ceil(entries / width) for width, entries in widths if width), default=1)

    def leaving(self, row: Row) -> int:
        """Return how many entries of a row nothing has made stay so far."""
        return 0 if row is None else sum(self.find(label) not in self._staying for label in row.tolist())

    def classes(self) -> list[list[Entry]]:
        """Return what leaves together; what stays is left out."""
        return [entries for entries, cause in self._classes() if cause is None]

    def staying(self) -> list[tuple[list[Entry], Cause]]:
        """Return what would leave together if something did not make it stay, and what that is."""
        return [(entries, cause) for entries, cause in self._classes() if cause is not None]

    def _classes(self) -> Iterator[tuple[list[Entry], Cause | None]]:
        causes: dict[int, Cause] = {}
        for label, cause in self._causes.items():
            root = self.find(label)
            causes[root] = OUTPUT if cause == OUTPUT else causes.get(root, cause)
        found: dict[int, list[Entry]] = {}
        for (name, dim), row in self._rows.items():
            for index, label in enumerate(row.tolist()):
                found.setdefault(self.find(label), []).append((name, dim, index))
        for root, entries in found.items():
            yield entries, causes.get(root)

    def _label(self, entry: Entry) -> int:
        name, dim, index = entry
        return int(self._rows[name, dim][index])

    def _union(self, first: int, second: int, size: int) -> None:
        """Join two labels that are met along a dimension of some size."""
        if first != FIXED and second != FIXED:
            root, other = self.find(first), self.find(second)
            self._parent[other] = root
            if other in self._staying:
                self._staying.add(root)
        elif first != second:
            label = max(first, second)
            self._staying.add(self.find(label))
            if label not in self._causes or self.operation == OUTPUT:  # which nobody would want to change
                self._causes[label] = self._cause(size)

    def _cause(self, size: int) -> Cause:
        met = (self.origin(tensor) for tensor in self.operands if size in tensor.shape)
        return next((origin for origin in met if origin), self.operation)


Rule = Callable[[Coupling, Any, Any, Any], None]
"""What an operation does to labels; takes the coupling, and the operation's arguments, keywords and result."""
