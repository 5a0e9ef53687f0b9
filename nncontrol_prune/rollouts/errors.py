"""What goes wrong with rollouts, as sentences for the user."""


class RolloutError(Exception):
    """Rollouts cannot be recorded or read; the message names the bag and says why."""
