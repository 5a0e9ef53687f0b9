"""Coupling: labels for the entries of a module's tensors, and which of them are joined."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

FIXED = 0
"""Label of all that may not leave."""

Row = NDArray[np.int64] | None
"""Labels along one dimension; None where all are fixed, which is cheaper to carry."""
Labels = tuple[Row, ...]
"""Labels of a tensor, by dimension."""


class Coupling:
    """Labels of a module's tensors and of what is computed from them.

    Args:
        module: Its parameters and buffers get labels.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parent = [FIXED]
        self._labels: dict[int, Labels] = {}
        self._alive: list[Tensor] = []  # the dictionary goes by id, which is only a tensor's as long as it lives
        self._rows: dict[tuple[str, int], NDArray[np.int64]] = {}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
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
            self._union(one, other)

    def join_all(self, labels: Iterable[int]) -> None:
        """Join labels with each other."""
        labels = list(labels)
        for other in labels[1:]:
            self._union(labels[0], other)

    def fix(self, row: Row) -> None:
        """Make the entries of a row stay."""
        if row is not None:
            for label in row.tolist():
                self._union(FIXED, label)

    def classes(self) -> list[list[tuple[str, int, int]]]:
        """Return what leaves together, as (tensor, dimension, index) triples; what stays is left out."""
        found: dict[int, list[tuple[str, int, int]]] = {}
        for (name, dim), row in self._rows.items():
            for index, label in enumerate(row.tolist()):
                root = self.find(label)
                if root != FIXED:
                    found.setdefault(root, []).append((name, dim, index))
        return list(found.values())

    def _union(self, first: int, second: int) -> None:
        one, other = sorted((self.find(first), self.find(second)))
        self._parent[other] = one  # the smaller stands for both, so FIXED always does
