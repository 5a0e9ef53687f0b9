"""What a pruning service is asked to do, and what comes of it; imports nothing of what does the work."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.controllers.verdict import Verdict
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.validation.settings import GateSettings


class Job(Spec):
    """One piece of work; what a worker process is told.

    Attributes:
        store: Directory of the bundle store.
        controller: `name@digest` of the dense controller in the store.
        environment: Where the candidate is validated; None to check it on rollouts alone.
        gate: What the gate asks.
        pruning: How to prune; None to validate `candidate` instead.
        rollouts: Bags to prune from; for an off-line check of `candidate`, others than it was pruned from.
        candidate: `name@digest` of a candidate that is in the store already.
        report: Directory for the report; None for the store's own place.
    """

    store: Path
    controller: str
    environment: str | None
    gate: GateSettings
    pruning: PruningSettings | None = None
    rollouts: tuple[Path, ...] = ()
    candidate: str | None = None
    report: Path | None = None


class Outcome(BaseModel):
    """What came of a job."""

    candidate: str
    """`name@digest`."""
    verdict: Verdict
    report: Path | None
    """The report's directory; it is there once the job's progress is 1. None where it could not be written."""
    no_report: str = ""
    """Why it could not be written; empty if it could, or may yet be."""
    pruning: dict[str, object] | None = None
    """The pruning report, where the job pruned."""
