"""What a pruning service does on request, over any transport: it prunes what a loop runs, and deploys there."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from nncontrol_prune.config import PruningServiceConfig
from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.verdict import Verdict
from nncontrol_prune.runtime.store import BundleStore, StoreError
from nncontrol_prune.service.jobs import Job
from nncontrol_prune.service.pruning_service import JobStatus, PruningService, ServiceError


class LoopState(BaseModel):
    """What a pruning service has to know of the loop it works for."""

    active: str
    """`name@digest` of the controller that runs."""
    bag: Path | None
    """Where the loop records; None if it does not."""


class LoopConnection(Protocol):
    """How a pruning service reaches its loop. Each method may raise the errors of its transport."""

    def state(self) -> LoopState:
        """Ask what runs."""
        ...

    def fetch(self, reference: str) -> Bundle:
        """Fetch a bundle from the loop's store."""
        ...

    def deploy(self, bundle: Bundle, verdict: Verdict | None) -> str:
        """Send a bundle, have it swapped in, and return its `name@digest`."""
        ...


class Coordinator:
    """Turns requests into jobs of the service, one at a time.

    Args:
        store: Where bundles and verdicts are.
        loop: The loop whose controller is pruned.
        config: What is asked for where a request does not say otherwise.
        environment: Where candidates are validated; None for what the dense controller was made for and, where it does
            not say either, for a check on rollouts alone.
        report: Directory for each job's report; None for the store's own place.
        journal: File that keeps the last job's status for the next service; None to forget it.
    """

    def __init__(
        self,
        store: BundleStore,
        loop: LoopConnection,
        config: PruningServiceConfig,
        *,
        environment: str | None = None,
        report: Path | None = None,
        journal: Path | None = None,
    ) -> None:
        self._store = store
        self._loop = loop
        self._environment = environment
        self._report = report
        self._service = PruningService(store, journal)
        self._deployed_job = self._service.status.job
        self._auto_deploy = config.auto_deploy
        self._deployment = (0, "")
        self.config = config
        """May be replaced at any time; a job keeps what it was started with."""

    @property
    def status(self) -> JobStatus:
        """The last job's status."""
        return self._service.status

    @property
    def deployment(self) -> str:
        """What became of what the last job made, once it was to be deployed, as a sentence; empty before."""
        job, text = self._deployment
        return text if job == self.status.job else ""

    def prune(self, config: PruningServiceConfig | None = None, rollouts: tuple[Path, ...] | None = None) -> int:
        """Prune the dense controller that the loop's comes from, and validate the result; return the job's number.

        Args:
            config: How; by default as configured.
            rollouts: Bags to prune from; by default those that the loop records.

        Raises:
            ServiceError: A job is running, a bag is not there, or the loop records nothing and no rollouts are named.
            ControllerError: The loop's controller cannot be had.
        """
        config = config or self.config
        self._service.check_idle()
        _check_there(rollouts)
        loop = self._loop.state()
        rollouts = rollouts or _recorded(loop)
        dense = self._dense(loop.active)
        job = self._job(dense, config).model_copy(update={"pruning": config.pruning, "rollouts": rollouts})
        return self._start(job, config)

    def validate(self, reference: str | None = None, rollouts: tuple[Path, ...] | None = None) -> int:
        """Run the gate on a candidate of the store, by default the last job's; return the job's number.

        Args:
            reference: `name@digest` of the candidate.
            rollouts: Bags to check it on where there is no environment; by default those that the loop records.

        Raises:
            ServiceError: A job is running, there is no candidate, it has nothing to be validated against, or, where
                there is no environment, a bag is not there, or the loop records nothing and none is named.
            ControllerError: It, or the controller it was pruned from, cannot be had.
        """
        self._service.check_idle()
        last = self.status.outcome
        if reference is None and last is None:
            raise ServiceError("there is no candidate to validate: no job has made one")
        candidate = self._store.load(reference or (last.candidate if last is not None else ""))
        parent = candidate.manifest.parent
        if parent is None:
            raise ServiceError(
                f"{candidate.reference} has no parent to be validated against; it may be staged as it is"
            )
        self._have(parent)
        job = self._job(parent, self.config).model_copy(update={"candidate": candidate.reference})
        if job.environment is None:
            _check_there(rollouts)
            job = job.model_copy(update={"rollouts": rollouts or _recorded(self._loop.state())})
        return self._start(job, self.config)

    def cancel(self) -> int:
        """Cancel the running job and return its number.

        Raises:
            ServiceError: None is running.
        """
        return self._service.cancel()

    def deploy(self) -> str:
        """Send the last accepted controller to the loop, have it swapped in, and return its `name@digest`.

        Raises:
            ServiceError: There is none.
            ControllerError: It is gone, damaged, or no longer accepted.
        """
        status = self.status
        if status.state != "accepted" or status.outcome is None:
            raise ServiceError(f"there is nothing accepted to deploy; the last job is {status.state}")
        bundle = self._store.load(status.outcome.candidate)
        self._store.check_accepted(bundle, allow_offline=True)  # whether that is enough is for the loop to say
        reference = self._loop.deploy(bundle, self._store.verdict(bundle.digest))
        self._deployment = (status.job, f"deployed {reference}")
        return reference

    def deploy_if_wanted(self) -> str | None:
        """Deploy an accepted controller once, if the configuration says so; return it, or None if there was none.

        Where it fails, `deployment` says why, since nobody has asked whom the error could be told.
        """
        status = self.status
        if not self._auto_deploy or status.state != "accepted" or status.job == self._deployed_job:
            return None
        self._deployed_job = status.job
        try:
            return self.deploy()
        except Exception as error:
            self._deployment = (status.job, f"not deployed: {error}")
            raise

    def close(self) -> None:
        """Stop whatever is running."""
        self._service.close()

    def _start(self, job: Job, config: PruningServiceConfig) -> int:
        self._auto_deploy = config.auto_deploy
        return self._service.start(job)

    def _job(self, dense: str, config: PruningServiceConfig) -> Job:
        environment = self._environment or self._store.manifest(dense).environment
        return Job(
            store=self._store.root,
            controller=dense,
            environment=environment,
            gate=config.gate,
            report=self._report,
        )

    def _dense(self, reference: str) -> str:
        """Return the dense controller that one comes from; losses must not add up from pruning to pruning."""
        dense = reference
        for dense in self._store.lineage(reference):
            self._have(dense)
        return dense

    def _have(self, reference: str) -> None:
        """Fetch a controller from the loop's store unless it is in ours."""
        try:
            self._store.load(reference)
        except StoreError:
            self._store.add(self._loop.fetch(reference))


def _check_there(rollouts: tuple[Path, ...] | None) -> None:
    for path in rollouts or ():
        if not path.exists():
            raise ServiceError(f"there are no rollouts at {path}")


def _recorded(loop: LoopState) -> tuple[Path, ...]:
    if loop.bag is None:
        raise ServiceError("the controller records no rollouts; name bags, or set record to true")
    return (loop.bag,)
