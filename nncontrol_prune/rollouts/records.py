"""What the loop's process sends to the recorder's: one datagram a record. The loop needs numpy for it and no more."""

from __future__ import annotations

import struct
from enum import IntEnum


class Kind(IntEnum):
    """What a record is about; each kind has its own topic in the bag."""

    TRANSITION = 0
    STEP = 1
    BUNDLE = 2


HEAD = struct.Struct("<qq")
"""How every record starts: its kind, and the wall clock in ns. The values (little-endian doubles) or text follow."""

TRANSITION_HEAD = struct.Struct("<qqdd")
"""How a transition starts: kind, wall clock, stamp and bundle. Observation and action follow."""

STEP_RECORD = struct.Struct("<qq6d")
"""A whole step: kind, wall clock, stamp, episode, step, reward, terminated, truncated."""

MAX_TEXT = 1024
"""Longest text of a bundle record in bytes."""

COUNTS = struct.Struct("<qq")
"""The memory both processes share: how many messages are in the bag, and how many the recorder dropped."""

READY = b"ready"
"""What the recorder answers when the bag is open; any other answer is a sentence that says what failed."""


def record_size(observation_size: int, action_size: int) -> int:
    """Return the size in bytes of the largest record."""
    return max(TRANSITION_HEAD.size + 8 * (observation_size + action_size), STEP_RECORD.size, HEAD.size + MAX_TEXT)
