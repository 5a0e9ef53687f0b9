from __future__ import annotations

import threading
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncontrol_prune.config import ConfigError
from nncontrol_prune.controllers.bundle import Bundle, load_bundle
from nncontrol_prune.runtime.statistics import COLUMNS, summarize
from nncontrol_prune.runtime.store import BundleStore
from nncontrol_prune.service.jobs import Outcome
from nncontrol_prune.service.pruning_service import JobStatus
from nncontrol_prune.transport.live_loop import TickTrace
from nncontrol_prune.transport.messages import Cancel, Deploy, Prune, Status
from nncontrol_prune.transport.network import TransportError
from nncontrol_prune.transport.session import (
    ControllerFigures,
    SessionResult,
    check_places,
    export_bundles,
    run_session,
)

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

    def __init__(
        self,
        dense: Bundle,
        jobs: Sequence[JobStatus],
        deaths: Sequence[bool] = (),
        store: BundleStore | None = None,
    ) -> None:
        self.dense = dense
        self.store = store
        self.plant = Scripted([PLANT])
        self.pruning = Scripted([job.model_dump(mode="json") for job in jobs])
        counts = {"ticks": 0, "skipped": 0, "overruns": 0}
        self.controller = Scripted(
            [
                {"active": dense.reference, "parameters": dense.manifest.parameters, "events": [], "faults": 0}
                | {"ticks": counts, "dropped": 0, "bag": None, "problems": []}
            ]
        )
        self.restarts = 0
        self._deaths = list(deaths)

    def check_alive(self) -> None:
        pass

    def revive_pruning(self) -> str | None:
        died = bool(self._deaths) and self._deaths.pop(0)
        self.restarts += died
        return "it died" if died else None

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


