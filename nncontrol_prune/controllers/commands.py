"""Commands: what joints are told, made of a controller's actions, and actions made of that."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.specs import ActionSpec


class CommandConverter:
    """Converts actions to commands and back: command = offset + scale · action, joint by joint.

    Args:
        action: The action spec.
    """

    def __init__(self, action: ActionSpec) -> None:
        self._same = action.is_commanded
        self._scale, self._offset = np.array(action.scales), np.array(action.offsets)
        self._command = np.zeros(action.size)

    def command(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the command (m,) of an action (m,); what was returned before is overwritten, or is the action."""
        if self._same:
            return action
        np.multiply(self._scale, action, out=self._command)
        self._command += self._offset
        return self._command

    def action(self, command: NDArray[np.float64], out: NDArray[np.float64]) -> None:
        """Fill in the action (m,) of a command (m,)."""
        if self._same:
            out[:] = command
            return
        np.subtract(command, self._offset, out=out)
        out /= self._scale
