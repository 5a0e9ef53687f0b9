"""From what a robot's sensors say to the observation vector: joints by name, an IMU, a wanted velocity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.controllers.specs import VECTOR_SIZES, ObservationSpec, ObservationTerm

Vector = NDArray[np.float64]
JOINT_QUANTITIES = ("position", "velocity", "effort", "cos", "sin")


class ObservationAssembler:
    """Keeps the newest of every input, and puts the observation together.

    Args:
        spec: What the controller observes.
        action_size: m, for terms that observe the previous action.

    Raises:
        ControllerError: A term observes the previous action with another size.
    """

    def __init__(self, spec: ObservationSpec, action_size: int) -> None:
        self._spec = spec
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
        self._scale = np.repeat([term.scale for term in spec.terms], [term.size for term in spec.terms])
        self._names: tuple[str, ...] = ()
        self._columns: list[tuple[slice, str, list[int]]] = []

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
            reason = self._find_columns(tuple(names))
            if reason is not None:
                return reason
        sources: Mapping[str, Sequence[float]] = {"position": position, "velocity": velocity, "effort": effort}
        for _, quantity, _ in self._columns:
            source = SOURCES[quantity]
            if len(sources[source]) != len(names):
                return f"the joint states have {len(sources[source])} values of {source} for {len(names)} joints"
        for place, quantity, columns in self._columns:
            values = sources[SOURCES[quantity]]
            taken = [values[column] for column in columns]
            if quantity == "cos":
                taken = [math.cos(value) if math.isfinite(value) else math.nan for value in taken]
            elif quantity == "sin":
                taken = [math.sin(value) if math.isfinite(value) else math.nan for value in taken]
            self._values[place] = taken
            self._values[place] *= self._scale[place]
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

    def _find_columns(self, names: tuple[str, ...]) -> str | None:
        """Find the joints in a message; return which are missing, as a sentence."""
        missing = [joint for joint in self.joints if joint not in names]
        if missing:
            return f"the joint states lack {', '.join(missing)}; they have {', '.join(names) or 'none'}"
        self._columns = [
            (place, term.quantity, [names.index(joint) for joint in term.joints])
            for term, place in self._places
            if term.quantity in JOINT_QUANTITIES
        ]
        self._names = names
        return None


NORM_TOLERANCE = 0.01
"""How far the norm of a quaternion may be off 1; one of zeros, as of a driver that estimates none, is no rotation."""

SOURCES = {"position": "position", "cos": "position", "sin": "position", "velocity": "velocity", "effort": "effort"}
"""Which measured value each quantity comes from."""


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
