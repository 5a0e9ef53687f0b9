"""Recording rollouts out of the loop's way: another process writes, and a full queue never makes the loop wait."""

from __future__ import annotations

import json
import mmap
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.processes import how_it_ended
from nncontrol_prune.rollouts.errors import RolloutError
from nncontrol_prune.rollouts.records import COUNTS, HEAD, MAX_TEXT, READY, STEP_RECORD, TRANSITION_HEAD, Kind

QUEUE_BYTES = 4 * 1024 * 1024
"""Asked of the kernel for the queue between the processes; it may allow less."""

START_TIMEOUT = 30.0
"""How long in s the recorder's process may take to open the bag: half a second, on a loaded machine more."""

Vector = NDArray[np.floating] | Sequence[float]


@dataclass(frozen=True)
class RecorderSummary:
    """What became of everything that was recorded. Transitions, steps and bundles each count as a message."""

    directory: Path
    """The bag."""
    written: int
    """Messages in the bag."""
    dropped_by_loop: int
    """Messages the loop could not hand over: the queue was full, or the recorder's process had ended."""
    dropped_by_recorder: int
    """Messages that were handed over and are not in the bag: the disk was too slow, or an error came first."""
    reason: str | None = None
    """Why the recording failed; None if it did not."""

    @property
    def dropped(self) -> int:
        """Messages that are not in the bag."""
        return self.dropped_by_loop + self.dropped_by_recorder


class _Stream:
    """The records of one kind: their only buffer and their counts. Each kind may have a thread of its own."""

    def __init__(self, size: int) -> None:
        self.buffer = bytearray(size)
        self.accepted = 0
        self.dropped = 0


