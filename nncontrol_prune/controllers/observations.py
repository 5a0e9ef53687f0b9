"""What a controller observes: terms, and how each follows from what is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from nncontrol_prune.controllers.model import Spec

VECTOR_SIZES = {
    "orientation": 4,  # quaternion x, y, z, w of the body in the world
    "angular_velocity": 3,  # of the body, in its own frame
    "linear_acceleration": 3,  # likewise, as an IMU measures it: at rest it points up, away from gravity
    "projected_gravity": 3,  # direction of gravity in the body's frame
    "velocity_command": 3,  # wanted velocity: forward, to the left, and turn rate
}
"""Sizes of quantities that an IMU or a velocity command gives."""

TOLD_QUANTITIES = ("velocity_command", "previous_action")
"""Quantities that nothing measures: the controller is told them as they are."""

JOINT_QUANTITIES = ("position", "velocity", "effort", "cos", "sin")
"""Quantities of a joint, by its name; `cos` and `sin` are of its position."""

Quantity = Literal[
    "position",
    "velocity",
    "effort",
    "cos",
    "sin",
    "orientation",
    "angular_velocity",
    "linear_acceleration",
    "projected_gravity",
    "velocity_command",
    "previous_action",
    "other",
]


class ObservationTerm(Spec):
    """Consecutive entries of the observation vector that measure one quantity."""

    name: str
    size: Annotated[int, Field(ge=1, le=100_000)]
    quantity: Quantity = "other"
    """What is measured: of joints, `JOINT_QUANTITIES`; `other` is what only the plant can tell."""
    joints: tuple[str, ...] = ()
    """The joints measured, in order; empty for quantities that are no joint's."""
    unit: str = ""
    """SI unit, such as `rad` or `m/s`."""
    history: Annotated[int, Field(ge=1, le=1000)] = 1
    """Of how many ticks the term holds what was measured, one behind the other, the newest last."""
    scale: float | tuple[float, ...] = 1.0
    """An entry is (measured value in `unit` - offset) * scale: one number for all, or one for each of a tick; none is
    0."""
    offset: tuple[float, ...] = ()
    """In `unit`, such as the default pose of the joints: one number for each entry of a tick, or empty for none."""

    def __str__(self) -> str:
        measured = f"{self.quantity} of {', '.join(self.joints)}" if self.joints else self.quantity
        text = f"{self.name} ({self.size}): {measured}" + (f" [{self.unit}]" if self.unit else "")
        if self.history > 1:
            text += f" of {self.history} ticks"
        if self.offset:
            text += f", less {in_words(self.offset)}"
        return text if self.scale == 1.0 else f"{text}, times {in_words(self.scale)}"

    @property
    def width(self) -> int:
        """Entries of one tick."""
        return self.size // self.history

    @property
    def scales(self) -> tuple[float, ...]:
        """The scale of each entry of a tick."""
        return self.scale if isinstance(self.scale, tuple) else (self.scale,) * self.width

    @property
    def offsets(self) -> tuple[float, ...]:
        """The offset of each entry of a tick."""
        return self.offset or (0.0,) * self.width

    # Both are brought into one form, so that terms that say the same are equal.
    @field_validator("scale", mode="before")
    @classmethod
    def _one_or_each(cls, value: Any, info: ValidationInfo) -> float | tuple[float, ...]:
        return one_or_each(value, _width(info.data))

    @field_validator("offset", mode="before")
    @classmethod
    def _each_or_none(cls, value: Any, info: ValidationInfo) -> tuple[float, ...]:
        return each_or_none(value, _width(info.data))

    @model_validator(mode="after")
    def _measures_something(self) -> ObservationTerm:
        if 0.0 in self.scales:
            raise ValueError(f"term {self.name!r} has the scale 0, by which nothing is measured")
        if self.quantity in JOINT_QUANTITIES and not self.joints:
            raise ValueError(f"term {self.name!r} measures the {self.quantity} of no joint: name its joints")
        if self.size % self.history:
            raise ValueError(f"term {self.name!r} has size {self.size}, which is no multiple of {self.history} ticks")
        ticks = f" in {self.history} ticks" if self.history > 1 else ""
        if self.joints and len(self.joints) != self.width:
            raise ValueError(f"term {self.name!r} has size {self.size}{ticks} but names {len(self.joints)} joints")
        wanted = VECTOR_SIZES.get(self.quantity, self.width)
        if self.width != wanted:
            raise ValueError(f"term {self.name!r} has size {self.size}{ticks}, and {self.quantity} has {wanted}")
        return self


def _width(found: Mapping[str, Any]) -> int | None:
    """Return how many entries of one tick a term has, by its size and history; None where these are wrong."""
    size, history = found.get("size"), found.get("history")
    return size // history or None if size and history else None


def in_words(numbers: float | tuple[float, ...]) -> str:
    """Return a number, or several, as a sentence has them."""
    return f"({', '.join(f'{number:g}' for number in numbers)})" if isinstance(numbers, tuple) else f"{numbers:g}"


def one_or_each(value: Any, size: int | None) -> float | tuple[float, ...]:
    """Return a scale in one form: a number if all entries have the same, and otherwise one for each.

    Raises:
        ValueError: It is something else.
    """
    single = isinstance(value, Real) or getattr(value, "ndim", None) == 0
    scales = _finite([value] * (size or 1) if single else value, size, "one for all")
    return scales[0] if len(set(scales)) == 1 else scales


def each_or_none(value: Any, size: int | None) -> tuple[float, ...]:
    """Return an offset in one form: a number for each entry, and none if all are 0.

    Raises:
        ValueError: It is something else.
    """
    empty = isinstance(value, (tuple, list)) and not value
    offsets = () if empty else _finite(value, size, "none")
    return offsets if any(offsets) else ()


def _finite(values: Any, size: int | None, otherwise: str) -> tuple[float, ...]:
    """Return a finite number for each entry of a vector, from whatever lists them, such as an array.

    Args:
        values: What was given.
        size: Of the vector; None if that is wrong itself.
        otherwise: What else is allowed.

    Raises:
        ValueError: It is something else.
    """
    try:
        numbers = () if isinstance(values, (str, bytes, dict, set, frozenset)) else tuple(map(float, values))
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if not numbers or len(numbers) != (size or len(numbers)) or not all(map(math.isfinite, numbers)):
        entries = "entry" if size is None else f"of the {size} entries"
        raise ValueError(f"allowed are finite numbers, one for each {entries}, or {otherwise}")
    return numbers


class ObservationSpec(Spec):
    """The observation vector, as ordered terms."""

    terms: Annotated[tuple[ObservationTerm, ...], Field(min_length=1)]

    @property
    def size(self) -> int:
        """Length of the observation vector."""
        return sum(term.size for term in self.terms)

    @property
    def measured(self) -> tuple[bool, ...]:
        """Whether each entry is a measurement; what the controller is told is none."""
        return tuple(term.quantity not in TOLD_QUANTITIES for term in self.terms for _ in range(term.size))


def term_difference(ours: ObservationTerm, theirs: ObservationTerm) -> str:
    """Return the first thing in which two different terms differ, such as `scale 0.5, not 1.0`."""
    field = next(name for name in ObservationTerm.model_fields if getattr(ours, name) != getattr(theirs, name))
    return f"{field} {getattr(ours, field)!r}, not {getattr(theirs, field)!r}"
