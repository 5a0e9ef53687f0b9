"""A session: run the loop, prune its controller from what it logs, swap, go on, and tell what happened."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from nncontrol_prune.config import ConfigError
from nncontrol_prune.controllers.bundle import Bundle, load_bundle
from nncontrol_prune.controllers.errors import BundleError
from nncontrol_prune.controllers.verdict import Verdict
from nncontrol_prune.runtime.statistics import BUNDLE, COMPUTE, Quantiles, summarize
from nncontrol_prune.runtime.store import BundleStore
from nncontrol_prune.service.pruning_service import JobStatus
from nncontrol_prune.transport.live_loop import TickTrace
from nncontrol_prune.transport.messages import Cancel, Deploy, Prune, Status
from nncontrol_prune.transport.network import TransportError
from nncontrol_prune.transport.requests import RequestFailedError
from nncontrol_prune.transport.simulation import Simulation

POLL = 0.2
GOAL_HELD = 1.0
"""Plant seconds at the goal before a swap, so that it can be seen to disturb nothing."""
GOAL_PATIENCE = 15.0
"""Seconds after which the swap comes even if the goal is never held."""
AFTER_SWAP = 10.0
"""Seconds that a session goes on after the swap, at the least."""

PATIENCE = 60.0
"""Seconds without an answer after which a session no longer looks after a job."""

DENSE, PRUNED = "dense", "pruned"
"""What a session's bundles are called."""

Tell = Callable[[str, float | None], None]
"""Takes what is going on, and how much of the pruning job is done where there is one."""


class ControllerFigures(BaseModel):
    """One controller in one session."""

    reference: str
    parameters: int
    compute: Quantiles
    """Reading, inference, limits and command of a tick, in seconds."""
    inference: Quantiles
    """The controller alone, in seconds."""
    ticks: int
    success: str = "not validated"
    return_mean: float | None = None


class SessionResult(BaseModel):
    """What happened in a session."""

    dense: ControllerFigures
    pruned: ControllerFigures | None = None
    job: JobStatus
    swap_duration: float | None = None
    """What the swap added to its tick, in seconds."""
    swap_tick: int | None = None
    swap_tick_compute: float | None = None
    """Compute time of the tick that carried out the swap, in seconds."""
    active_by_swap: list[str]
    """Which controller was active after how many swaps."""
    ticks: int
    skipped: int
    overruns: int
    missed_commands: int | None
    """Plant steps for which no fresh command had come in time; None where the plant does not say."""
    faults: int
    dropped: int
    """Transitions and steps that the recorder could not take."""
    bag: str | None
    notes: list[str] = []


def run_session(
    simulation: Simulation,
    *,
    duration: float | None,
    prune_after: float | None,
    tell: Tell,
    ending: threading.Event | None = None,
) -> tuple[SessionResult, np.ndarray]:
    """Run a session to its end.

    Args:
        simulation: The running processes.
        duration: Seconds; a pruning job under way is seen to its end, and a swap for some seconds more. None to run
            until `ending` is set.
        prune_after: Seconds after which pruning starts; None for not at all.
        tell: Told what goes on.
        ending: Ends the session once it is set; a pruning job under way is cancelled then, and a report finished.

    Returns:
        What happened, and the controller's ticks.

    Raises:
        ProcessError: The plant or the controller ended by itself.
    """
    ending = ending or threading.Event()
    started = time.monotonic()
    end = float("inf") if duration is None else started + duration
    notes: list[str] = []
    phase = "waiting" if prune_after is not None else "running"
    accepted_at, answered_at = 0.0, started
    unanswered = ""
    job = JobStatus()
    while not ending.is_set() and ((now := time.monotonic()) < end or phase in ("pruning", "accepted")):
        simulation.check_alive()
        if (died := simulation.revive_pruning()) is not None:
            notes.append(died)
            job = job.model_copy(update={"state": "failed", "message": "the pruning process ended"})
            phase = "running"
        try:
            if phase == "waiting" and prune_after is not None and now - started >= prune_after:
                simulation.pruning.request(Prune())
                phase = "pruning"
            elif phase == "pruning":
                job = JobStatus.model_validate(simulation.pruning.request(Status()))
                if job.state == "accepted":
                    phase, accepted_at = "accepted", now
                elif job.state != "running":
                    phase = "running"
                    notes.append(f"pruning ended {job.state}: {job.message}")
            elif phase == "accepted" and _may_swap(simulation, now - accepted_at):
                deployed = _active(simulation) == _candidate(job)  # by the service, by itself
                # Asked for once: without an answer it may have been done, and been taken back since.
                phase, end = "running", max(end, now + AFTER_SWAP)
                if not deployed:
                    simulation.pruning.request(Deploy())
            unanswered, answered_at = "", now
        except (TransportError, RequestFailedError) as error:
            unanswered = str(error)
            # Who is busy for a while may answer the next time; of one that has died `revive_pruning` tells.
            waits = phase in ("pruning", "accepted") and isinstance(error, TransportError)
            if not waits or now - answered_at > PATIENCE:
                notes.append(unanswered)
                phase, unanswered = "running", ""
        tell(_describe(phase, job, now - started, unanswered), job.progress if phase == "pruning" else None)
        ending.wait(POLL)
    try:
        last = JobStatus.model_validate(simulation.pruning.request(Status()))  # it may have been asked for from without
        if last.state == "running":
            simulation.pruning.request(Cancel())
            last = JobStatus.model_validate(simulation.pruning.request(Status()))
        job = last if last.job else job  # a service that was started again knows of none
        while job.outcome is not None and not job.finished:
            tell("writing the report" + ("; Ctrl-C again ends it" if ending.is_set() else ""), job.progress)
            time.sleep(POLL)
            job = JobStatus.model_validate(simulation.pruning.request(Status()))
    except (TransportError, RequestFailedError) as error:
        notes.append(str(error))
    if job.outcome is not None and job.outcome.no_report:
        notes.append(f"there is no report: {job.outcome.no_report}")
    return _result(simulation, job, notes)


