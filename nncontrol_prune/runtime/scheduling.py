"""Who goes first: real-time scheduling where the operating system grants it, and what stands back behind it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

DEFAULT_PRIORITY = 50
"""Of SCHED_FIFO, 1..99; what ros2_control takes too."""

WAIT_WINDOW = 5.0
"""Seconds over which it is told how long a process waits for a processor."""

CALLING = 0
"""Stands for the id of the calling thread."""


def real_time_granted(priority: int) -> bool:
    """Return whether the operating system would grant `run_in_real_time`; tried in a thread that ends at once."""
    granted: list[bool] = []
    thread = threading.Thread(target=lambda: granted.append(run_in_real_time(priority)))
    thread.start()
    thread.join()
    return granted == [True]


def run_in_real_time(priority: int, threads: Iterable[int] = (CALLING,)) -> bool:
    """Put threads under SCHED_FIFO, so that they take the processor from other work the moment they wake.

    Args:
        priority: 1..99; 0 leaves everything as it is.
        threads: Ids of threads of this process, as `running_threads` gives them; those that have ended are skipped.

    Returns:
        Whether the threads run in real time now. The operating system refuses it to users without the right: grant
        it with a line `@robot - rtprio 98` in /etc/security/limits.conf.
    """
    if priority == 0 or not hasattr(os, "sched_setscheduler"):
        return False
    try:
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError:
        return False
    return True


def running_threads() -> set[int]:
    """Return the ids of this process's threads, those of libraries too; none where the system is not Linux."""
    tasks = Path("/proc/self/task")
    return {int(task.name) for task in tasks.iterdir()} if tasks.exists() else set()


def stand_back(niceness: int) -> None:
    """Let other work go before the calling process, which is not in real time any more.

    Call it first thing: threads that a library has started by then are left as they are. What Linux does by session
    is done only in a process that leads one.

    Args:
        niceness: 1..19: how far; 19 is to run only when nothing else wants the processor.
    """
    with contextlib.suppress(OSError):  # where it is not allowed to, it stays as it is
        os.nice(niceness)
        if hasattr(os, "SCHED_IDLE"):
            # Unlike niceness, SCHED_IDLE lets a process that wakes up take the processor at once.
            policy = os.SCHED_IDLE if niceness == 19 else os.SCHED_OTHER
            os.sched_setscheduler(0, policy, os.sched_param(0))
    # Linux shares the processor among sessions first ("autogroups", on by default in most distributions), and policy
    # and niceness of a process count only within its session: a worker that fills its session would get half.
    if os.getsid(0) == os.getpid():  # not a session that others share
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(niceness))


class ProcessorWait:
    """How much of its time a process is ready to run while others have the processors; that of its main thread.

    Args:
        process: Its id.
    """

    def __init__(self, process: int) -> None:
        self._statistics = Path(f"/proc/{process}/schedstat")
        self._began, self._waited = time.monotonic(), 0.0
        self._share = 0.0

    def share(self) -> float:
        """Return it as a share of the last few seconds, 0..1; 0 where the system does not tell."""
        now = time.monotonic()
        if now - self._began >= WAIT_WINDOW:
            try:
                waited = 1e-9 * int(self._statistics.read_text().split()[1])  # proc_pid_schedstat: run, waited, turns
            except OSError:
                return self._share
            self._share = min(1.0, (waited - self._waited) / (now - self._began))
            self._began, self._waited = now, waited
        return self._share
