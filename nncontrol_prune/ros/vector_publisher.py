"""What a simulated plant's IMU says, and the velocity that its environment wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Quaternion, Twist, Vector3
from numpy.typing import NDArray
from rclpy.node import Node
from sensor_msgs.msg import Imu

from nncontrol_prune.ros.messages import NOT_MEASURED
from nncontrol_prune.runtime.observation import level_orientation

UNKNOWN = np.zeros(9)
"""A covariance of something that is measured, nobody says how well."""
ABSENT = np.array([NOT_MEASURED, *np.zeros(8)])
"""A covariance of something that is not measured."""


class VectorPublisher:
    """Publishes the topics `imu` and `cmd_vel`, each only where something of it is observed.

    Where gravity's direction is observed and no orientation, the orientation is one with that gravity and no yaw.

    Args:
        node: Whose topics these are.
        vectors: What is observed, by its quantity; see `plants.joints.JointReadout.vectors`. Read with each message.
    """

    def __init__(self, node: Node, vectors: Mapping[str, NDArray[np.float64]]) -> None:
        self._vectors = vectors
        self._imu = node.create_publisher(Imu, "imu", 10) if set(vectors) - {"velocity_command"} else None
        self._twist = node.create_publisher(Twist, "cmd_vel", 10) if "velocity_command" in vectors else None
        turned = bool({"orientation", "projected_gravity"} & set(vectors))
        self._imu_message = Imu(
            orientation_covariance=UNKNOWN if turned else ABSENT,
            angular_velocity_covariance=self._covariance("angular_velocity"),
            linear_acceleration_covariance=self._covariance("linear_acceleration"),
        )

    def publish(self, stamp: Time) -> None:
        """Send what is observed at this instant."""
        if self._imu is not None:
            message = self._imu_message
            message.header.stamp = stamp
            x, y, z, w = self._orientation()
            message.orientation = Quaternion(x=x, y=y, z=z, w=w)
            message.angular_velocity = _vector(self._values("angular_velocity"))
            message.linear_acceleration = _vector(self._values("linear_acceleration"))
            self._imu.publish(message)
        if self._twist is not None:
            forward, left, turn = self._values("velocity_command")
            self._twist.publish(Twist(linear=_vector((forward, left, 0.0)), angular=_vector((0.0, 0.0, turn))))

    def _covariance(self, quantity: str) -> NDArray[np.float64]:
        return UNKNOWN if quantity in self._vectors else ABSENT

    def _values(self, quantity: str) -> Sequence[float]:
        """Return a quantity (3,); zeros if it is not observed."""
        values = self._vectors.get(quantity)
        return (0.0, 0.0, 0.0) if values is None else values.tolist()

    def _orientation(self) -> Sequence[float]:
        if "orientation" in self._vectors:
            return self._vectors["orientation"].tolist()
        if "projected_gravity" in self._vectors:
            return level_orientation(self._vectors["projected_gravity"].tolist())
        return 0.0, 0.0, 0.0, 1.0


def _vector(values: Sequence[float]) -> Vector3:
    x, y, z = values
    return Vector3(x=x, y=y, z=z)