class Recorder:
    """Hands transitions to a process that writes them. Its methods never block and never raise an error.

    The queue is the kernel's buffer of a socket, so nothing in the loop's process wakes up or takes the GIL. If the
    loop's process is killed, the recorder's process completes the bag and ends. Each of `transition`, `step` and
    `bundle` may be called from a thread of its own.
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
        """Start the recorder's process and wait until the bag is open; do this before the loop starts.

        Args:
            directory: Where to write; it must not exist.
            controller: Name of the controller node, with its namespace if it has one; prefix of its topics.
            simulator: Name of the simulator node, likewise.
            observation_size: Length of the observation vector.
            action_size: Length of the action vector.
            rate: Rate of the control loop in Hz.

        Raises:
            RolloutError: The directory exists already or cannot be written, or the process does not start.
        """
        self._directory = Path(directory)
        self._observation_size, self._action_size = observation_size, action_size
        self._summary: RecorderSummary | None = None
        self._reason: str | None = None  # of the first drop
        self._failure: str | None = None

        self._transitions = _Stream(TRANSITION_HEAD.size + 8 * (observation_size + action_size))
        self._steps = _Stream(STEP_RECORD.size)
        self._bundles = _Stream(HEAD.size + MAX_TEXT)
        self._streams = (self._transitions, self._steps, self._bundles)
        vectors = np.frombuffer(self._transitions.buffer, "<f8", offset=TRANSITION_HEAD.size)
        self._observation, self._action = vectors[:observation_size], vectors[observation_size:]

        bag = {
            "directory": str(self._directory.absolute()),
            "controller": controller,
            "simulator": simulator,
            "observation_size": observation_size,
            "action_size": action_size,
            "rate": rate,
        }
        self._start_process(bag)

    @property
    def directory(self) -> Path:
        """The bag."""
        return self._directory

    @property
    def accepted(self) -> int:
        """Messages handed over to the recorder's process."""
        return sum(stream.accepted for stream in self._streams)

    @property
    def written(self) -> int:
        """Messages in the bag so far; the recorder's process runs about half a second behind."""
        return self._counts()[0]

    @property
    def dropped(self) -> int:
        """Messages dropped so far, by the loop and by the recorder's process."""
        return sum(stream.dropped for stream in self._streams) + self._counts()[1]

    @property
    def failure(self) -> str | None:
        """Why nothing is recorded any more: the recorder's process has ended; None while it runs. For one thread."""
        status = self._process.poll()
        if status is not None and self._failure is None:
            self._failure = self._last_words() or f"the recorder's process {how_it_ended(status)}"
        return self._failure

    @property
    def reason(self) -> str | None:
        """Why the recording ended early, or messages could not be taken; None if nothing is known to be wrong."""
        return self._summary.reason if self._summary is not None else self.failure or self._reason

    def transition(self, stamp: float, bundle: int, observation: Vector, action: Vector) -> bool:
        """Record what the controller saw and did in one tick.

        Args:
            stamp: When the plant was as observed, in s of the plant's clock.
            bundle: How many swaps the slot had seen.
            observation: Observation vector (n).
            action: Action vector (m), as commanded.

        Returns:
            Whether it was handed over; False if it was dropped.
        """
        stream = self._transitions
        try:
            if len(observation) != self._observation_size or len(action) != self._action_size:
                # The assignments below would take one value for all.
                sizes = f"{self._observation_size} and {self._action_size}"
                raise ValueError(f"it has {len(observation)} and {len(action)} values instead of {sizes}")
            TRANSITION_HEAD.pack_into(stream.buffer, 0, Kind.TRANSITION, time.time_ns(), stamp, bundle)
            self._observation[:] = observation
            self._action[:] = action
        except Exception as error:  # whatever it was handed, it must not end the loop
            return self._drop(stream, f"a transition could not be recorded: {error}")
        return self._send(stream, stream.buffer)

    def step(self, stamp: float, episode: float, step: float, reward: float, terminated: bool, truncated: bool) -> bool:
        """Record what the simulator said of one step; one whose numbers are none is dropped.

        Args:
            stamp: The stamp of the transition that the step started from, in s.
            episode: Number of the episode.
            step: Number of the step in the episode.
            reward: Reward of the step.
            terminated: Whether the episode ended with it for good.
            truncated: Whether the episode was cut off after it.

        Returns:
            Whether it was handed over; False if it was dropped.
        """
        stream = self._steps
        now = time.time_ns()
        try:
            # NaN and infinity, which come over the wire as well, have no integer.
            where = int(episode), int(step)
            STEP_RECORD.pack_into(stream.buffer, 0, Kind.STEP, now, stamp, *where, reward, terminated, truncated)
        except Exception as error:  # as above
            return self._drop(stream, f"a step could not be recorded: {error}")
        return self._send(stream, stream.buffer)

    def bundle(self, swaps: int, reference: str) -> bool:
        """Record which bundle acts from now on.

        Args:
            swaps: How many swaps the slot has seen.
            reference: `name@digest`.

        Returns:
            Whether it was handed over; False if it was dropped.
        """
        stream = self._bundles
        text = f"{swaps} {reference}".encode()
        if len(text) > MAX_TEXT:
            return self._drop(stream, f"a bundle's name is longer than {MAX_TEXT} bytes")
        HEAD.pack_into(stream.buffer, 0, Kind.BUNDLE, time.time_ns())
        stream.buffer[HEAD.size : HEAD.size + len(text)] = text
        return self._send(stream, memoryview(stream.buffer)[: HEAD.size + len(text)])

    def close(self, timeout: float = 5.0) -> RecorderSummary:
        """Let the recorder's process complete the bag, and wait for it. Closing twice does no harm.

        Args:
            timeout: How long to wait in s; after that the process is killed, and the bag is cut short.
        """
        if self._summary is None:
            deadline = time.monotonic() + timeout
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            answer = self._failure or self._answer(timeout)
            try:
                status = self._process.wait(max(0.1, deadline - time.monotonic()))
                ended = f"the recorder's process {how_it_ended(status)}" if status else None
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                ended = f"the recorder's process was killed: it had not completed the bag after {timeout:g} s"
            self._socket.close()
            written = self._counts()[0]
            self._summary = RecorderSummary(
                directory=self._directory,
                written=written,
                dropped_by_loop=sum(stream.dropped for stream in self._streams),
                dropped_by_recorder=self.accepted - written,
                reason=answer or ended or self._reason,
            )
        return self._summary

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _start_process(self, bag: dict[str, object]) -> None:
        # Datagrams that arrive whole, in order, and with an end that either side notices.
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_BYTES)
        memory = os.memfd_create("recorder-counts")
        os.ftruncate(memory, COUNTS.size)
        self._memory = mmap.mmap(memory, COUNTS.size)
        options = {"socket": theirs.fileno(), "memory": memory, "bag": bag}
        # The other process must find this package however this one did.
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nncontrol_prune.rollouts.recorder_process", json.dumps(options)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=(theirs.fileno(), memory),
                start_new_session=True,
            )
        except OSError as error:
            raise RolloutError(f"cannot start the recorder's process: {error}") from error
        finally:
            theirs.close()
            os.close(memory)
        answer = self._answer(START_TIMEOUT, until_ready=True)
        if answer != READY.decode():
            self._socket.close()
            self._process.kill()
            self._process.wait()
            raise RolloutError(answer or f"the recorder's process did not open {self._directory}")

    def _answer(self, timeout: float, *, until_ready: bool = False) -> str:
        """Return the last thing the recorder's process says before it ends or is ready; empty if it says nothing."""
        deadline = time.monotonic() + timeout
        answer = b""
        with suppress(OSError):  # the timeout is one, and a connection that was reset
            while True:
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                message = self._socket.recv(4096)
                if not message:
                    break
                answer = message
                if until_ready:
                    break
        self._socket.setblocking(False)  # with a timeout, Python would wait for room before it even tries to send
        return answer.decode()

    def _last_words(self) -> str:
        """Return what the recorder's process said before it ended; never waits, as the loop uses the socket too."""
        answer = b""
        with suppress(OSError):
            while message := self._socket.recv(4096, socket.MSG_DONTWAIT):
                answer = message
        return answer.decode()

    def _send(self, stream: _Stream, record: bytearray | memoryview) -> bool:
        try:
            self._socket.send(record, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return self._drop(stream)
        except OSError as error:
            return self._drop(stream, f"the recorder's process is gone: {error.strerror}")
        stream.accepted += 1
        return True

    def _drop(self, stream: _Stream, reason: str | None = None) -> bool:
        stream.dropped += 1
        self._reason = self._reason or reason
        return False

    def _counts(self) -> tuple[int, int]:
        """Return how many messages the recorder's process has written and dropped so far."""
        written, dropped = COUNTS.unpack_from(self._memory)
        return written, dropped
