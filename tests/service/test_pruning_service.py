from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from nncontrol_prune.controllers.bundle import Bundle, load_bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.conditions import Conditions
from nncontrol_prune.plants.tasks import task_of
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.resources import shipped_controllers
from nncontrol_prune.runtime.store import BundleStore, NotAcceptedError
from nncontrol_prune.service import pruning_service
from nncontrol_prune.service.jobs import Job, Outcome
from nncontrol_prune.service.pruning_service import JobStatus, PruningService, ServiceError
from nncontrol_prune.service.rollouts import record_episodes
from nncontrol_prune.service.work import episode_cache
from nncontrol_prune.validation.selection import SELECTION_SEED
from nncontrol_prune.validation.settings import GateSettings, OfflineSettings


@pytest.fixture(scope="module")
def bag(shipped_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bags") / "bag"
    record_episodes(shipped_bundle, CARTPOLE, range(4), path, lambda _: None)
    return path


@pytest.fixture
def service(store: BundleStore):
    service = PruningService(store)
    yield service
    service.close()


@pytest.fixture
def job(store: BundleStore, shipped_bundle: Bundle, bag: Path, tmp_path: Path, lenient_gate: GateSettings) -> Job:
    """As little work as there can be of every kind; but for the report, which takes the longest."""
    return Job(
        store=store.root,
        controller=store.add(shipped_bundle),
        environment=CARTPOLE,
        gate=lenient_gate,
        pruning=PruningSettings(sparsity=0.7, method="uniform", max_rows=1000, on_policy_rounds=0, variations=0),
        rollouts=(bag,),
        report=tmp_path / "report",
    )


@pytest.fixture
def offline_job(job: Job) -> Job:
    """The same without an environment."""
    # Three short episodes are little to prune from, and the fourth to check on.
    gate = GateSettings(offline=OfflineSettings(action_deviation=0.5, state_deviation=0.5))
    pruning = PruningSettings(sparsity=0.3, method="uniform")
    return job.model_copy(update={"environment": None, "report": None, "pruning": pruning, "gate": gate})


def wait_for(service: PruningService, *stages: str, timeout: float = 300.0) -> JobStatus:
    """Wait until the job is in one of some stages, or has ended; workers stand back, so a busy machine is slow."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        status = service.status
        if status.finished or status.stage in stages:
            return status
        time.sleep(0.01)
    raise AssertionError(f"still {service.status}")


def bundles(store: BundleStore) -> list[str]:
    return sorted(path.name for path in (store.root / "bundles").iterdir())


def test_job_prunes_validates_and_keeps_the_result(service: PruningService, store: BundleStore, job: Job) -> None:
    assert job.pruning is not None
    choosing = job.pruning.model_copy(update={"on_policy_rounds": 1})
    assert service.start(job.model_copy(update={"pruning": choosing})) == 1
    status = wait_for(service)
    assert (status.state, status.progress) == ("accepted", 1.0), status.message
    assert status.outcome is not None
    candidate = store.load(status.outcome.candidate)
    store.check_accepted(candidate)
    dense = store.load(job.controller)
    assert candidate.manifest.parameters < 0.31 * dense.manifest.parameters
    kept = episode_cache(store).read(dense, CARTPOLE, Conditions(), task_of(CARTPOLE))
    assert {SELECTION_SEED, job.gate.first_seed} <= kept.keys()
    assert job.report is not None
    assert status.outcome.report == job.report
    assert status.outcome.candidate in (job.report / "report.json").read_text()


def test_job_without_an_environment_checks_on_rollouts_that_were_held_out(
    service: PruningService, store: BundleStore, offline_job: Job
) -> None:
    service.start(offline_job)
    status = wait_for(service)
    assert status.state == "accepted", status.message
    assert status.outcome is not None
    assert status.outcome.verdict.offline
    candidate = store.load(status.outcome.candidate)
    assert status.outcome.report == store.root / "reports" / candidate.digest
    assert (status.outcome.report / "report.json").exists()
    with pytest.raises(NotAcceptedError, match="allow_offline"):
        store.check_accepted(candidate)


def test_verdict_is_told_before_the_report_is_written(service: PruningService, store: BundleStore, job: Job) -> None:
    service.start(job)
    status = wait_for(service, "report")
    assert (status.state, status.finished) == ("accepted", False), status.message
    assert status.outcome is not None
    store.check_accepted(store.load(status.outcome.candidate))
    assert status.outcome.report is not None
    assert not status.outcome.report.exists()
    with pytest.raises(ServiceError, match="busy: job 1 is in stage report"):
        service.start(job)
    assert wait_for(service).finished
    assert status.outcome.report.exists()


def test_job_that_is_cancelled_while_it_reports_stays_accepted(service: PruningService, job: Job) -> None:
    service.start(job)
    wait_for(service, "report")
    service.cancel()
    status = service.status
    assert (status.state, status.finished) == ("accepted", True)
    assert status.message.endswith("; there is no report: cancelled")
    assert status.outcome is not None
    assert status.outcome.report is None
    assert job.report is not None
    assert not job.report.exists()
    assert not list(job.report.parent.glob(".writing-*"))
    with pytest.raises(ServiceError, match="no running job"):
        service.cancel()


def test_report_that_cannot_be_written_takes_nothing_back(service: PruningService, job: Job) -> None:
    assert job.report is not None
    job.report.write_text("something else")
    service.start(job)
    status = wait_for(service)
    assert status.state == "accepted"
    assert "; there is no report: " in status.message
    assert "is no directory" in status.message
    assert job.report.read_text() == "something else"


class NoProcessor:
    """Stands for a computer that is busy with other work."""

    def __init__(self, process: int) -> None:
        assert process > 0

    def share(self) -> float:
        return 0.87


def test_job_that_gets_no_processor_says_so_as_long_as_it_runs(
    service: PruningService, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning_service, "ProcessorWait", NoProcessor)
    service.start(job)
    status = service.status
    assert status.waiting == 0.9
    assert status.hampered == "other work has the processors: job 1 waits for one 90% of the time"
    told = status.model_dump(mode="json")
    assert told["hampered"] == status.hampered, "whoever asks over the network reads it too"
    assert JobStatus.model_validate(told) == status
    service.cancel()
    assert service.status.waiting == 0.0
    assert service.status.hampered == ""


def test_waiting_is_not_remembered_by_the_next_service(
    store: BundleStore, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning_service, "ProcessorWait", NoProcessor)
    service = PruningService(store, tmp_path / "job.json")
    try:
        service.start(job)
        assert service.status.waiting == 0.9
        assert wait_for(service, "report").outcome is not None
        left = JobStatus.model_validate_json((tmp_path / "job.json").read_bytes())  # what a successor would find
        assert left.state == "accepted"
        assert left.waiting == 0.0
    finally:
        service.close()


def test_second_job_is_refused_while_one_runs(service: PruningService, job: Job) -> None:
    service.start(job)
    with pytest.raises(ServiceError, match="busy: job 1"):
        service.start(job)


def test_rejected_candidate_is_kept_with_its_verdict_and_cannot_be_staged(
    service: PruningService, store: BundleStore, job: Job
) -> None:
    ruinous = PruningSettings(sparsity=0.998, method="uniform", tolerance=0.05, variations=0)
    service.start(job.model_copy(update={"pruning": ruinous}))
    status = wait_for(service, "report")
    assert status.state == "rejected"
    assert "success" in status.message
    assert status.outcome is not None
    with pytest.raises(Exception, match="rejected"):
        store.check_accepted(store.load(status.outcome.candidate))


@pytest.mark.parametrize("stage", ["starting", "rollouts", "coefficients", "validation"])
def test_cancelling_leaves_nothing_behind(service: PruningService, store: BundleStore, job: Job, stage: str) -> None:
    slow = {"gate": GateSettings(min_episodes=5000, max_episodes=5000)}
    if stage != "validation":
        slow["pruning"] = PruningSettings(method="gradient")
    before = bundles(store)
    service.start(job.model_copy(update=slow))
    wait_for(service, stage)
    process = service._process
    assert process is not None
    service.cancel()
    assert process.poll() is not None
    assert wait_for(service).state == "cancelled"
    if stage != "validation":  # by then the candidate is stored, whole; without a verdict nobody can stage it
        assert bundles(store) == before
    assert not list(store.root.glob("*/.writing-*"))


def test_cancelling_ends_the_processes_that_run_episodes_too(
    service: PruningService, store: BundleStore, job: Job
) -> None:
    # A planner's episodes are shared among processes.
    planner = store.add(load_bundle(shipped_controllers()["cartpole_swingup_tdmpc"]))
    gate = GateSettings(jobs=2)
    service.start(job.model_copy(update={"gate": gate, "controller": planner, "candidate": planner, "pruning": None}))
    wait_for(service, "validation")
    assert service._process is not None
    group = service._process.pid
    end = time.monotonic() + 30
    while len(members(group)) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    assert len(members(group)) >= 3, "the worker and two that run episodes"
    service.cancel()
    time.sleep(0.5)
    assert members(group) == []


def members(group: int) -> list[int]:
    """Return the living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_cancelling_nothing_is_refused(service: PruningService) -> None:
    with pytest.raises(ServiceError, match="no running job"):
        service.cancel()


def test_killed_worker_fails_the_job_and_the_next_one_works(
    service: PruningService, store: BundleStore, job: Job
) -> None:
    service.start(job.model_copy(update={"pruning": PruningSettings(method="gradient")}))
    wait_for(service, "coefficients")
    assert service._process is not None
    os.kill(service._process.pid, signal.SIGKILL)
    status = wait_for(service)
    assert status.state == "failed"
    assert "ended with status -9" in status.message
    assert not list(store.root.glob("*/.writing-*"))
    assert service.start(job) == 2
    assert wait_for(service, "report").state == "accepted"


def test_failure_is_told_in_its_own_words(service: PruningService, job: Job, tmp_path: Path) -> None:
    service.start(job.model_copy(update={"rollouts": (tmp_path / "nothing",)}))
    status = wait_for(service)
    assert status.state == "failed"
    assert str(tmp_path / "nothing") in status.message
    assert "Traceback" not in status.message


def test_every_stage_has_its_place_in_the_progress_of_a_job() -> None:
    """Stages are named where the work is done; one that is missing here would show no progress."""
    package = Path(pruning_service.__file__).parents[1]
    named = {
        stage
        for folder in ("pruning", "validation", "service")
        for path in (package / folder).glob("*.py")
        if path.name not in {"boundary.py", "mnist.py"}  # these are no jobs of the service
        for stage in re.findall(r'progress\("([a-z -]+)"', path.read_text())
    }
    assert named | {"starting"} == set(pruning_service.STAGES)


def test_service_started_again_knows_the_last_job(store: BundleStore, offline_job: Job, tmp_path: Path) -> None:
    journal = tmp_path / "jobs" / "last.json"
    first = PruningService(store, journal)
    first.start(offline_job)
    ended = wait_for(first)
    first.close()
    again = PruningService(store, journal)
    assert again.status == ended
    assert again.start(offline_job) == 2
    again.close()
    assert PruningService(store, journal).status.state == "cancelled"


def test_job_that_a_service_did_not_live_to_end_has_failed(store: BundleStore, tmp_path: Path) -> None:
    journal = tmp_path / "last.json"
    journal.write_text(JobStatus(job=4, state="running", stage="choice").model_dump_json())
    status = PruningService(store, journal).status
    assert (status.job, status.state) == (4, "failed")
    assert status.message == "the pruning service ended during this job"


def test_second_service_says_nothing_of_a_job_that_goes_on_until_the_first_one_ends(
    store: BundleStore, offline_job: Job, tmp_path: Path
) -> None:
    journal = tmp_path / "last.json"
    first = PruningService(store, journal)
    first.start(offline_job)
    second = PruningService(store, journal)
    assert second.status == JobStatus()
    ended = wait_for(first)
    assert second.start(offline_job) == 1, "without a journal, while the first one has it"
    second.cancel()
    assert JobStatus.model_validate_json(journal.read_bytes()) == ended
    first.close()
    assert second.start(offline_job) == 2, "now it goes on from the first one's"
    second.close()
    assert JobStatus.model_validate_json(journal.read_bytes()).state == "cancelled"


def test_report_that_a_service_did_not_live_to_write_is_not_promised(
    store: BundleStore, job: Job, small_bundle: Bundle, make_verdict, tmp_path: Path
) -> None:
    outcome = Outcome(candidate=small_bundle.reference, verdict=make_verdict(small_bundle), report=job.report)
    status = JobStatus(job=4, state="accepted", stage="report", progress=0.95, message="it said so", outcome=outcome)
    journal = tmp_path / "last.json"
    journal.write_text(status.model_dump_json())
    again = PruningService(store, journal).status
    assert (again.state, again.finished) == ("accepted", True)
    assert again.message == "it said so; there is no report: the pruning service ended during this job"
    assert again.outcome is not None
    assert (again.outcome.report, again.outcome.no_report) == (None, "the pruning service ended during this job")


def test_job_that_no_process_can_be_started_for_leaves_the_service_idle(
    service: PruningService, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(pruning_service.subprocess, "Popen", fail)
        with pytest.raises(ServiceError, match="no process can be started to do the work: Cannot allocate memory"):
            service.start(job)
    with pytest.raises(ServiceError, match="no running job"):
        service.cancel()
    service.check_idle()


def test_journal_that_cannot_be_written_stops_nothing(
    store: BundleStore,
    offline_job: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(pruning_service, "write_atomically", full)
    service = PruningService(store, tmp_path / "last.json")
    service.start(offline_job)
    assert wait_for(service).state == "accepted"
    assert "job 1 will not be known to the next service: No space left on device" in caplog.text


def test_damaged_journal_is_told_and_stops_nothing(store: BundleStore, tmp_path: Path) -> None:
    journal = tmp_path / "last.json"
    journal.write_text("{")
    status = PruningService(store, journal).status
    assert status.state == "idle"
    assert "last.json is not a job's status" in status.message
