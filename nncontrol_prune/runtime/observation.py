"""From what a robot's sensors say to the observation vector: joints by name, an IMU, a wanted velocity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.controllers.observations import JOINT_QUANTITIES, VECTOR_SIZES, ObservationSpec, ObservationTerm

Vector = NDArray[np.float64]
NORM_TOLERANCE = 0.01
"""How far the norm of a quaternion may be off 1; one of zeros, as of a driver that estimates none, is no rotation."""
MEASURED = ("position", "velocity", "effort")
"""What joint states hold of each joint."""


def _cos(angle: float) -> float:
    return math.cos(angle) if math.isfinite(angle) else math.nan


def _sin(angle: float) -> float:
    return math.sin(angle) if math.isfinite(angle) else math.nan


SOURCES: dict[str, tuple[int, Callable[[float], float] | None]] = {
    "position": (0, None),
    "cos": (0, _cos),
    "sin": (0, _sin),
    "velocity": (1, None),
    "effort": (2, None),
}
"""Which measured value, of `MEASURED`, each quantity of a joint comes from, and what is made of it, if anything."""


class _Place(NamedTuple):
    """A term, where it and its newest values are in the observation, and what brings these (width,) into its units."""

    term: ObservationTerm
    whole: slice
    entries: slice
    offset: Vector
    scale: Vector


_JointEntry = tuple[int, int, Callable[[float], float] | None, float, float]
"""Of an entry that is a joint's: number of the measured value and of the joint, what is made of it, offset, scale."""


class ObservationAssembler:
    """Keeps the newest of every input, and puts the observation together.

    Args:
        spec: What the controller observes.
        action_size: m, for terms that observe the previous action.

    Raises:
        ControllerError: A term observes the previous action with another size.
    """

    def __init__(self, spec: ObservationSpec, action_size: int) -> None:
        self._places: list[_Place] = []
        start = 0
        for term in spec.terms:
            if term.quantity == "previous_action" and term.width != action_size:
                raise ControllerError(
                    f"term {term.name!r} has {term.width} values a tick, and the action has {action_size}"
                )
            end = start + term.size
            whole, newest = slice(start, end), slice(end - term.width, end)
            self._places.append(_Place(term, whole, newest, np.array(term.offsets), np.array(term.scales)))
            start = end
        self.joints: tuple[str, ...] = tuple(
            dict.fromkeys(joint for term in spec.terms if term.quantity in JOINT_QUANTITIES for joint in term.joints)
        )
        """The joints that are observed."""
        self.vectors: tuple[str, ...] = tuple(
            dict.fromkeys(term.quantity for term in spec.terms if term.quantity in VECTOR_SIZES)
        )
        """The quantities observed that are no joint's: see `controllers.observations.VECTOR_SIZES`."""
        self.others: tuple[ObservationTerm, ...] = tuple(term for term in spec.terms if term.quantity == "other")
        """The terms that only their plant can tell."""
        self._values = np.full(spec.size, math.nan)
        for place in self._places:
            if place.term.quantity == "previous_action":  # in the controller's units: as when an episode begins
                self._values[place.whole] = 0.0
        self._complete = self._values.copy()
        self._histories = [place for place in self._places if place.term.history > 1]
        self._begun = False
        self._names: tuple[str, ...] = ()
        self._measured: tuple[int, ...] = ()
        self._entries: list[_JointEntry] = []
        self._joint_places: slice | NDArray[np.intp] = slice(0)

    @property
    def observation(self) -> Vector:
        """The newest complete observation (n,), in the controller's units; before there is one, NaN, but 0 for actions.

        Of the next one some inputs may have come already.
        """
        return self._complete

    def begin(self) -> None:
        """Take what is observed next for the first of its history: ticks before it are taken for the same."""
        self._begun = False
        self._begin_histories(self._complete)

    @property
    def remembers(self) -> bool:
        """Whether ticks before the newest one are observed."""
        return bool(self._histories)

    def answered(self, observation: Vector) -> None:
        """Keep what was observed (n,) in a tick as that of the tick before; what has come since is the next one's."""
        self._begun = True
        for term, whole, entries, *_ in self._histories:
            before = slice(whole.start, entries.start)
            self._values[before] = observation[whole.start + term.width : whole.stop]
            self._complete[before] = self._values[before]

    def complete(self) -> None:
        """Make what has come the observation; where histories have just begun, it is that of the ticks before, too."""
        if not self._begun:
            self._begin_histories(self._values)
        self._complete[:] = self._values

    def _begin_histories(self, values: Vector) -> None:
        for term, whole, entries, *_ in self._histories:
            values[whole].reshape(-1, term.width)[:] = values[entries]

    def joint_states(
        self, names: Sequence[str], position: Sequence[float], velocity: Sequence[float], effort: Sequence[float]
    ) -> str | None:
        """Take joint states, whose joints may come in any order and be more than those observed.

        Args:
            names: The joints.
            position: A value a joint, in rad or m; or empty, as those that follow, where it is not measured.
            velocity: In rad/s or m/s.
            effort: In N m or N.

        Returns:
            Why they cannot be used, as a sentence; None if they were. Nothing is taken of those that cannot.
        """
        if tuple(names) != self._names:
            reason = self._find_joints(tuple(names))
            if reason is not None:
                return reason
        # One pass over plain numbers: this runs in every tick, and small arrays cost more than they save.
        sources, count = (position, velocity, effort), len(names)
        for source in self._measured:
            if len(sources[source]) != count:
                return f"the joint states have {len(sources[source])} values of {MEASURED[source]} for {count} joints"
        self._values[self._joint_places] = [
            ((sources[source][column] if convert is None else convert(sources[source][column])) - offset) * scale
            for source, column, convert, offset, scale in self._entries
        ]
        return None

    def vector(self, quantity: str, values: Sequence[float]) -> None:
        """Take a quantity that is no joint's, such as `angular_velocity`."""
        for place in self._places:
            if place.term.quantity == quantity:
                self._take(place, values)

    def other(self, name: str, values: Sequence[float]) -> bool:
        """Take a term that only its plant can tell; return whether it is observed and has that size."""
        for place in self._places:
            term = place.term
            if term.quantity == "other" and term.name == name and term.width == len(values):
                self._take(place, values)
                return True
        return False

    def previous_action(self, action: Vector) -> None:
        """Take the action (m,) that was commanded last; also where the next observation is complete already."""
        for place in self._places:
            if place.term.quantity == "previous_action":
                self._take(place, action)  # type: ignore[arg-type] # an array is as good as a sequence
                self._complete[place.entries] = self._values[place.entries]

    def _take(self, place: _Place, values: Sequence[float]) -> None:
        entries = self._values[place.entries]
        np.subtract(values, place.offset, out=entries)
        entries *= place.scale

    def _find_joints(self, names: tuple[str, ...]) -> str | None:
        """Find the joints in a message; return which are missing, as a sentence."""
        missing = [joint for joint in self.joints if joint not in names]
        if missing:
            return f"the joint states lack {', '.join(missing)}; they have {', '.join(names) or 'none'}"
        observed = [place for place in self._places if place.term.quantity in JOINT_QUANTITIES]
        self._entries = []
        for term, *_ in observed:
            source, convert = SOURCES[term.quantity]
            for joint, offset, scale in zip(term.joints, term.offsets, term.scales, strict=True):
                self._entries.append((source, names.index(joint), convert, offset, scale))
        places = np.array([at for p in observed for at in range(p.entries.start, p.entries.stop)], np.intp)
        together = len(places) > 0 and places[-1] - places[0] + 1 == len(places)
        self._joint_places = slice(int(places[0]), int(places[-1]) + 1) if together else places
        self._measured = tuple(sorted({source for source, *_ in self._entries}))
        self._names = names
        return None


