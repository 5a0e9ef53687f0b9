"""What the user chooses of a pruning; importable without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from nncontrol_prune.controllers.specs import Spec

Method = Literal["uniform", "grid", "gradient"]
ImportanceName = Literal["taylor", "l2"]


class PruningSettings(Spec):
    """What to make of a controller."""

    sparsity: Annotated[FiniteFloat, Field(ge=0.0, lt=1.0)] = 0.7
    """Share of the parameters to remove."""
    tolerance: Annotated[FiniteFloat, Field(gt=0.0, le=0.5)] = 0.01
    """How far the sparsity may be off."""
    method: Method = "gradient"
    importance: ImportanceName = "taylor"
    distill_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Gradient steps of distillation; 0 for none."""
    max_rows: Annotated[int, Field(ge=256, le=1_000_000)] = 8192
    """Transitions used at the most."""
    perturbation: Annotated[FiniteFloat, Field(ge=0.0, le=10.0)] = 1.0
    """Noise on a second copy of the transitions, in standard deviations of each observation; 0 for no copy."""
    seed: Annotated[int, Field(ge=0)] = 0
