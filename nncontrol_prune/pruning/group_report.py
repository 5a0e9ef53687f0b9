"""What a report says of a pruned group; importable without torch."""

from __future__ import annotations

from typing import Literal

from nncontrol_prune.controllers.specs import Spec


class GroupReport(Spec):
    """What became of one group."""

    name: str
    components: tuple[str, ...]
    kind: Literal["intra-component", "inter-component"]
    channels: int
    kept: int
    coefficient: float
    parameters_per_channel: int
