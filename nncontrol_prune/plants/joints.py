"""The joint states of a simulated plant, and what else its observation holds, as sensors would report them."""

from __future__ import annotations

from typing import Any, NamedTuple

import mujoco
import numpy as np
from gymnasium import Env
from numpy.typing import NDArray

from nncontrol_prune.controllers.observations import VECTOR_SIZES, ObservationSpec

SCALAR_JOINTS = (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE))


def scalar_joints(model: Any) -> list[Any]:
    """Return the hinges and slides of a MuJoCo model that have a name, in its order."""
    joints = (model.joint(index) for index in range(model.njnt) if model.jnt_type[index] in SCALAR_JOINTS)
    return [joint for joint in joints if joint.name]


class JointReadout:
    """Reads the named hinges and slides of a gymnasium MuJoCo environment, and what else sensors would say.

    What the observation says of a joint's position, velocity or effort is what is reported of it, so that a controller
    that reads joint states sees what it was trained on: Hopper and Walker2d clip velocities to ±10, as a sensor
    saturates. All is in the units of the terms, before their offset and scale.

    Args:
        env: The environment.
        spec: Its observation.
    """

    def __init__(self, env: Env[Any, Any], spec: ObservationSpec) -> None:
        base: Any = env.unwrapped
        self._data = base.data
        joints = scalar_joints(base.model)
        self.names: tuple[str, ...] = tuple(joint.name for joint in joints)
        """The joints, in the model's order."""
        self._qpos = np.array([joint.qposadr[0] for joint in joints], dtype=np.intp)
        self._qvel = np.array([joint.dofadr[0] for joint in joints], dtype=np.intp)
        self.position = np.zeros(len(joints))
        """In rad or m (k,), as of the last `read`."""
        self.velocity = np.zeros(len(joints))
        """In rad/s or m/s (k,)."""
        self.effort = np.zeros(len(joints))
        """What the actuators do, in N m or N (k,)."""
        self.vectors: dict[str, NDArray[np.float64]] = {}
        """What an IMU or a velocity command would say, (3,) or (4,), by its quantity, if it is observed."""
        self.others: dict[str, NDArray[np.float64]] = {}
        """What only the plant can tell (size,), by the name of its term."""
        of_joints = {"position": self.position, "velocity": self.velocity, "effort": self.effort}
        self._taken: list[_Taken] = []
        start = 0
        for term in spec.terms:
            start += term.size
            entries = slice(start - term.width, start)  # of the newest tick
            place: slice | NDArray[np.intp] = slice(None)
            if term.quantity in of_joints:
                values = of_joints[term.quantity]
                place = np.array([self.names.index(joint) for joint in term.joints], dtype=np.intp)
            elif term.quantity in VECTOR_SIZES:
                values = self.vectors.setdefault(term.quantity, np.zeros(term.width))
            elif term.quantity == "other":
                values = self.others.setdefault(term.name, np.zeros(term.width))
            else:  # cosine and sine follow from the position, and who commands knows the action before
                continue
            self._taken.append(_Taken(entries, np.array(term.scales), np.array(term.offsets), values, place))

    def read(self, observation: NDArray[np.float64]) -> None:
        """Update all values; the observation (n,) is of the same instant."""
        self.position[:] = self._data.qpos[self._qpos]
        self.velocity[:] = self._data.qvel[self._qvel]
        self.effort[:] = self._data.qfrc_actuator[self._qvel]
        for entries, scale, offset, values, place in self._taken:
            values[place] = observation[entries] / scale + offset


class _Taken(NamedTuple):
    """Entries of the observation, what was done to the measured values in them, and where those are kept."""

    entries: slice
    scale: NDArray[np.float64]
    offset: NDArray[np.float64]
    values: NDArray[np.float64]
    place: slice | NDArray[np.intp]