def test_results_are_not_lost_with_a_plant_that_does_not_answer(
    shipped_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def request(_: Any) -> dict[str, Any]:
        raise TransportError("no answer from the plant")

    processes = Processes(shipped_bundle, [JobStatus()])
    monkeypatch.setattr(processes.plant, "request", request)
    result, _ = run_session(processes, duration=0.05, prune_after=None, tell=lambda *_: None)
    assert (result.missed_commands, result.notes) == (None, ["no answer from the plant"])
    assert result.dense.reference == shipped_bundle.reference


class Hiccup(Scripted):
    """A process that does not answer `Status` the times that are named, counted from zero."""

    def __init__(self, answers: Sequence[dict[str, Any]], silent: Container[int]) -> None:
        super().__init__(answers)
        self._silent, self._times = silent, -1

    def request(self, message: Any) -> dict[str, Any]:
        if isinstance(message, Status):
            self._times += 1
            if self._times in self._silent:
                raise TransportError("no answer within 15 s")
        return super().request(message)


def test_job_goes_on_while_a_process_is_too_busy_to_answer(shipped_bundle: Bundle, accepted: JobStatus) -> None:
    running = JobStatus(job=1, state="running", stage="choice", progress=0.3)
    reported = accepted.model_copy(update={"progress": 1.0})
    processes = Processes(shipped_bundle, [])
    statuses = [running, running, accepted, accepted, reported]
    processes.pruning = Hiccup([job.model_dump(mode="json") for job in statuses], {1})
    processes.plant = Hiccup([PLANT], {0})
    told: list[str] = []
    result, _ = run_session(processes, duration=0.05, prune_after=0.0, tell=lambda what, _: told.append(what))
    assert [type(message) for message in processes.pruning.asked] == [Prune, Deploy]
    assert (result.job, result.notes) == (reported, [])
    assert sum("no answer within 15 s" in what for what in told) == 2


def test_deployment_whose_answer_does_not_come_is_not_asked_for_again(
    shipped_bundle: Bundle, accepted: JobStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = accepted.model_copy(update={"progress": 1.0})
    processes = Processes(shipped_bundle, [accepted, reported])
    request = processes.pruning.request

    def lost(message: Any) -> dict[str, Any]:
        answer = request(message)
        if isinstance(message, Deploy):
            raise TransportError("no answer within 15 s")
        return answer

    monkeypatch.setattr(processes.pruning, "request", lost)
    result = session(processes)
    assert [type(message) for message in processes.pruning.asked] == [Prune, Deploy]
    assert (result.job, result.notes) == (reported, ["no answer within 15 s"])


def test_nothing_is_deployed_that_the_service_has_deployed_by_itself(
    shipped_bundle: Bundle, accepted: JobStatus
) -> None:
    assert accepted.outcome is not None
    reported = accepted.model_copy(update={"progress": 1.0})
    processes = Processes(shipped_bundle, [accepted, reported])
    status = processes.controller.request(Status())
    processes.controller = Hiccup([{**status, "active": accepted.outcome.candidate}], {0})
    result = session(processes)
    assert [type(message) for message in processes.pruning.asked] == [Prune]
    assert (result.job, result.notes) == (reported, [])


def test_job_whose_process_never_answers_is_given_up(shipped_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nncontrol_prune.transport.session.PATIENCE", 0.0)
    processes = Processes(shipped_bundle, [])
    processes.pruning = Hiccup([JobStatus().model_dump(mode="json")], range(1000))
    assert "no answer within 15 s" in session(processes).notes


def test_job_that_is_not_accepted_is_told_and_nothing_is_deployed(shipped_bundle: Bundle, accepted: JobStatus) -> None:
    processes = Processes(
        shipped_bundle, [accepted.model_copy(update={"state": "rejected", "message": "it falls", "progress": 1.0})]
    )
    assert session(processes).notes == ["pruning ended rejected: it falls"]
    assert [type(message) for message in processes.pruning.asked] == [Prune]


def test_pruning_process_that_ends_is_started_again_and_its_job_is_lost(shipped_bundle: Bundle) -> None:
    running = JobStatus(job=1, state="running", stage="choice", progress=0.3)
    processes = Processes(shipped_bundle, [running, JobStatus()], deaths=[False, False, True])
    result = session(processes)
    assert processes.restarts == 1
    assert (result.job.state, result.job.message) == ("failed", "the pruning process ended")
    assert result.notes == ["it died"]
    assert not any(isinstance(message, Cancel) for message in processes.pruning.asked)


def test_session_that_is_ended_cancels_its_job_and_tells_what_happened(shipped_bundle: Bundle) -> None:
    ending = threading.Event()
    running = JobStatus(job=1, state="running", stage="choice", progress=0.3)
    cancelled = running.model_copy(update={"state": "cancelled"})
    processes = Processes(shipped_bundle, [running, running, cancelled])

    def tell(what: str, _: float | None) -> None:
        if "choice" in what:
            ending.set()

    result, _ = run_session(processes, duration=None, prune_after=0.0, tell=tell, ending=ending)
    assert [type(message) for message in processes.pruning.asked] == [Prune, Cancel]
    assert (result.job, result.notes) == (cancelled, [])


def test_job_that_was_asked_for_from_without_ends_with_the_session(shipped_bundle: Bundle) -> None:
    running = JobStatus(job=1, state="running", stage="choice", progress=0.3)
    cancelled = running.model_copy(update={"state": "cancelled"})
    processes = Processes(shipped_bundle, [running, cancelled])
    result, _ = run_session(processes, duration=0.0, prune_after=None, tell=lambda *_: None)
    assert [type(message) for message in processes.pruning.asked] == [Cancel]
    assert (result.job, result.notes) == (cancelled, [])


def test_what_is_wrong_with_the_loop_in_the_end_is_noted(shipped_bundle: Bundle) -> None:
    processes = Processes(shipped_bundle, [JobStatus()])
    problem = "recording: the disk is full"
    processes.controller = Scripted([{**processes.controller.request(Status()), "problems": [problem]}])
    result, _ = run_session(processes, duration=0.0, prune_after=None, tell=lambda *_: None)
    assert result.notes == [problem]


def test_controller_swapped_in_by_hand_has_the_figures_that_the_store_knows(
    store: BundleStore, shipped_bundle: Bundle, make_cartpole_bundle, make_verdict
) -> None:
    pruned = make_cartpole_bundle(parent=shipped_bundle, name="pruned")
    store.add(pruned)
    store.write_verdict(make_verdict(pruned))
    processes = Processes(shipped_bundle, [JobStatus()], store=store)
    status = processes.controller.request(Status())
    swaps = [
        {"reference": reference, "duration": 0.0, "tick": 0}
        for reference in (pruned.reference, shipped_bundle.reference)
    ]
    processes.controller = Scripted([{**status, "events": swaps}])
    result, _ = run_session(processes, duration=0.0, prune_after=None, tell=lambda *_: None)
    assert result.pruned is not None
    assert (result.pruned.parameters, result.pruned.success) == (pruned.manifest.parameters, "1 of 1")


def export(store: BundleStore, directory: Path, dense: Bundle, pruned: Bundle | None = None) -> list[Path]:
    """Export the bundles of a session that had these controllers."""
    none = summarize(np.zeros((0, len(COLUMNS))))

    def figures(bundle: Bundle) -> ControllerFigures:
        store.add(bundle)
        parameters = bundle.manifest.parameters
        return ControllerFigures(
            reference=bundle.reference, parameters=parameters, compute=none.compute, inference=none.inference, ticks=0
        )

    result = session(Processes(dense, [JobStatus()])).model_copy(
        update={"dense": figures(dense), "pruned": None if pruned is None else figures(pruned)}
    )
    return export_bundles(store, result, directory)


def test_session_without_a_swap_leaves_what_was_pruned_from_the_same_controller(
    store: BundleStore, tmp_path: Path, shipped_bundle: Bundle, make_cartpole_bundle
) -> None:
    pruned = make_cartpole_bundle(parent=shipped_bundle, name="pruned")
    assert export(store, tmp_path, shipped_bundle, pruned) == [tmp_path / "dense", tmp_path / "pruned"]
    assert export(store, tmp_path, shipped_bundle) == [tmp_path / "dense"]
    assert load_bundle(tmp_path / "pruned").reference == pruned.reference


def test_bundles_of_another_controllers_session_go_to_the_store(
    tmp_path: Path, shipped_bundle: Bundle, small_bundle: Bundle, make_cartpole_bundle
) -> None:
    pruned = make_cartpole_bundle(parent=shipped_bundle, name="pruned")
    export(BundleStore(tmp_path / "first"), tmp_path, shipped_bundle, pruned)
    second = BundleStore(tmp_path / "second")
    export(second, tmp_path, small_bundle)
    assert not (tmp_path / "pruned").exists()
    assert load_bundle(tmp_path / "dense").reference == small_bundle.reference
    for gone in (shipped_bundle, pruned):
        second.load(gone.reference)


def test_controller_that_the_session_would_replace_is_refused(tmp_path: Path, small_bundle: Bundle) -> None:
    for label in ("dense", "pruned"):
        small_bundle.write(tmp_path / label)
    check_places(tmp_path, str(tmp_path / "dense"))
    check_places(tmp_path, "cartpole_swingup_sac")
    with pytest.raises(ConfigError, match=r"pruned lies in .*pruned, which this session may replace; copy it"):
        check_places(tmp_path, str(tmp_path / "dense" / ".." / "pruned"))


def test_what_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"what is there is no bundle .*; move it away, or name another --out"):
        check_places(tmp_path, "cartpole_swingup_sac")