def _may_swap(simulation: Simulation, waited: float) -> bool:
    plant = simulation.plant.request(Status())
    return not plant["has_goal"] or plant["goal_held"] >= GOAL_HELD or waited > GOAL_PATIENCE


def _active(simulation: Simulation) -> str:
    return str(simulation.controller.request(Status())["active"])


def _candidate(job: JobStatus) -> str | None:
    return None if job.outcome is None else job.outcome.candidate


def _describe(phase: str, job: JobStatus, elapsed: float, unanswered: str) -> str:
    if unanswered:
        return f"{elapsed:3.0f} s  {phase}: {unanswered}"
    if phase == "pruning":
        why = f" ({job.hampered})" if job.hampered else ""
        return f"{elapsed:3.0f} s  pruning: {job.stage or 'starting'}{why}"
    if phase == "accepted":
        return f"{elapsed:3.0f} s  accepted; waiting for the goal to be held before the swap"
    return f"{elapsed:3.0f} s  running"


def _result(simulation: Simulation, job: JobStatus, notes: list[str]) -> tuple[SessionResult, np.ndarray]:
    controller = simulation.controller.request(Status())
    try:
        missed: int | None = simulation.plant.request(Status())["missed_commands"]
    except TransportError as error:  # what else is known need not be lost with it
        missed = None
        notes.append(str(error))
    notes.extend(controller["problems"])
    trace = simulation.ticks()
    ticks = trace.rows[: controller["ticks"]["ticks"] - trace.first]  # the loop has gone on since it was asked
    swap = controller["events"][0] if controller["events"] else None
    verdict = job.outcome.verdict if job.outcome is not None else None
    if verdict is None and swap is not None:  # swapped in from without
        verdict = simulation.store.verdict(swap["reference"].rpartition("@")[2])
    dense = _figures(ticks, 0, simulation.dense.reference, simulation.dense.manifest.parameters, verdict, "dense")
    pruned = None
    if swap is not None:
        pruned = _figures(
            ticks, 1, swap["reference"], simulation.store.manifest(swap["reference"]).parameters, verdict, "pruned"
        )
    result = SessionResult(
        dense=dense,
        pruned=pruned,
        job=job,
        swap_duration=swap["duration"] if swap else None,
        swap_tick=swap["tick"] if swap else None,
        swap_tick_compute=_compute_of(trace, swap["tick"]) if swap else None,
        active_by_swap=[simulation.dense.reference, *(event["reference"] for event in controller["events"])],
        ticks=controller["ticks"]["ticks"],
        skipped=controller["ticks"]["skipped"],
        overruns=controller["ticks"]["overruns"],
        missed_commands=missed,
        faults=controller["faults"],
        dropped=controller["dropped"],
        bag=controller["bag"],
        notes=notes,
    )
    return result, ticks


def _compute_of(trace: TickTrace, tick: int) -> float | None:
    index = tick - trace.first
    return float(trace.rows[index, COMPUTE]) if 0 <= index < len(trace.rows) else None


def _figures(
    ticks: np.ndarray, swaps: int, reference: str, parameters: int, verdict: Verdict | None, who: str
) -> ControllerFigures:
    mine = summarize(ticks[ticks[:, BUNDLE] == swaps])
    figures = ControllerFigures(
        reference=reference,
        parameters=parameters,
        compute=mine.compute,
        inference=mine.inference,
        ticks=mine.ticks,
    )
    summary = getattr(verdict, who, None)
    if summary is not None:
        figures.success = f"{summary.successes} of {summary.episodes}"
        figures.return_mean = summary.return_mean
    return figures


def check_places(directory: Path, controller: str) -> None:
    """Check before a session that its bundles may be put into a directory, see `export_bundles`.

    Args:
        directory: Where they are to go.
        controller: What the session is to run, as the user named it.

    Raises:
        ConfigError: The controller lies where the pruned one goes, or what is there is no bundle.
    """
    pruned = directory / PRUNED
    if Path(controller).exists() and Path(controller).resolve().is_relative_to(pruned.resolve()):
        raise ConfigError(
            f"the controller {controller} lies in {pruned}, which this session may replace; copy it to another place, "
            "or name another --out"
        )
    for label in (DENSE, PRUNED):
        try:
            _bundle_at(directory / label)
        except BundleError as error:
            raise ConfigError(
                f"this session's bundle goes to {directory / label}, and what is there is no bundle ({error}); move it "
                "away, or name another --out"
            ) from error


def export_bundles(store: BundleStore, result: SessionResult, directory: Path) -> list[Path]:
    """Put the session's bundles where a user finds them, under plain names.

    Those of an earlier session go and are kept in the store; without a swap, one that was pruned from the same
    dense controller stays.

    Raises:
        BundleError: What is in the place of one is no bundle.
    """
    written = []
    for label, figures in ((DENSE, result.dense), (PRUNED, result.pruned)):
        target = directory / label
        there = _bundle_at(target)
        reference = None if figures is None else figures.reference
        stays = there is not None and (
            there.manifest.parent == result.dense.reference if reference is None else there.reference == reference
        )
        if there is not None and not stays:
            store.add(there)
            shutil.rmtree(target)
        if reference is not None:
            if not stays:
                store.load(reference).write(target)
            written.append(target)
    return written


def _bundle_at(directory: Path) -> Bundle | None:
    return load_bundle(directory) if directory.exists() else None
