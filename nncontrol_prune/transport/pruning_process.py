"""The pruning service as a process: prunes what the loop runs, and sends the result there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from nncontrol_prune.config import ConfigError, PruningServiceConfig, validated
from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.runtime.store import BundleStore, StoreError
from nncontrol_prune.service.pruning_service import PruningService, ServiceError
from nncontrol_prune.service.work import Job
from nncontrol_prune.transport.bundles import pull_bundle, push_bundle
from nncontrol_prune.transport.messages import Cancel, Deploy, Prune, PruningRequest, Stage, Status, Validate
from nncontrol_prune.transport.network import Network, TransportError
from nncontrol_prune.transport.process import run
from nncontrol_prune.transport.requests import Client, RequestFailedError, RequestServer, answers


class PruningProcessSettings(Spec):
    """What the pruning process is told."""

    network: Network
    config: PruningServiceConfig
    store: Path
    environment: str
    report: Path | None


class PruningEndpoint:
    """Turns requests into jobs of the service."""

    def __init__(self, settings: PruningProcessSettings) -> None:
        self._settings = settings
        self._store = BundleStore(settings.store)
        self._service = PruningService(self._store)
        self._controller = Client(settings.network, "controller")
        self._auto_deploy = settings.config.auto_deploy
        self._deployed_job = 0

    def status(self, _: Status) -> dict[str, Any]:
        return self._service.status.model_dump(mode="json")

    def prune(self, request: Prune) -> dict[str, Any]:
        config = validated(
            PruningServiceConfig, {**self._settings.config.model_dump(), **request.settings}, "pruning_service"
        )
        loop = self._controller.request(Status())
        rollouts = request.rollouts
        if rollouts is None:
            if loop["bag"] is None:
                raise ServiceError("the controller records no rollouts; name bags, or set record to true")
            rollouts = (Path(loop["bag"]),)
        self._auto_deploy = config.auto_deploy
        return self._start(
            Job(
                store=self._settings.store,
                controller=self._dense(loop["active"]),
                environment=self._settings.environment,
                gate=config.gate,
                pruning=config.pruning,
                rollouts=rollouts,
                report=self._settings.report,
            )
        )

    def validate(self, request: Validate) -> dict[str, Any]:
        parent = self._store.load(request.reference).manifest.parent
        if parent is None:
            raise ServiceError(f"{request.reference} has no parent to be validated against; it may be staged as it is")
        self._have(parent)
        return self._start(
            Job(
                store=self._settings.store,
                controller=parent,
                candidate=request.reference,
                environment=self._settings.environment,
                gate=self._settings.config.gate,
                report=self._settings.report,
            )
        )

    def cancel(self, _: Cancel) -> dict[str, Any]:
        return {"job": self._service.cancel()}

    def deploy(self, _: Deploy) -> dict[str, Any]:
        status = self._service.status
        if status.state != "accepted" or status.outcome is None:
            raise ServiceError(f"there is nothing accepted to deploy; the last job is {status.state}")
        bundle = self._store.load(status.outcome.candidate)
        self._store.check_accepted(bundle, allow_offline=True)  # whether that is enough is for the loop to say
        push_bundle(self._controller, bundle, self._store.verdict(bundle.digest))
        return self._controller.request(Stage(reference=bundle.reference))

    def deploy_if_wanted(self) -> None:
        """Deploy an accepted controller once, if the configuration says so."""
        status = self._service.status
        if self._auto_deploy and status.state == "accepted" and status.job != self._deployed_job:
            self._deployed_job = status.job
            self.deploy(Deploy())

    def close(self) -> None:
        self._service.close()
        self._controller.close()

    def _start(self, job: Job) -> dict[str, Any]:
        return {"job": self._service.start(job)}

    def _dense(self, reference: str) -> str:
        """Return the dense controller that one comes from; losses must not add up from pruning to pruning."""
        self._have(reference)
        parent = self._store.load(reference).manifest.parent
        return reference if parent is None else self._dense(parent)

    def _have(self, reference: str) -> None:
        """Fetch a controller from the loop's store unless it is in ours."""
        try:
            self._store.load(reference)
        except StoreError:
            self._store.add(pull_bundle(self._controller, reference))


def start(settings: PruningProcessSettings) -> tuple[Callable[[], None], Callable[[], None]]:
    """Prepare the service; see `transport.process.run`."""
    endpoint = PruningEndpoint(settings)
    server = RequestServer(
        settings.network,
        "pruning",
        TypeAdapter(PruningRequest),
        {
            Status: answers(endpoint.status),
            Prune: answers(endpoint.prune),
            Validate: answers(endpoint.validate),
            Cancel: answers(endpoint.cancel),
            Deploy: answers(endpoint.deploy),
        },
        errors=(ServiceError, ControllerError, ConfigError, TransportError, RequestFailedError),
        between=endpoint.deploy_if_wanted,
    )
    server.start()
    stopped = threading.Event()

    def work() -> None:
        stopped.wait()
        server.close()
        endpoint.close()

    return work, stopped.set


if __name__ == "__main__":
    run(PruningProcessSettings, start)
