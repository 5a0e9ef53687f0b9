"""How long work tells what it does, and hears that it should stop."""

from __future__ import annotations

from collections.abc import Callable


class Cancelled(Exception):
    """The work was cancelled; nothing is left behind."""


Report = Callable[[str, float], None]
"""Takes the name of the stage and the share of it that is done, 0..1."""


class Progress:
    """Reports progress and carries the wish to cancel.

    Args:
        report: Called with each stage and share; None to keep quiet.
        cancelled: Asked now and then whether to stop.
    """

    def __init__(self, report: Report | None = None, cancelled: Callable[[], bool] = lambda: False) -> None:
        self._report = report
        self._cancelled = cancelled

    def __call__(self, stage: str, share: float) -> None:
        """Tell how far a stage is.

        Raises:
            Cancelled: The work is no longer wanted.
        """
        if self._report is not None:
            self._report(stage, share)
        if self._cancelled():
            raise Cancelled(f"cancelled during {stage}")

    def part(self, stage: str, begin: float, end: float) -> Progress:
        """Return the progress of work that takes a stage from one share to another, whatever its own stages are."""
        return Progress(lambda _, share: self(stage, begin + share * (end - begin)))
