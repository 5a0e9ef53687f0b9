"""The work of the pruning service: prune from rollouts, validate in closed loop, keep both in the store.

The service runs this in a process of its own; the command line runs it directly.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.controllers.verdict import Verdict
from nncontrol_prune.files import write_atomically
from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.rollouts.reader import read_rollouts
from nncontrol_prune.runtime.store import BundleStore, StoreError
from nncontrol_prune.validation.episode_cache import EpisodeCache
from nncontrol_prune.validation.gate import judge
from nncontrol_prune.validation.selection import best_in_closed_loop, observations_in
from nncontrol_prune.validation.settings import GateSettings

if TYPE_CHECKING:
    from nncontrol_prune.pruning.pipeline import PruningReport


class Job(Spec):
    """One piece of work; what a worker process is told.

    Attributes:
        store: Directory of the bundle store.
        controller: `name@digest` of the dense controller in the store.
        environment: Where the candidate is validated.
        gate: What the gate asks.
        pruning: How to prune; None to validate `candidate` instead.
        rollouts: Bags to prune from.
        candidate: `name@digest` of a candidate that is in the store already.
        report: File for the report as JSON; None for none.
    """

    store: Path
    controller: str
    environment: str
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
    pruning: dict[str, object] | None = None
    """The pruning report, where the job pruned."""


def carry_out(job: Job, progress: Progress) -> Outcome:
    """Do a job.

    Raises:
        ControllerError, RolloutError, PruningError, PlantError: With a sentence that says what is wrong.
        Cancelled: `progress` said so.
    """
    store = BundleStore(job.store)
    dense = store.load(job.controller)
    report: PruningReport | None = None
    if job.pruning is not None:
        candidate, report = prune(dense, job.rollouts, job.pruning, environment=job.environment, progress=progress)
        store.add(candidate)
    elif job.candidate is not None:
        candidate = store.load(job.candidate)
    else:
        raise StoreError("the job names neither how to prune nor a candidate to validate")
    verdict = validate(candidate, dense, store, job.environment, job.gate, progress)
    outcome = Outcome(
        candidate=candidate.reference,
        verdict=verdict,
        pruning=None if report is None else report.model_dump(mode="json"),
    )
    if job.report is not None:
        write_atomically(job.report, outcome.model_dump_json(indent=1).encode())
    return outcome


def prune(
    dense: Bundle,
    rollouts: tuple[Path, ...],
    settings: PruningSettings,
    *,
    environment: str | None,
    progress: Progress,
    name: str | None = None,
) -> tuple[Bundle, PruningReport]:
    """Prune a controller from bags; with an environment, candidates are chosen between in closed loop there."""
    from nncontrol_prune.pruning.pipeline import prune_bundle

    progress("rollouts", 0.0)
    manifest = dense.manifest
    data = read_rollouts(rollouts, observation_size=manifest.observation.size, action_size=manifest.action.size)
    return prune_bundle(
        dense,
        data,
        settings,
        name=name,
        choose=None if environment is None else best_in_closed_loop(environment),
        observe=None if environment is None else observations_in(environment),
        progress=progress,
    )


def validate(
    candidate: Bundle, dense: Bundle, store: BundleStore, environment: str, gate: GateSettings, progress: Progress
) -> Verdict:
    """Run the gate, and keep the verdict in the store."""
    verdict = judge(candidate, dense, environment, gate, progress, cache=episode_cache(store))
    store.write_verdict(verdict)
    return verdict


def episode_cache(store: BundleStore) -> EpisodeCache:
    """Return where the dense controllers' episodes are kept."""
    return EpisodeCache(store.root / "episodes")
