"""What the values in an ONNX graph are as functions of the observation, for an observation at a time.

Between two linear layers every entry of a value is a function of one entry of what the layer before gives out. Those
functions are kept twice: as a formula, as long as they are affine and clipped, and as what can be evaluated, whatever
they are, so that an activation is known by what it does and not by how an exporter writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.errors import ImportFailedError

Array: TypeAlias = NDArray[Any]

MAX_ENTRIES = 2**26
"""No constant may be computed to have more."""


class MixedError(ImportFailedError):
    """A value mixes what comes from different layers; exporters still ask for its shape.

    Args:
        shape: Of the value.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__("it mixes what comes from different layers or entries, as skip connections do")
        self.shape = shape


@dataclass(frozen=True, eq=False)
class Point:
    """Where entries are mixed: the observation, or what a linear layer gives out before its bias.

    Attributes:
        size: Number of entries.
        weight: The layer's (size, entries of the source); None for the observation.
        source: What the layer takes, in the order of its entries; None for the observation.
    """

    size: int
    weight: Array | None = None
    source: Signal | None = None


@dataclass(frozen=True, eq=False)
class Form:
    """`outer_scale * clip(scale * x + offset, lower, upper) + outer_offset`; one number (entries,) for each entry.

    Without bounds, `outer_scale` is 1 and `outer_offset` 0.
    """

    scale: Array
    offset: Array
    lower: Array
    upper: Array
    outer_scale: Array
    outer_offset: Array

    @classmethod
    def affine(cls, scale: Array, offset: Array) -> Form:
        """Return the form without bounds."""
        one, zero, infinite = np.ones(scale.shape), np.zeros(scale.shape), np.full(scale.shape, np.inf)
        return cls(scale, offset, -infinite, infinite, one, zero)

    @property
    def bounded(self) -> bool:
        """Whether it clips at all."""
        return bool(np.isfinite([self.lower, self.upper]).any())

    def then(self, scale: Array, offset: Array) -> Form:
        """Return the form of `scale * value + offset`."""
        if not self.bounded:
            return Form.affine(scale * self.scale, scale * self.offset + offset)
        outer = scale * self.outer_scale, scale * self.outer_offset + offset
        return Form(self.scale, self.offset, self.lower, self.upper, *outer)

    def clip(self, lower: Array, upper: Array) -> Form | None:
        """Return the form of the clipped value; None if it has none."""
        if (self.outer_scale == 0.0).any():
            return None
        ends = [(bound - self.outer_offset) / self.outer_scale for bound in (lower, upper)]
        low, high = np.maximum(self.lower, np.minimum(*ends)), np.minimum(self.upper, np.maximum(*ends))
        if not ((low <= high) & (lower <= upper)).all():
            return None
        return Form(self.scale, self.offset, low, high, self.outer_scale, self.outer_offset)

    def take(self, positions: Array) -> Form:
        """Return the form of some of the entries, in their order."""
        return Form(*(getattr(self, field.name)[positions] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class Signal:
    """A tensor that depends on the observation.

    Attributes:
        point: Of which it is a function, entry by entry.
        index: Which entry of the point each of its entries depends on; has the tensor's shape.
        form: Of its entries, flattened; None if they are not affine and clipped.
        operation: What makes it of the arguments, all (samples, *shape); None for the point itself.
        arguments: The signals that it is computed from.
        maker: The node that computed it, for messages.
    """

    point: Point
    index: Array
    form: Form | None
    operation: Callable[..., Array] | None = None
    arguments: tuple[Signal, ...] = ()
    maker: str = ""

    @classmethod
    def of(cls, point: Point, shape: Sequence[int]) -> Signal:
        """Return a point itself, as a tensor."""
        form = Form.affine(np.ones(point.size), np.zeros(point.size))
        return cls(point, np.arange(point.size).reshape(shape), form)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.index.shape

    @property
    def size(self) -> int:
        """Number of its entries."""
        return self.index.size

    @property
    def entries(self) -> Array:
        """The index, flattened."""
        return self.index.ravel()

    @property
    def positions(self) -> Array:
        """Where in `entries` each entry is; has the tensor's shape."""
        return np.arange(self.size).reshape(self.shape)

    def taken(self, positions: Array, maker: str) -> Signal:
        """Return the signal of entries that were moved, dropped or repeated.

        Args:
            positions: Which of `entries` is where; has the new tensor's shape.
            maker: The node that does it.
        """
        flat, shape = positions.ravel(), positions.shape

        def run(values: Array) -> Array:
            return values.reshape(len(values), -1)[:, flat].reshape(len(values), *shape)

        form = None if self.form is None else self.form.take(flat)
        return Signal(self.point, self.entries[flat].reshape(shape), form, run, (self,), maker)

    def at(self, point: Array) -> Array:
        """Return the flattened values (samples, entries) where the point has the values (samples, size)."""
        return self._at(point, {}).reshape(len(point), -1)

    def _at(self, point: Array, known: dict[int, Array]) -> Array:
        if id(self) not in known:
            check_size((len(point), *self.shape))
            values = [argument._at(point, known) for argument in self.arguments]
            known[id(self)] = point[:, self.index] if self.operation is None else self.operation(*values)
        return known[id(self)]

    def origins(self) -> list[Signal]:
        """Return it and all signals of its point that it is computed from, the nearest first."""
        found: list[Signal] = [self]
        seen = {id(self)}
        for signal in found:
            for argument in signal.arguments:
                if id(argument) not in seen:
                    seen.add(id(argument))
                    found.append(argument)
        return found


Value: TypeAlias = "Signal | Array"


def multiplied(weight: Array, signal: Signal, shape: Sequence[int]) -> Signal:
    """Return what a layer of weight (outputs, entries) gives out for the signal's entries, as a tensor of a shape."""
    return Signal.of(Point(len(weight), weight, signal), shape)


def check_size(shape: Sequence[int]) -> None:
    """Refuse what a small file may ask for: a tensor that fills the memory."""
    # A size of 0 or, in a damaged file, less hides no others.
    if np.prod(np.maximum(shape, 1), dtype=float) > MAX_ENTRIES:
        raise ImportFailedError(f"it makes a tensor of shape {tuple(shape)}, allowed are {MAX_ENTRIES} entries")


def spread(values: Sequence[Value]) -> list[Value]:
    """Return values in the one shape that they have by broadcasting."""
    shape = np.broadcast_shapes(*(value.shape for value in values))
    check_size(shape)
    return [value if value.shape == shape else _broadcast(value, shape) for value in values]


def _broadcast(value: Value, shape: tuple[int, ...]) -> Value:
    if isinstance(value, Signal):
        return value.taken(np.broadcast_to(value.positions, shape), value.maker)
    return np.broadcast_to(value, shape)


def joined(signals: Sequence[Signal], axis: int, maker: str) -> Signal:
    """Return signals of one point side by side."""
    index = np.concatenate([signal.index for signal in signals], axis)
    # Where each entry of the result lies among those of the signals one after the other.
    starts = np.cumsum([0, *(signal.size for signal in signals)])
    places = [start + signal.positions for start, signal in zip(starts, signals, strict=False)]
    positions = np.concatenate(places, axis).ravel()
    forms = [signal.form for signal in signals if signal.form is not None]
    form = None
    if len(forms) == len(signals):
        columns = (np.concatenate([getattr(form, field.name) for form in forms]) for field in fields(Form))
        form = Form(*columns).take(positions)

    def run(*arrays: Array) -> Array:
        return np.concatenate(arrays, axis if axis < 0 else axis + 1)

    return Signal(signals[0].point, index, form, run, tuple(signals), maker)


def elementwise(operation: Callable[..., Array], values: Sequence[Value], maker: str, form: Form | None) -> Value:
    """Return what an operation makes of values of one shape, entry by entry.

    Args:
        operation: Takes as many arrays as there are values.
        values: Signals and constants, see `spread`.
        maker: The node that does it.
        form: Of the result, if it has one.

    Raises:
        MixedError: Signals depend on different points, or entries of them.
    """
    signals = [value for value in values if isinstance(value, Signal)]
    if not signals:
        return operation(*values)
    for other in signals[1:]:
        if other.point is not signals[0].point or not np.array_equal(other.index, signals[0].index):
            raise MixedError(other.shape)

    def run(*arrays: Array) -> Array:
        rest = iter(arrays)
        return operation(*(next(rest) if isinstance(value, Signal) else value for value in values))

    return Signal(signals[0].point, signals[0].index, form, run, tuple(signals), maker)
