"""What our processes do alike: take a line from their parent, answer in lines, and tell how one ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from typing import Any, TextIO, cast


class BestEffortStream:
    """A text stream that drops what it cannot write, as on a full disk or to a terminal that is gone.

    For what is told on the way: a loop must not end because nobody can be told how it is doing.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tell_as_well_as_possible() -> None:
    """Let nothing that is said on standard error end the process, wherever that leads."""
    if sys.stderr is not None:  # as it is where the process began without one
        sys.stderr = cast(TextIO, BestEffortStream(sys.stderr))


def line_from_parent() -> tuple[str, TextIO]:
    """Return the line that the parent says at the start, and where lines go that answer it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles the terminal's Ctrl-C, for all of them
    tell_as_well_as_possible()
    line = sys.stdin.readline()
    # Whatever a library prints goes to the log: it must not get between the answers, nor fill a pipe that nobody reads.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return line, answers


def end_workers() -> None:
    """End the processes that share the work of this one; joblib keeps some for more, which would outlive it."""
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join()


def told_to_parent(error: Exception) -> str:
    """Return what the parent is told of an error; the traceback of one that is none of ours goes to the log."""
    if not type(error).__module__.startswith("nncontrol_prune."):
        traceback.print_exception(error)
    # A file's name need not be text; what is told goes on as JSON, which has no other.
    return str(error).encode(errors="backslashreplace").decode() or type(error).__name__


def how_it_ended(status: int) -> str:
    """Return what goes behind the name of a process that has ended.

    Args:
        status: As `subprocess` gives it: that of its exit, or the negative number of the signal that killed it.
    """
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal has no name
        return f"was killed by signal {-status}"
    return f"was killed by signal {-status} ({name})"