def projected_gravity(quaternion: Sequence[float]) -> tuple[float, float, float]:
    """Return the direction of gravity in the body's frame.

    Args:
        quaternion: Orientation of the body in the world, x, y, z, w.
    """
    x, y, z, w = quaternion
    return -2.0 * (x * z - w * y), -2.0 * (y * z + w * x), -(1.0 - 2.0 * (x * x + y * y))


def level_orientation(gravity: Sequence[float]) -> tuple[float, float, float, float]:
    """Return an orientation without yaw, x, y, z, w, of a body that sees gravity in a direction; zeros if in none.

    Args:
        gravity: Its direction in the body's frame; the length does not matter.
    """
    x, y, z = gravity
    if not math.hypot(x, y, z) > 0.0:
        return 0.0, 0.0, 0.0, 0.0
    half_roll, half_pitch = 0.5 * math.atan2(-y, -z), 0.5 * math.atan2(x, math.hypot(y, z))
    roll, pitch = (math.sin(half_roll), math.cos(half_roll)), (math.sin(half_pitch), math.cos(half_pitch))
    return roll[0] * pitch[1], roll[1] * pitch[0], -roll[0] * pitch[0], roll[1] * pitch[1]


def rotation_problem(quaternion: Sequence[float]) -> str:
    """Return why a quaternion is no rotation, as a sentence; empty if it is one, or NaN, which shows by itself."""
    norm = math.hypot(*quaternion)
    return f"its quaternion has norm {norm:g}, not 1" if abs(norm - 1) > NORM_TOLERANCE else ""
