"""What the user chooses of a pruning; importable without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from nncontrol_prune.controllers.specs import Seed, Spec

Method = Literal["uniform", "threshold", "grid", "gradient", "tpe"]
ImportanceName = Literal["taylor", "fisher", "obs", "l2", "random"]
CostName = Literal["parameters", "multiplications", "latency"]

Positive = Annotated[FiniteFloat, Field(gt=0.0)]
ChannelMultiple = Annotated[int, Field(ge=1, le=1024)]


class PruningSettings(Spec):
    """What to make of a network."""

    sparsity: Annotated[FiniteFloat, Field(ge=0.0, lt=1.0)] = 0.7
    """Share of the cost to remove."""
    tolerance: Annotated[FiniteFloat, Field(gt=0.0, le=0.5)] = 0.01
    """How far the sparsity may be off."""
    cost: CostName = "parameters"
    """What the sparsity is a share of."""
    channel_multiple: ChannelMultiple = 1
    """Groups keep a multiple of so many channels, or all of theirs: where a runtime computes channels in blocks, a part
    of a block takes as long as a whole one."""
    method: Method = "gradient"
    """How the coefficients are found."""
    importance: ImportanceName = "obs"
    """How the channels of a group are ranked."""
    terms: dict[str, Annotated[FiniteFloat, Field(ge=0.0)]] | None = None
    """Weights of what the application asks for, by name; None for the architecture's own."""
    limits: dict[str, Positive] = Field(default_factory=dict)
    """Largest mean errors allowed, by the name of the term."""
    component_weights: dict[str, Positive] = Field(default_factory=dict)
    """How much more the channels of a component matter, for the method `threshold`; 1 where nothing is said."""
    rounds: Annotated[int, Field(ge=1, le=20)] = 1
    """Gradual pruning: surgery and reconstruction in so many steps."""
    distill_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Gradient steps of distillation; 0 for none."""
    on_policy_rounds: Annotated[int, Field(ge=0, le=20)] | None = None
    """Times that the reconstruction is repeated, and that distillation is told more, with states the pruned controller
    itself gets into, in the environment; None for some wherever that is possible."""
    variations: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Choices of coefficients near the best one that are tried in closed loop, in the environment and after all other
    steps, while it does not do as the dense controller does; None for some wherever that is possible."""
    max_rows: Annotated[int, Field(ge=256, le=1_000_000)] = 8192
    """Transitions used at the most."""
    perturbation: Annotated[FiniteFloat, Field(ge=0.0, le=10.0)] = 1.0
    """Noise on a second copy of the transitions, in standard deviations of each observation; 0 for no copy."""
    jobs: Annotated[int, Field(ge=1, le=1024)] = 1
    """Workers: choices that the grid judges at the same time, and episodes that choose in closed loop; the result does
    not depend on it."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _weights_count(self) -> PruningSettings:
        if self.component_weights and self.method != "threshold":
            raise ValueError(f"component_weights are for the method threshold, and the method is {self.method}")
        return self
