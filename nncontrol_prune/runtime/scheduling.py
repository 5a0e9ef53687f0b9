"""Real-time scheduling, where the operating system grants it."""

from __future__ import annotations

import os
import threading

DEFAULT_PRIORITY = 50
"""Of SCHED_FIFO, 1..99; what ros2_control takes too."""


def real_time_granted(priority: int) -> bool:
    """Return whether the operating system would grant `run_in_real_time`; tried in a thread that ends at once."""
    granted: list[bool] = []
    thread = threading.Thread(target=lambda: granted.append(run_in_real_time(priority)))
    thread.start()
    thread.join()
    return granted == [True]


def run_in_real_time(priority: int) -> bool:
    """Put the calling thread under SCHED_FIFO, so that it takes the processor from other work the moment it wakes.

    Args:
        priority: 1..99; 0 leaves everything as it is.

    Returns:
        Whether the thread runs in real time now. The operating system refuses it to users without the right: grant
        it with a line `@robot - rtprio 98` in /etc/security/limits.conf.
    """
    if priority == 0 or not hasattr(os, "sched_setscheduler"):
        return False
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError:
        return False
    return True
