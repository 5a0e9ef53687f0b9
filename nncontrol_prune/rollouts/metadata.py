"""The `metadata.yaml` of a bag, version 8: the newest that every ROS 2 distribution from Humble on reads."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

_VOLATILE, _TRANSIENT_LOCAL = 2, 1
_FOREVER = "{sec: 9223372036, nsec: 854775807}"


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
        return textwrap.dedent(f"""\
            - history: 1
              depth: {1 if self.latched else 10}
              reliability: 1
              durability: {_TRANSIENT_LOCAL if self.latched else _VOLATILE}
              deadline: {_FOREVER}
              lifespan: {_FOREVER}
              liveliness: 1
              liveliness_lease_duration: {_FOREVER}
              avoid_ros_namespace_conventions: false
            """)


def bag_information(file: str, topics: Sequence[Topic], start: int, end: int, rate: float) -> str:
    """Describe a bag in YAML, as its MCAP file holds it; `metadata_file` makes a `metadata.yaml` of it.

    Args:
        file: Name of the bag's only file.
        topics: All its topics.
        start: Wall clock of the first message in ns.
        end: And of the last.
        rate: Rate of the control loop in Hz.
    """
    count = sum(topic.messages for topic in topics)
    span = f"""\
starting_time:
  nanoseconds_since_epoch: {start}
duration:
  nanoseconds: {end - start}
message_count: {count}
"""
    # A JSON string is a YAML string too, whatever is in it.
    return (
        f"version: 8\nstorage_identifier: mcap\n{span}"
        f"compression_format: ''\ncompression_mode: ''\n"
        f"relative_file_paths:\n  - {json.dumps(file)}\n"
        f"files:\n  - path: {json.dumps(file)}\n{textwrap.indent(span, '    ')}"
        f"topics_with_message_count:\n{''.join(map(_topic, topics))}"
        f"custom_data:\n  rate: '{rate}'\n"
        f"ros_distro: nncontrol_prune\n"
    )


def metadata_file(information: str) -> bytes:
    """Return the contents of a `metadata.yaml`."""
    return ("rosbag2_bagfile_information:\n" + textwrap.indent(information, "  ")).encode()


def _topic(topic: Topic) -> str:
    return f"""\
  - topic_metadata:
      name: {json.dumps(topic.name)}
      type: {topic.message_type}
      serialization_format: cdr
      offered_qos_profiles: {json.dumps(topic.qos)}
      type_description_hash: {topic.type_hash}
    message_count: {topic.messages}
"""
