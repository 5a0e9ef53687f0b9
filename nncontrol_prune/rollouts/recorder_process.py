"""The process that writes the bag for a `Recorder`. It ends when the loop's end of the socket closes.

A thread empties the socket, whose buffer is small, into a queue of a minute; the main thread writes. So a disk that
is slow for a while costs nothing, and one that stays slow costs counted drops.
"""

from __future__ import annotations

import json
import mmap
import queue
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from nncontrol_prune.rollouts.errors import RolloutError
from nncontrol_prune.rollouts.records import COUNTS, HEAD, READY, Kind, record_size
from nncontrol_prune.rollouts.writer import FLUSH_PERIOD, BagWriter
from nncontrol_prune.runtime.scheduling import stand_back

QUEUE_SECONDS = 60.0
"""How much of the loop's data may wait for the disk."""
MAX_QUEUE_BYTES = 256 * 1024 * 1024
"""But no more than this."""

POLL_PERIOD = 0.02
"""How often in s the socket is emptied; the smallest usual buffer holds ten times what a 500 Hz loop sends in it."""


class Recording:
    """Takes records from the socket and writes them to a bag.

    Attributes:
        overflowed: How many records found the queue full.
    """

    def __init__(
        self, connection: socket.socket, memory: mmap.mmap, writer: BagWriter, *, size: int, limit: int
    ) -> None:
        """Prepare to record.

        Args:
            connection: Where records come from.
            memory: The counts that the loop's process reads.
            writer: The bag.
            size: Size in bytes of the largest record.
            limit: How many records may wait.
        """
        self.overflowed = 0
        self._received = 0
        self._connection = connection
        self._memory = memory
        self._writer = writer
        self._size = size
        self._queue: queue.Queue[bytes] = queue.Queue(limit)
        self._ended = threading.Event()

    def run(self) -> None:
        """Record until the loop's end of the socket closes.

        Raises:
            RolloutError: The bag cannot be written; nothing more is accepted then.
        """
        receiver = threading.Thread(target=self._receive, daemon=True)
        receiver.start()
        try:
            self._write_all()
            self._writer.close()
        finally:
            # After an error the loop may still record: it must see at once that nobody listens.
            self._connection.shutdown(socket.SHUT_RD)
            receiver.join()
            COUNTS.pack_into(self._memory, 0, self._writer.written, self._received - self._writer.written)

    def _receive(self) -> None:
        while record := self._next_record():
            self._received += 1
            try:
                self._queue.put_nowait(record)
            except queue.Full:
                self.overflowed += 1
        self._ended.set()

    def _next_record(self) -> bytes:
        """Return the next record; nothing at the end."""
        while True:
            try:
                return self._connection.recv(self._size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                # Were this thread waiting in recv, each of the loop's records would wake it, often in the loop's place:
                # measured at 500 Hz, 1 % of the loop's calls then took longer than 0.7 ms, and now 0.04 ms.
                time.sleep(POLL_PERIOD)
            except ConnectionResetError:
                # Reported once, when the loop's process ends with an answer unread; the records are still there.
                continue

    def _write_all(self) -> None:
        while True:
            # Asked before the queue is: what arrives last is in the queue before the end is known.
            ended = self._ended.is_set()
            try:
                record = self._queue.get(timeout=0.0 if ended else FLUSH_PERIOD / 4)
            except queue.Empty:
                if ended:
                    return
                self._writer.flush_if_due()
            else:
                kind, log_time = HEAD.unpack_from(record)
                self._writer.append(Kind(kind), log_time, record[HEAD.size :])
            COUNTS.pack_into(self._memory, 0, self._writer.written, self.overflowed)


def main() -> int:
    """Write the bag that the loop's process asks for."""
    options = json.loads(sys.argv[1])
    connection = socket.socket(fileno=options["socket"])
    memory = mmap.mmap(options["memory"], COUNTS.size)
    bag = options["bag"]
    _stand_back()
    size = record_size(bag["observation_size"], bag["action_size"])
    limit = min(QUEUE_SECONDS * 2 * bag["rate"], MAX_QUEUE_BYTES / size)  # a tick has a transition and a step
    try:
        writer = BagWriter(Path(bag.pop("directory")), **bag)
        with suppress(OSError):  # the loop's process may be gone already; the bag is completed all the same
            connection.send(READY)
        Recording(connection, memory, writer, size=size, limit=max(1, int(limit))).run()
    except RolloutError as error:
        with suppress(OSError):
            connection.send(str(error).encode())
        return 1
    return 0


def _stand_back() -> None:
    """Yield to the loop, and outlive the signals that end it: the bag is completed after the loop has ended."""
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)
    stand_back(5)


if __name__ == "__main__":
    sys.exit(main())
