"""The work of the pruning service: prune from rollouts, validate in closed loop, keep both in the store.

The service runs this in a process of its own; the command line runs it directly.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nncontrol_prune.controllers.bundle import Bundle, short
from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.controllers.verdict import Verdict
from nncontrol_prune.plants.tasks import task_of
from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.rollouts.reader import Rollouts, read_rollouts
from nncontrol_prune.runtime.store import BundleStore, StoreError
from nncontrol_prune.service.jobs import Job, Outcome
from nncontrol_prune.service.report import make_report
from nncontrol_prune.validation.episode_cache import EpisodeCache
from nncontrol_prune.validation.evidence import gather
from nncontrol_prune.validation.gate import judge
from nncontrol_prune.validation.offline import check_offline, check_unseen
from nncontrol_prune.validation.selection import ClosedLoop
from nncontrol_prune.validation.settings import GateSettings

if TYPE_CHECKING:
    from nncontrol_prune.pruning.pipeline import PruningReport


HELD_OUT = 0.25
"""Share of the rollouts, the last ones, that a candidate is checked on instead of pruned from without a simulator."""


def carry_out(job: Job, progress: Progress, decided: Callable[[Outcome], None]) -> None:
    """Do a job.

    Args:
        job: What to do.
        progress: Told of every stage, and asked whether to stop.
        decided: Called with the outcome once the verdict is in the store; the report, which it names, is written after.

    Raises:
        ControllerError, RolloutError, PruningError, PlantError, OfflineError: With a sentence that says what is wrong.
        Cancelled: `progress` said so.
    """
    store = BundleStore(job.store)
    dense = store.load(job.controller)
    where: str | Rollouts
    pruning: PruningReport | None = None
    if job.pruning is not None:
        rollouts = with_origin(read(dense, job.rollouts, progress), dense, store)
        where = job.environment or ""
        if job.environment is None:
            rollouts, where = _parted(rollouts)
        candidate, pruning = prune(
            dense,
            rollouts,
            job.pruning,
            gate=job.gate,
            environment=job.environment,
            cache=episode_cache(store),
            progress=progress,
        )
        store.add(candidate)
    elif job.candidate is not None:
        candidate = store.load(job.candidate)
        where = job.environment or unseen_part(candidate, read(dense, job.rollouts, progress))
    else:
        raise StoreError("the job names neither how to prune nor a candidate to validate")
    verdict = judged(candidate, dense, store, where, job.gate, progress)
    store.write_verdict(verdict)
    details = None if pruning is None else pruning.model_dump(mode="json")
    directory = job.report or default_report(store, candidate)
    decided(Outcome(candidate=candidate.reference, verdict=verdict, report=directory, pruning=details))
    report_on(verdict, candidate, dense, store, job.gate, progress, directory, pruning=details)


def _parted(rollouts: Rollouts) -> tuple[Rollouts, Rollouts]:
    """Return what to prune from, and what to check the candidate on, where there is no simulator."""
    last = round((1.0 - HELD_OUT) * len(rollouts))
    return rollouts.rows(slice(last)), rollouts.rows(slice(last, None))


def unseen_part(candidate: Bundle, rollouts: Rollouts) -> Rollouts:
    """Return rollouts to check a candidate on: all, or, if it was pruned from the first of them, the last part.

    Raises:
        OfflineError: It was pruned from these bags, and not only from what is before that part.
    """
    before, last = _parted(rollouts)
    made = candidate.manifest.provenance
    used = None if made is None or made.bags != tuple(rollouts.bags) else made.transitions
    # One bag may have grown since; of several there is no telling which has, and so where the rows are by now.
    if used is not None and (used == len(before) or (used < len(before) and len(rollouts.bags) == 1)):
        return last
    check_unseen(candidate, rollouts)
    return rollouts


def read(dense: Bundle, rollouts: tuple[Path, ...], progress: Progress) -> Rollouts:
    """Read bags with a controller's observations and actions."""
    progress("rollouts", 0.0)
    manifest = dense.manifest
    return read_rollouts(rollouts, observation_size=manifest.observation.size, action_size=manifest.action.size)


