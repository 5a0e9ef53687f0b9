from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nncontrol_prune.config import PruningServiceConfig
from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.verdict import Verdict
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.runtime.store import BundleStore, NotAcceptedError
from nncontrol_prune.service.coordinator import Coordinator, LoopState
from nncontrol_prune.service.jobs import Job, Outcome
from nncontrol_prune.service.pruning_service import JobStatus, PruningService, ServiceError


class FarLoop:
    """A loop on another machine, with a store of its own."""

    def __init__(self, store: BundleStore, active: Bundle) -> None:
        self.store = store
        self.active = store.add(active)
        self.bag: Path | None = None
        self.deployed: list[str] = []

    def state(self) -> LoopState:
        return LoopState(active=self.active, bag=self.bag)

    def fetch(self, reference: str) -> Bundle:
        return self.store.load(reference)

    def deploy(self, bundle: Bundle, verdict: Verdict | None) -> str:
        self.deployed.append(bundle.reference)
        return bundle.reference


@pytest.fixture
def loop(tmp_path: Path, small_bundle: Bundle) -> FarLoop:
    return FarLoop(BundleStore(tmp_path / "far"), small_bundle)


@pytest.fixture
def coordinator(store: BundleStore, loop: FarLoop, tmp_path: Path) -> Iterator[Coordinator]:
    coordinator = Coordinator(store, loop, PruningServiceConfig(), environment=CARTPOLE)
    yield coordinator
    coordinator.close()


def pruned_and(decision: bool, store: BundleStore, dense: Bundle, make_cartpole_bundle, make_verdict) -> JobStatus:
    pruned = make_cartpole_bundle(hidden=(8, 8), parent=dense, name="pruned")
    store.add(pruned)
    verdict = make_verdict(pruned, accepted=decision)
    store.write_verdict(verdict)
    outcome = Outcome(report=Path("report"), candidate=pruned.reference, verdict=verdict)
    return JobStatus(job=1, state="accepted" if decision else "rejected", outcome=outcome)


def test_nothing_recorded_is_nothing_to_prune_from(coordinator: Coordinator) -> None:
    with pytest.raises(ServiceError, match="records no rollouts"):
        coordinator.prune()


def test_loops_controller_is_fetched_and_one_job_runs_at_a_time(
    coordinator: Coordinator, store: BundleStore, loop: FarLoop, tmp_path: Path
) -> None:
    loop.bag = tmp_path / "bag"
    assert coordinator.prune() == 1
    store.load(loop.active)
    with pytest.raises(ServiceError, match="busy: job 1"):
        coordinator.prune()
    with pytest.raises(ServiceError, match="busy: job 1"):
        coordinator.validate()
    assert coordinator.cancel() == 1


