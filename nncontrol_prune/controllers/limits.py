"""Safety limits: the last thing between a controller and the plant."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.specs import ActionSpec


class ActionLimits:
    """Keeps commands within the action's limits, and holds back those that are no numbers.

    Args:
        action: The action spec, with its limits.
    """

    safe_command: NDArray[np.float64]
    """What is sent when there is nothing better: zero, or the nearest value within the limits."""

    def __init__(self, action: ActionSpec) -> None:
        self._lower = np.asarray(action.lower, dtype=np.float64)
        self._upper = np.asarray(action.upper, dtype=np.float64)
        self._finite = np.zeros(action.size, dtype=bool)
        self.safe_command = np.clip(np.zeros(action.size), self._lower, self._upper)

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
