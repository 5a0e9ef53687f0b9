"""Signals that end a command: the first one ends the work in good order, a second one at once."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def interrupt_by_any_signal() -> list[signal.Signals]:
    """Make whatever ends a process interrupt it as Ctrl-C does, so that nothing is left behind; return those signals.

    One that comes where a terminal is closed, or the connection to it lost, is left to `nohup`.
    """
    ending = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        ending.append(signal.SIGHUP)
    for number in ending:
        signal.signal(number, signal.default_int_handler)
    return ending


@contextmanager
def ending_by_signal() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C, or its like, in the block sets; a second one interrupts."""
    asked = threading.Event()

    def ask(number: int, _: object) -> None:
        interrupt_by_any_signal()
        if number == signal.SIGHUP:
            _leave_terminal()
        asked.set()

    before = {number: signal.signal(number, ask) for number in interrupt_by_any_signal()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_terminal() -> None:
    """Write to nowhere what goes to a terminal: one that is gone answers with errors."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout.fileno(), sys.stderr.fileno()):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(nowhere, stream)
    os.close(nowhere)
