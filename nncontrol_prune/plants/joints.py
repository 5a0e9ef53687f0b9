"""The joint states of a simulated plant, as encoders would report them."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from gymnasium import Env
from numpy.typing import NDArray

from nncontrol_prune.controllers.specs import ObservationSpec, ObservationTerm

SCALAR_JOINTS = (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE))
Place = tuple[NDArray[np.intp], slice]


class JointReadout:
    """Reads the named hinges and slides of a gymnasium MuJoCo environment.

    What the observation says of a joint's position or velocity is what is reported of it, so that a controller that
    reads joint states sees what it was trained on: Hopper and Walker2d clip velocities to ±10, as a sensor saturates.

    Args:
        env: The environment.
        spec: Its observation.
    """

    def __init__(self, env: Env[Any, Any], spec: ObservationSpec) -> None:
        base: Any = env.unwrapped
        model, self._data = base.model, base.data
        joints = [
            model.joint(index)
            for index in range(model.njnt)
            if model.jnt_type[index] in SCALAR_JOINTS and model.joint(index).name
        ]
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
        self._positions: list[Place] = []
        self._velocities: list[Place] = []
        self.others: list[tuple[ObservationTerm, slice]] = []
        """Observation terms that are no joint's, with their place in the observation."""
        start = 0
        for term in spec.terms:
            place = slice(start, start + term.size)
            start += term.size
            if term.quantity == "position":
                self._positions.append((self._indices(term), place))
            elif term.quantity == "velocity":
                self._velocities.append((self._indices(term), place))
            elif term.quantity == "other":
                self.others.append((term, place))

    def read(self, observation: NDArray[np.float64]) -> None:
        """Update positions, velocities and efforts; the observation (n,) is of the same instant."""
        self.position[:] = self._data.qpos[self._qpos]
        self.velocity[:] = self._data.qvel[self._qvel]
        self.effort[:] = self._data.qfrc_actuator[self._qvel]
        for indices, place in self._positions:
            self.position[indices] = observation[place]
        for indices, place in self._velocities:
            self.velocity[indices] = observation[place]

    def _indices(self, term: ObservationTerm) -> NDArray[np.intp]:
        return np.array([self.names.index(joint) for joint in term.joints], dtype=np.intp)
