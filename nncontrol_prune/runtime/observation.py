"""From what a robot's sensors say to the observation vector: joints by name, an IMU, a wanted velocity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.controllers.specs import JOINT_QUANTITIES, VECTOR_SIZES, ObservationSpec, ObservationTerm

Vector = NDArray[np.float64]
NORM_TOLERANCE = 0.01
"""How far the norm of a quaternion may be off 1; one of zeros, as of a driver that estimates none, is no rotation."""
MEASURED = ("position", "velocity", "effort")
"""What joint states hold of each joint."""


def _cos(angle: float) -> float:
    return math.cos(angle) if math.isfinite(angle) else math.nan


def _sin(angle: float) -> float:
    return math.sin(angle) if math.isfinite(angle) else math.nan


SOURCES: dict[str, tuple[int, Callable[[float], float]]] = {
    "position": (0, float),
    "cos": (0, _cos),
    "sin": (0, _sin),
    "velocity": (1, float),
    "effort": (2, float),
}
"""Which measured value, of `MEASURED`, each quantity of a joint comes from, and how."""
_JointEntry = tuple[int, int, Callable[[float], float], float]
"""An entry of the observation: number of the measured value, number of the joint, what is made of it, scale."""


class ObservationAssembler:
    """Keeps the newest of every input, and puts the observation together.

    Args:
        spec: What the controller observes.
        action_size: m, for terms that observe the previous action.

    Raises:
        ControllerError: A term observes the previous action with another size.
    """

    def __init__(self, spec: ObservationSpec, action_size: int) -> None:
        self._places: list[tuple[ObservationTerm, slice]] = []
        start = 0
        for term in spec.terms:
            if term.quantity == "previous_action" and term.size != action_size:
                raise ControllerError(f"term {term.name!r} has size {term.size}, and the action has {action_size}")
            self._places.append((term, slice(start, start + term.size)))
            start += term.size
        self.joints: tuple[str, ...] = tuple(
            dict.fromkeys(joint for term in spec.terms if term.quantity in JOINT_QUANTITIES for joint in term.joints)
        )
        """The joints that are observed."""
        self.vectors: tuple[str, ...] = tuple(
            dict.fromkeys(term.quantity for term in spec.terms if term.quantity in VECTOR_SIZES)
        )
        """The quantities observed that are no joint's: see `controllers.specs.VECTOR_SIZES`."""
        self.others: tuple[ObservationTerm, ...] = tuple(term for term in spec.terms if term.quantity == "other")
        """The terms that only their plant can tell."""
        self._values = np.full(spec.size, math.nan)
        self.previous_action(np.zeros(action_size))  # nothing was commanded yet, as when an episode begins
        self._names: tuple[str, ...] = ()
        self._measured: tuple[int, ...] = ()
        self._entries: list[_JointEntry] = []
        self._joint_places = np.zeros(0, dtype=np.intp)

    @property
    def observation(self) -> Vector:
        """The newest observation (n,), in the controller's units; NaN where nothing has come yet, but 0 for actions."""
        return self._values

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
            scale * convert(sources[source][column]) for source, column, convert, scale in self._entries
        ]
        return None

    def vector(self, quantity: str, values: Sequence[float]) -> None:
        """Take a quantity that is no joint's, such as `angular_velocity`."""
        for term, place in self._places:
            if term.quantity == quantity:
                self._values[place] = values
                self._values[place] *= term.scale

    def other(self, name: str, values: Sequence[float]) -> bool:
        """Take a term that only its plant can tell; return whether it is observed and has that size."""
        for term, place in self._places:
            if term.quantity == "other" and term.name == name and term.size == len(values):
                self._values[place] = values
                self._values[place] *= term.scale
                return True
        return False

    def previous_action(self, action: Vector) -> None:
        """Take the action (m,) that was commanded last."""
        self.vector("previous_action", action)  # type: ignore[arg-type] # an array is as good as a sequence

    def _find_joints(self, names: tuple[str, ...]) -> str | None:
        """Find the joints in a message; return which are missing, as a sentence."""
        missing = [joint for joint in self.joints if joint not in names]
        if missing:
            return f"the joint states lack {', '.join(missing)}; they have {', '.join(names) or 'none'}"
        observed = [(term, place) for term, place in self._places if term.quantity in JOINT_QUANTITIES]
        self._entries = []
        for term, _ in observed:
            source, convert = SOURCES[term.quantity]
            self._entries += [(source, names.index(joint), convert, term.scale) for joint in term.joints]
        self._joint_places = np.array([at for _, place in observed for at in range(place.start, place.stop)], np.intp)
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


def rotation_problem(quaternion: Sequence[float]) -> str:
    """Return why a quaternion is no rotation, as a sentence; empty if it is one, or NaN, which shows by itself."""
    norm = math.hypot(*quaternion)
    return f"its quaternion has norm {norm:g}, not 1" if abs(norm - 1) > NORM_TOLERANCE else ""
