"""What goes wrong in pruning, as sentences for the user."""

from collections.abc import Sequence


class PruningError(Exception):
    """A controller cannot be pruned as asked; the message names what and where, and what is allowed."""


class NoChoice(PruningError):
    """No whole number of channels meets the budget.

    Args:
        message: What and where, and what is allowed.
        nearest: The sparsity nearest to the one that was asked for, of those that were found.
    """

    def __init__(self, message: str, nearest: float) -> None:
        super().__init__(message)
        self.nearest = nearest


class Unreachable(NoChoice):
    """No choice of channels is as sparse as was asked for."""


class Stuck(PruningError):
    """Some groups can lose no channel, though the trace says that they can; others do.

    Args:
        message: What is wrong with the first of them.
        groups: Their names.
    """

    def __init__(self, message: str, groups: Sequence[str]) -> None:
        super().__init__(message)
        self.groups = groups


def in_multiples(multiple: int) -> str:
    """Return what to say behind `channels` where they are counted in multiples."""
    return f" in multiples of {multiple}" if multiple > 1 else ""


def failing(which: str, error: Exception) -> PruningError:
    """Return what to raise where a network does not run any more with another number of channels."""
    return PruningError(
        f"{which} fails with {type(error).__name__}: {error}; if a size is written into its forward pass as a number, "
        "write -1 (of an image, x.unflatten(1, (-1, 7, 7))) or take it from a tensor's shape"
    )
