"""Writing rollouts: a rosbag2 directory with MCAP storage, of which a crash takes the last half second at most."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from mcap.writer import Writer
from numpy.typing import ArrayLike

from nncontrol_prune.files import write_atomically
from nncontrol_prune.rollouts.errors import RolloutError
from nncontrol_prune.rollouts.metadata import Topic, bag_information, in_yaml
from nncontrol_prune.rollouts.records import Kind
from nncontrol_prune.rollouts.schema import (
    ARRAY,
    STEP_LAYOUT,
    STRING,
    array_prefix,
    message_definition,
    serialize_string,
    transition_layout,
    values_in,
)

FLUSH_PERIOD = 0.4
"""How long in s a message may wait in this process's memory, where kill -9 would take it."""

METADATA = "metadata.yaml"


class BagWriter:
    """A bag, written message by message. Writing blocks: the control loop takes a `Recorder`.

    Attributes:
        written: How many messages the operating system has; the others are still in this process's memory.
    """

    def __init__(
        self,
        directory: Path,
        *,
        controller: str = "nn_controller",
        simulator: str = "mujoco_sim",
        observation_size: int,
        action_size: int,
        rate: float,
    ) -> None:
        """Make the bag's directory and open it.

        Args:
            directory: Where to write; it must not exist.
            controller: Name of the controller node, with its namespace if it has one; prefix of its topics.
            simulator: Name of the simulator node, likewise.
            observation_size: Length of the observation vector.
            action_size: Length of the action vector.
            rate: Rate of the control loop in Hz.

        Raises:
            RolloutError: The directory exists already or cannot be written.
        """
        self.written = 0
        self._directory = Path(directory)
        self._path = self._directory / f"{self._directory.absolute().name}_0.mcap"
        self._rate = rate
        self._row = np.empty(values_in(transition_layout(observation_size, action_size)), "<f8")
        self._observation = self._row[2 : 2 + observation_size]
        self._action = self._row[2 + observation_size :]
        self._failed = False
        self._safe_size = 0  # of the file in bytes, with all that is written and nothing else
        self._start = self._end = time.time_ns()
        self._flushed = time.monotonic()

        array_hash, string_hash = message_definition(ARRAY)[1], message_definition(STRING)[1]
        self._topics = {
            Kind.TRANSITION: Topic(f"/{controller.strip('/')}/transition", ARRAY, array_hash, latched=False),
            Kind.STEP: Topic(f"/{simulator.strip('/')}/step", ARRAY, array_hash, latched=False),
            Kind.BUNDLE: Topic(f"/{controller.strip('/')}/bundle", STRING, string_hash, latched=True),
        }
        transition, step = array_prefix(transition_layout(observation_size, action_size)), array_prefix(STEP_LAYOUT)
        self._encode: dict[Kind, Callable[[bytes], bytes]] = {
            Kind.TRANSITION: lambda values: transition + values,
            Kind.STEP: lambda values: step + values,
            Kind.BUNDLE: lambda text: serialize_string(text.decode()),
        }
        with self._reported():
            self._make_directory()
        try:
            with self._reported():
                self._file = self._path.open("xb")
                self._mcap: Any = Writer(self._file)  # its methods are partly untyped
                self._channels = self._open()
        except RolloutError:
            shutil.rmtree(self._directory, ignore_errors=True)  # it is new, and holds no message
            raise

    def transition(self, stamp: float, bundle: int, observation: ArrayLike, action: ArrayLike) -> None:
        """Write what the controller saw and did in one tick.

        Args:
            stamp: When the plant was as observed, in s of the plant's clock.
            bundle: How many swaps the slot had seen.
            observation: Observation vector (n).
            action: Action vector (m), as commanded.

        Raises:
            RolloutError: A vector has another length than the bag's, or the bag cannot be written.
        """
        for name, part, vector in (("observation", self._observation, observation), ("action", self._action, action)):
            if np.shape(vector) != part.shape:
                raise RolloutError(f"{self._directory}: the {name} has shape {np.shape(vector)}, not {part.shape}")
            part[:] = vector
        self._row[0] = stamp
        self._row[1] = bundle
        self.append(Kind.TRANSITION, time.time_ns(), self._row.tobytes())

    def step(self, stamp: float, episode: int, step: int, reward: float, terminated: bool, truncated: bool) -> None:
        """Write what the simulator said of one step.

        Args:
            stamp: The stamp of the transition that the step started from, in s.
            episode: Number of the episode.
            step: Number of the step in the episode.
            reward: Reward of the step.
            terminated: Whether the episode ended with it for good.
            truncated: Whether the episode was cut off after it.

        Raises:
            RolloutError: The bag cannot be written.
        """
        values = np.array((stamp, episode, step, reward, terminated, truncated), "<f8")
        self.append(Kind.STEP, time.time_ns(), values.tobytes())

    def bundle(self, swaps: int, reference: str) -> None:
        """Write which bundle acts from now on.

        Args:
            swaps: How many swaps the slot has seen.
            reference: `name@digest`.

        Raises:
            RolloutError: The bag cannot be written.
        """
        self.append(Kind.BUNDLE, time.time_ns(), f"{swaps} {reference}".encode())

    def append(self, kind: Kind, log_time: int, payload: bytes) -> None:
        """Write a message.

        Args:
            kind: What it is about.
            log_time: Wall clock in ns.
            payload: The message's values as little-endian doubles, or the bundle's text.

        Raises:
            RolloutError: The bag cannot be written.
        """
        topic = self._topics[kind]
        with self._reported():
            data = self._encode[kind](payload)
            self._mcap.add_message(self._channels[kind], log_time, data, log_time, topic.messages)
            self._start = min(self._start, log_time) if self._messages else log_time
            self._end = max(self._end, log_time) if self._messages else log_time
            topic.messages += 1
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Flush if messages have waited for `FLUSH_PERIOD`; for whoever has none to append right now.

        Raises:
            RolloutError: The bag cannot be written.
        """
        if time.monotonic() - self._flushed >= FLUSH_PERIOD:
            self.flush()

    def flush(self) -> None:
        """Hand all messages to the operating system.

        Raises:
            RolloutError: The bag cannot be written.
        """
        self._flushed = time.monotonic()
        if self.written < self._messages:
            with self._reported():
                self._mcap.flush()
            self.written = self._messages
            self._safe_size = self._file.tell()

    def close(self) -> None:
        """Complete the bag: index, metadata.yaml, everything on the disk. Closing twice does no harm.

        Raises:
            RolloutError: The bag cannot be written; what was flushed before can be read.
        """
        if self._file.closed:
            return
        try:
            with self._reported():
                self.flush()
                self._mcap.add_metadata("rosbag2", {"serialized_metadata": in_yaml(self._information())})
                self._mcap.finish()
                self._file.flush()
                os.fsync(self._file.fileno())
                self._safe_size = self._file.tell()
                self._write_metadata_file()
        finally:
            self._file.close()

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _messages(self) -> int:
        return sum(topic.messages for topic in self._topics.values())

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turn what the file system refuses into a sentence, and remember it."""
        if self._failed:
            raise RolloutError(f"cannot write the bag {self._directory}: an earlier write failed")
        try:
            yield
        except OSError as error:
            self._failed = True
            self._cut_back()
            raise RolloutError(f"cannot write the bag {self._directory}: {error}") from error

    def _cut_back(self) -> None:
        """Leave no half of a chunk behind what is written, and no chunk that was not counted."""
        if self._safe_size:
            with suppress(OSError):  # it tries again to write what it could not
                self._file.close()
            with suppress(OSError):  # the bag can be read all the same
                os.truncate(self._path, self._safe_size)

    def _make_directory(self) -> None:
        self._directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._directory.mkdir()
        except FileExistsError as error:
            raise RolloutError(f"{self._directory} exists already; a bag needs a new directory") from error

    def _open(self) -> dict[Kind, int]:
        """Write all that comes before the first message; return the id of each kind's channel."""
        self._mcap.start(profile="ros2", library="nncontrol_prune")
        # ROS 2 reads the version from here, and without it takes the channels' QoS for the newest version's.
        self._mcap.add_metadata("rosbag2", {"serialized_metadata": in_yaml(self._information())})
        schemas: dict[str, int] = {}
        for message_type in (ARRAY, STRING):
            definition, _ = message_definition(message_type)
            schemas[message_type] = self._mcap.register_schema(message_type, "ros2msg", definition.encode())
        channels = {}
        for kind, topic in self._topics.items():
            metadata = {"offered_qos_profiles": topic.qos, "topic_type_hash": topic.type_hash}
            channels[kind] = self._mcap.register_channel(topic.name, "cdr", schemas[topic.message_type], metadata)
        self._file.flush()
        self._safe_size = self._file.tell()
        # A preliminary one, with no messages yet: whatever happens, tools take the directory for a bag.
        self._write_metadata_file()
        return channels

    def _information(self) -> dict[str, Any]:
        return bag_information(self._path.name, list(self._topics.values()), self._start, self._end, self._rate)

    def _write_metadata_file(self) -> None:
        text = in_yaml({"rosbag2_bagfile_information": self._information()})
        write_atomically(self._directory / METADATA, text.encode())
