"""How processes end, in words."""

from __future__ import annotations

import signal


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
