"""What goes wrong in pruning, as sentences for the user."""


class PruningError(Exception):
    """A controller cannot be pruned as asked; the message names what and where, and what is allowed."""
