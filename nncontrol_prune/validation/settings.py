"""What the user chooses of the gate."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, FiniteFloat

from nncontrol_prune.controllers.specs import Spec


class GateSettings(Spec):
    """What the gate asks of a candidate."""

    episodes: Annotated[int, Field(ge=30, le=100_000)] = 50
    """Pairs of episodes."""
    success_margin: Annotated[FiniteFloat, Field(gt=0.0, le=0.5)] = 0.1
    """Largest probability that the dense controller succeeds and the candidate fails from the same start."""
    return_ratio: Annotated[FiniteFloat, Field(gt=0.0, le=1.0)] = 0.95
    """Smallest share of the dense controller's mean return to be kept."""
    first_seed: Annotated[int, Field(ge=0)] = 100_000
    """Seed of the first pair; the next ones follow."""
    jobs: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes that run episodes; the verdict does not depend on it."""
