from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.runtime.statistics import COLUMNS
from nncontrol_prune.service.jobs import Outcome
from nncontrol_prune.service.pruning_service import JobStatus
from nncontrol_prune.transport.messages import Cancel, Deploy, Prune, Status
from nncontrol_prune.transport.session import SessionResult, run_session
from nncontrol_prune.transport.simulation import TickTrace

PLANT = {"has_goal": False, "goal_held": 0.0, "missed_commands": 0}


class Scripted:
    """A process that answers `Status` with one answer after the other, the last for ever, and notes what else comes."""

    def __init__(self, answers: Sequence[dict[str, Any]]) -> None:
        self._answers = list(answers)
        self.asked: list[Any] = []

    def request(self, message: Any) -> dict[str, Any]:
        if not isinstance(message, Status):
            self.asked.append(message)
            return {}
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


class Processes:
    """What a session sees of a simulation, with a pruning service that says what it is told to."""

    def __init__(self, dense: Bundle, jobs: Sequence[JobStatus], deaths: Sequence[list[str]] = ()) -> None:
        self.dense = dense
        self.plant = Scripted([PLANT])
        self.pruning = Scripted([job.model_dump(mode="json") for job in jobs])
        counts = {"ticks": 0, "skipped": 0, "overruns": 0}
        self.controller = Scripted(
            [
                {"active": dense.reference, "parameters": dense.manifest.parameters, "events": [], "faults": 0}
                | {"ticks": counts, "dropped": 0, "bag": None}
            ]
        )
        self.restarts = 0
        self._deaths = list(deaths)

    def check_alive(self) -> None:
        pass

    def dead(self) -> list[str]:
        return self._deaths.pop(0) if self._deaths else []

    def restart_pruning(self) -> None:
        self.restarts += 1

    def ticks(self) -> TickTrace:
        return TickTrace(0, np.zeros((0, len(COLUMNS))))


def session(processes: Processes) -> SessionResult:
    result, _ = run_session(processes, duration=0.05, prune_after=0.0, tell=lambda *_: None)
    return result


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nncontrol_prune.transport.session.POLL", 0.0)
    monkeypatch.setattr("nncontrol_prune.transport.session.AFTER_SWAP", 0.0)


@pytest.fixture
def accepted(small_bundle: Bundle, make_verdict, tmp_path: Path) -> JobStatus:
    outcome = Outcome(candidate=small_bundle.reference, verdict=make_verdict(small_bundle), report=tmp_path)
    return JobStatus(job=1, state="accepted", progress=0.95, message="it said so", outcome=outcome)


def test_session_prunes_deploys_and_waits_for_the_report(shipped_bundle: Bundle, accepted: JobStatus) -> None:
    running = JobStatus(job=1, state="running", stage="choice", progress=0.3)
    reported = accepted.model_copy(update={"progress": 1.0})
    processes = Processes(shipped_bundle, [running, running, accepted, accepted, reported])
    result = session(processes)
    assert [type(message) for message in processes.pruning.asked] == [Prune, Deploy]
    assert (result.job, result.notes) == (reported, [])


def test_report_that_there_is_not_is_told_with_the_reason(shipped_bundle: Bundle, accepted: JobStatus) -> None:
    assert accepted.outcome is not None
    outcome = accepted.outcome.model_copy(update={"report": None, "no_report": "the disk is full"})
    ended = accepted.model_copy(update={"progress": 1.0, "outcome": outcome})
    result = session(Processes(shipped_bundle, [accepted, ended]))
    assert result.notes == ["there is no report: the disk is full"]


def test_job_that_is_not_accepted_is_told_and_nothing_is_deployed(shipped_bundle: Bundle, accepted: JobStatus) -> None:
    processes = Processes(
        shipped_bundle, [accepted.model_copy(update={"state": "rejected", "message": "it falls", "progress": 1.0})]
    )
    assert session(processes).notes == ["pruning ended rejected: it falls"]
    assert [type(message) for message in processes.pruning.asked] == [Prune]


def test_pruning_process_that_ends_is_started_again_and_its_job_is_lost(shipped_bundle: Bundle) -> None:
    running = JobStatus(job=1, state="running", stage="choice", progress=0.3)
    processes = Processes(shipped_bundle, [running], deaths=[[], [], ["pruning"]])
    result = session(processes)
    assert processes.restarts == 1
    assert (result.job.state, result.job.message) == ("failed", "the pruning process ended")
    assert result.notes == ["the pruning process ended; it was started again, and its job is lost"]
    assert not any(isinstance(message, Cancel) for message in processes.pruning.asked)