def test_bags_are_those_that_are_named_or_else_what_the_loop_records(
    coordinator: Coordinator, loop: FarLoop, make_cartpole_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = make_cartpole_bundle(hidden=(8, 8), parent=loop.store.load(loop.active), name="pruned", environment=None)
    started: list[Job] = []

    def start(job: Job) -> int:
        started.append(job)
        return len(started)

    monkeypatch.setattr(coordinator._service, "start", start)
    monkeypatch.setattr(coordinator, "_environment", None)
    reference = coordinator._store.add(pruned)
    loop.bag, named = tmp_path / "bag", (tmp_path / "other",)
    with pytest.raises(ServiceError, match=f"there are no rollouts at {named[0]}"):
        coordinator.prune(rollouts=named)
    with pytest.raises(ServiceError, match=f"there are no rollouts at {named[0]}"):
        coordinator.validate(reference, named)
    named[0].mkdir()
    coordinator.prune()
    coordinator.prune(rollouts=named)
    coordinator.validate(reference)
    coordinator.validate(reference, named)
    assert [job.rollouts for job in started] == [(loop.bag,), named] * 2
    monkeypatch.setattr(coordinator, "_environment", CARTPOLE)
    coordinator.validate(reference, (tmp_path / "gone",))  # in closed loop no bag is needed
    assert started[-1].rollouts == ()


def test_nothing_to_validate_or_deploy_before_the_first_job(coordinator: Coordinator) -> None:
    with pytest.raises(ServiceError, match="no candidate to validate"):
        coordinator.validate()
    with pytest.raises(ServiceError, match="nothing accepted to deploy; the last job is idle"):
        coordinator.deploy()


@pytest.mark.parametrize("accepted", [True, False])
def test_only_what_was_accepted_is_deployed(
    accepted: bool, store: BundleStore, loop: FarLoop, tmp_path: Path, small_bundle, make_cartpole_bundle, make_verdict
) -> None:
    status = pruned_and(accepted, store, small_bundle, make_cartpole_bundle, make_verdict)
    (tmp_path / "last.json").write_text(status.model_dump_json())
    coordinator = Coordinator(store, loop, PruningServiceConfig(auto_deploy=True), journal=tmp_path / "last.json")
    assert coordinator.deploy_if_wanted() is None, "that job was another service's"
    if accepted:
        coordinator.deploy()
        assert loop.deployed == [status.outcome.candidate]
        store.write_verdict(make_verdict(store.load(status.outcome.candidate), accepted=False))
        with pytest.raises(NotAcceptedError):
            coordinator.deploy()
    else:
        with pytest.raises(ServiceError, match="the last job is rejected"):
            coordinator.deploy()


def test_what_became_of_a_deployment_is_told_until_the_next_job(
    store: BundleStore,
    loop: FarLoop,
    monkeypatch: pytest.MonkeyPatch,
    small_bundle,
    make_cartpole_bundle,
    make_verdict,
) -> None:
    coordinator = Coordinator(store, loop, PruningServiceConfig(auto_deploy=True), environment=CARTPOLE)
    status = pruned_and(True, store, small_bundle, make_cartpole_bundle, make_verdict)
    monkeypatch.setattr(PruningService, "status", status)
    assert coordinator.deployment == ""

    def refuse(*_: object) -> str:
        raise ServiceError("the loop is busy")

    with monkeypatch.context() as busy:
        busy.setattr(loop, "deploy", refuse)
        with pytest.raises(ServiceError, match="the loop is busy"):
            coordinator.deploy_if_wanted()
    assert coordinator.deployment == "not deployed: the loop is busy"
    assert coordinator.deploy_if_wanted() is None, "it is tried once"
    coordinator.deploy()
    assert coordinator.deployment == f"deployed {status.outcome.candidate}"
    monkeypatch.setattr(PruningService, "status", status.model_copy(update={"job": 2, "state": "running"}))
    assert coordinator.deployment == ""


def test_deployment_that_ends_after_the_next_job_has_begun_is_not_told_of_that(
    store: BundleStore, loop: FarLoop, monkeypatch: pytest.MonkeyPatch, small_bundle, make_cartpole_bundle, make_verdict
) -> None:
    coordinator = Coordinator(store, loop, PruningServiceConfig(), environment=CARTPOLE)
    status = pruned_and(True, store, small_bundle, make_cartpole_bundle, make_verdict)
    monkeypatch.setattr(PruningService, "status", status)

    def overtaken(bundle: Bundle, _: Verdict | None) -> str:
        monkeypatch.setattr(PruningService, "status", JobStatus(job=2, state="running"))
        return bundle.reference

    monkeypatch.setattr(loop, "deploy", overtaken)
    assert coordinator.deploy() == status.outcome.candidate
    assert coordinator.deployment == ""


def test_bundle_deleted_after_validation_is_missed(
    store: BundleStore, loop: FarLoop, tmp_path: Path, small_bundle, make_cartpole_bundle, make_verdict
) -> None:
    status = pruned_and(True, store, small_bundle, make_cartpole_bundle, make_verdict)
    (tmp_path / "last.json").write_text(status.model_dump_json())
    coordinator = Coordinator(store, loop, PruningServiceConfig(), journal=tmp_path / "last.json")
    for file in store.directory(status.outcome.candidate.partition("@")[2]).iterdir():
        file.unlink()
    with pytest.raises(Exception, match=r"manifest\.json is missing"):
        coordinator.deploy()
    assert loop.deployed == []


def test_what_does_the_work_is_not_imported_where_it_is_asked_for() -> None:
    code = (
        "import sys, nncontrol_prune.service.coordinator; print({'torch', 'mujoco', 'scipy', 'bokeh'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
