"""The `metadata.yaml` of a bag, version 8: the newest that every ROS 2 distribution from Humble on reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

_VOLATILE, _TRANSIENT_LOCAL = 2, 1


@dataclass
class Topic:
    """A topic of a bag.

    Attributes:
        name: With its leading slash.
        message_type: Such as `std_msgs/msg/String`.
        type_hash: RIHS01 hash of the type.
        latched: Whether late subscribers are sent the last message (transient local).
        messages: How many the bag has.
    """

    name: str
    message_type: str
    type_hash: str
    latched: bool
    messages: int = 0

    @property
    def qos(self) -> str:
        """The publisher's quality of service, as the YAML that bags hold."""
        profile = {
            "history": 1,
            "depth": 1 if self.latched else 10,
            "reliability": 1,
            "durability": _TRANSIENT_LOCAL if self.latched else _VOLATILE,
            "deadline": _forever(),
            "lifespan": _forever(),
            "liveliness": 1,
            "liveliness_lease_duration": _forever(),
            "avoid_ros_namespace_conventions": False,
        }
        return in_yaml([profile])


def bag_information(file: str, topics: Sequence[Topic], start: int, end: int, rate: float) -> dict[str, Any]:
    """Describe a bag: its MCAP file holds this in YAML, and `metadata.yaml` under `rosbag2_bagfile_information`.

    Args:
        file: Name of the bag's only file.
        topics: All its topics.
        start: Wall clock of the first message in ns.
        end: And of the last.
        rate: Rate of the control loop in Hz.
    """

    def span() -> dict[str, Any]:
        return {
            "starting_time": {"nanoseconds_since_epoch": start},
            "duration": {"nanoseconds": end - start},
            "message_count": sum(topic.messages for topic in topics),
        }

    return {
        "version": 8,
        "storage_identifier": "mcap",
        **span(),
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": [file],
        "files": [{"path": file, **span()}],
        "topics_with_message_count": [
            {
                "topic_metadata": {
                    "name": topic.name,
                    "type": topic.message_type,
                    "serialization_format": "cdr",
                    "offered_qos_profiles": topic.qos,
                    "type_description_hash": topic.type_hash,
                },
                "message_count": topic.messages,
            }
            for topic in topics
        ],
        "custom_data": {"rate": f"{rate}"},
        "ros_distro": "nncontrol_prune",
    }


def in_yaml(value: Any) -> str:
    """Return lists and dictionaries as YAML; one that is in two places of them is written as an alias, so none is."""
    return yaml.safe_dump(value, sort_keys=False, width=math.inf)


def _forever() -> dict[str, int]:
    return {"sec": 9223372036, "nsec": 854775807}
