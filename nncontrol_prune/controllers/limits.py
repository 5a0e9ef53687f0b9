"""Safety limits: the last thing between a controller and the plant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.controllers.specs import ActionSpec


class ActionLimits:
    """Keeps commands within the action's limits, and holds back those that are no numbers.

    Args:
        action: The action spec, with its limits.
        safe_command: What to send when there is nothing better; empty for zero, or the nearest within the limits.

    Raises:
        ControllerError: The safe command has another size than the action, or exceeds its limits.
    """

    safe_command: NDArray[np.float64]
    """What is sent when there is nothing better."""

    def __init__(self, action: ActionSpec, safe_command: Sequence[float] = ()) -> None:
        self._lower = np.asarray(action.lower, dtype=np.float64)
        self._upper = np.asarray(action.upper, dtype=np.float64)
        self._finite = np.zeros(action.size, dtype=bool)
        self.safe_command = np.clip(np.zeros(action.size), self._lower, self._upper)
        if len(safe_command):
            given = np.asarray(safe_command, dtype=np.float64)
            within = given.shape == self._lower.shape and ((given >= self._lower) & (given <= self._upper)).all()
            if not within:
                raise ControllerError(f"safe_command {list(safe_command)} is not one value within each of: {action}")
            self.safe_command = given

    def apply(self, action: NDArray[np.float64]) -> bool:
        """Clip an action (m,) to the limits, in place; return False if it was replaced for holding NaN or infinity."""
        # No temporary arrays, and none of the Python that np.clip and np.all are wrapped in: this runs in every tick.
        np.isfinite(action, out=self._finite)
        if not np.logical_and.reduce(self._finite):
            action[:] = self.safe_command
            return False
        np.maximum(action, self._lower, out=action)
        np.minimum(action, self._upper, out=action)
        return True
