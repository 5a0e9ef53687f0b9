"""What the user chooses of the gate."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, FiniteFloat, model_validator

from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.plants.tasks import Task
from nncontrol_prune.validation.betting import values_needed

FIRST_SEEDS = (100_000, 8_000_000)
"""From where to where the gate's first seed may be: the choice among candidates takes its own from below, and so do
rollouts unless they are told another; the search for the largest sparsity (service/boundary.py) from 10,000,000. Not
bounds of the field, which over ROS 2 would make a slider of it."""


class RobustnessSettings(Spec):
    """What both controllers are put through beside the environment as it is; see plants/conditions.py."""

    enabled: bool = True
    margin: Annotated[FiniteFloat, Field(gt=0.0, le=0.5)] = 0.1
    """How much less likely the candidate may succeed than the dense controller, averaged over the conditions."""
    return_ratio: Annotated[FiniteFloat, Field(gt=0.0, lt=1.0)] = 0.9
    """How much may be lost beside the dense controller, as 1 less the share of its usual mean return, averaged over the
    conditions: what tells where no episode fails."""
    max_rounds: Annotated[int, Field(ge=1, le=100_000)] = 150
    """Rounds of one pair under each condition, after which it is inconclusive."""
    push: Annotated[FiniteFloat, Field(ge=0.0)] = 0.3
    """Impulse of a push every two seconds, as the change of speed in m/s that it would give to the whole mass."""
    noise: Annotated[FiniteFloat, Field(ge=0.0)] = 0.02
    """Noise on the observation, as a share of each entry's standard deviation in the dense controller's work."""
    more_delay: Annotated[int, Field(ge=0, le=10)] = 2
    """Up to so many more ticks of delay, each a condition."""
    mass: Annotated[FiniteFloat, Field(ge=0.0, lt=1.0)] = 0.2
    """Change of all masses, up and down."""
    friction: Annotated[FiniteFloat, Field(ge=0.0, lt=1.0)] = 0.2
    """Change of friction and damping, up and down."""


class OfflineSettings(Spec):
    """How far a candidate may be off where only rollouts are there to tell; see validation/offline.py."""

    action_deviation: Annotated[FiniteFloat, Field(gt=0.0)] = 0.1
    """Of its actions, as a share of how much the dense controller's vary."""
    gain_deviation: Annotated[FiniteFloat, Field(gt=0.0)] = 0.3
    """Of its gains, as a share of the dense controller's."""
    state_deviation: Annotated[FiniteFloat, Field(gt=0.0)] = 0.1
    """Of the state one tick later, as a share of how much a tick changes it."""


class GateSettings(Spec):
    """What the gate asks of a candidate."""

    min_episodes: Annotated[int, Field(ge=1, le=100_000)] = 50
    """Pairs of episodes before a candidate may be accepted."""
    max_episodes: Annotated[int, Field(ge=1, le=1_000_000)] = 600
    """Pairs of episodes after which it is inconclusive."""
    success_margin: Annotated[FiniteFloat, Field(gt=0.0, le=0.5)] = 0.05
    """How much less likely the candidate may succeed than the dense controller."""
    return_ratio: Annotated[FiniteFloat, Field(gt=0.0, lt=1.0)] = 0.95
    """Smallest share of the dense controller's mean return to be kept."""
    action_rate_ratio: Annotated[FiniteFloat, Field(gt=1.0)] = 1.5
    """How much faster its commands may change on the mean, times the dense controller's."""
    latency_share: Annotated[FiniteFloat, Field(gt=0.0, le=1.0)] = 0.6
    """Largest share of the control period that 99 of 100 of its actions take to compute, on this machine."""
    margin_share: Annotated[FiniteFloat, Field(ge=0.0, le=1.0)] = 0.5
    """Smallest share of the dense controller's margins to be kept, where the loop comes to rest: of the ticks of delay
    it would stand, and of the factors on its gain in dB."""
    delay: Annotated[int, Field(ge=0, le=100)] = 0
    """Ticks that a command takes to the plant, beyond the next step. The simulator's loop has none."""
    robustness: RobustnessSettings = RobustnessSettings()
    offline: OfflineSettings = OfflineSettings()
    attraction_margin: Annotated[FiniteFloat, Field(gt=0.0, le=0.5)] = 0.1
    """How much less likely the candidate may succeed from anywhere in the task's box of starts."""
    attraction_starts: Annotated[int, Field(ge=0, le=1_000_000)] = 256
    """Starts after which that is inconclusive; 0 to leave it out."""
    task: Task | None = None
    """What success is, and what is brought where; by default what is known of the environment (plants/tasks.py)."""
    first_seed: int = FIRST_SEEDS[0]
    """Seed of the first pair; the next ones follow."""
    jobs: Annotated[int, Field(ge=1, le=1024)] = 1
    """Workers that run episodes; the verdict does not depend on it."""

    @model_validator(mode="after")
    def _limits_go_together(self) -> GateSettings:
        least, most = FIRST_SEEDS
        if not least <= self.first_seed <= most:
            raise ValueError(
                f"first_seed {self.first_seed} is not from {least} to {most}, where neither the choice among "
                "candidates nor the search for the largest sparsity has any"
            )
        if self.min_episodes > self.max_episodes:
            raise ValueError(f"min_episodes {self.min_episodes} is more than max_episodes {self.max_episodes}")
        levels, margin = self.robustness, self.attraction_margin
        _check_shown("max_episodes", self.max_episodes, "success_margin", self.success_margin, self.success_margin)
        _check_shown("max_episodes", self.max_episodes, "return_ratio", self.return_ratio, 1.0 - self.return_ratio)
        if levels.enabled:
            rounds, ratio = levels.max_rounds, levels.return_ratio
            _check_shown("robustness.max_rounds", rounds, "robustness.margin", levels.margin, levels.margin)
            _check_shown("robustness.max_rounds", rounds, "robustness.return_ratio", ratio, 1.0 - ratio)
        if self.attraction_starts:
            _check_shown("attraction_starts", self.attraction_starts, "attraction_margin", margin, margin)
        return self


def _check_shown(limit: str, most: int, name: str, asked: float, allowed: float) -> None:
    """Check that `most` values can show that no more than `allowed` is lost."""
    needed = values_needed(allowed)
    if needed > most:
        raise ValueError(
            f"{limit} {most} cannot show {name} {asked:g}, even of a controller that is the same; "
            f"ask for at least {needed}, or for less"
        )
