"""What our processes do alike: take a line from their parent, answer in lines, and tell how one ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from typing import TextIO


def line_from_parent() -> tuple[str, TextIO]:
    """Return the line that the parent says at the start, and where lines go that answer it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles the terminal's Ctrl-C, for all of them
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
    return str(error) or type(error).__name__


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