def with_origin(rollouts: Rollouts, dense: Bundle, store: BundleStore) -> Rollouts:
    """Return rollouts with a warning if only controllers acted in them that have nothing to do with the one to prune.

    One that was pruned from it, as far as the store tells, has: loops record while those run. Nothing is said of bags
    that do not tell who acted.
    """
    origin = _origin(dense.manifest.parent or dense.reference, store)
    if not rollouts.controllers or origin in (_origin(reference, store) for reference in rollouts.controllers):
        return rollouts
    warning = (
        f"the rollouts were recorded with {', '.join(map(short, rollouts.controllers))}, which as far as the store "
        f"{store.root} tells is neither {short(dense.reference)} nor pruned from it; they may miss the states that it "
        "meets, so record some with it (`nncontrol-prune rollout`)"
    )
    return replace(rollouts, warnings=[*rollouts.warnings, warning])


def _origin(reference: str, store: BundleStore) -> str:
    """Return what a controller was pruned from in the end, as far as the store knows."""
    origin = reference
    with suppress(ControllerError):  # one is not there
        for ancestor in store.lineage(reference):
            origin = ancestor
    return origin


def prune(
    dense: Bundle,
    rollouts: Rollouts,
    settings: PruningSettings,
    *,
    gate: GateSettings,
    environment: str | None,
    cache: EpisodeCache | None = None,
    progress: Progress,
    name: str | None = None,
) -> tuple[Bundle, PruningReport]:
    """Prune a controller; with an environment, candidates are chosen between in closed loop there.

    What the gate will ask of the chosen one, its task and delay and other conditions, is looked at in choosing.
    """
    from nncontrol_prune.pruning.pipeline import prune_bundle

    loop = None if environment is None else ClosedLoop(environment, dense, gate, jobs=settings.jobs, cache=cache)
    return prune_bundle(
        dense,
        rollouts,
        settings,
        name=name,
        choose=None if loop is None else loop.best,
        enough=None if loop is None else loop.enough,
        observe=None if loop is None else loop.observations,
        progress=progress,
    )


def judged(
    candidate: Bundle,
    dense: Bundle,
    store: BundleStore,
    where: str | Rollouts,
    gate: GateSettings,
    progress: Progress,
) -> Verdict:
    """Judge a candidate.

    Args:
        candidate: The controller to be judged.
        dense: The one that it is to replace.
        store: Where episodes are kept.
        where: The environment to run both in; or rollouts, where there is none.
        gate: What is asked.
        progress: Told of every stage, and asked whether to stop.

    Raises:
        GateError, OfflineError, PlantError: With a sentence that says what is wrong.
        Cancelled: `progress` said so.
    """
    if isinstance(where, str):
        return judge(candidate, dense, where, gate, progress, cache=episode_cache(store))
    return check_offline(candidate, dense, where, gate, progress)


def report_on(
    verdict: Verdict,
    candidate: Bundle,
    dense: Bundle,
    store: BundleStore,
    gate: GateSettings,
    progress: Progress,
    directory: Path,
    *,
    pruning: dict[str, object] | None = None,
) -> None:
    """Write the report on a candidate, with what is run for it in closed loop.

    Args:
        verdict: What was decided.
        candidate: The controller that was judged.
        dense: The one that it was judged against.
        store: Where other verdicts are.
        gate: What was asked.
        progress: Told of every stage, and asked whether to stop.
        directory: Where the report goes.
        pruning: How it was pruned, if that is known.

    Raises:
        FileExistsError: The directory holds something else.
        PlantError: The environment raises.
        Cancelled: `progress` said so.
    """
    from nncontrol_prune.service.report_files import write_report  # what draws takes a second to import

    evidence, task = None, ""
    if verdict.environment is not None:
        cache = episode_cache(store)
        evidence = gather(candidate, dense, verdict.environment, gate, progress, cache=cache)
        task = (gate.task or task_of(verdict.environment)).success
    write_report(make_report(verdict, candidate, dense, store, task, evidence, pruning), directory)


def default_report(store: BundleStore, candidate: Bundle) -> Path:
    """Return where the report on a candidate goes, unless somebody says otherwise."""
    return store.root / "reports" / candidate.digest


def episode_cache(store: BundleStore) -> EpisodeCache:
    """Return where the dense controllers' episodes are kept."""
    return EpisodeCache(store.root / "episodes")
