"""The pruning service as a process: prunes what the loop runs, and sends the result there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from nncontrol_prune.config import ConfigError, PruningServiceConfig, validated
from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.controllers.verdict import Verdict
from nncontrol_prune.runtime.store import BundleStore
from nncontrol_prune.service.coordinator import Coordinator, LoopState
from nncontrol_prune.service.pruning_service import ServiceError
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
    environment: str | None
    report: Path | None


_log = logging.getLogger(__name__)

ERRORS = (ServiceError, ControllerError, ConfigError, TransportError, RequestFailedError)
"""Why a request, or a deployment that nobody asks for, is refused; all else is a fault of ours."""


class ZmqLoop:
    """The loop, reached over ZeroMQ."""

    def __init__(self, network: Network) -> None:
        self._client = Client(network, "controller")

    def state(self) -> LoopState:
        """Ask what runs."""
        return LoopState.model_validate(self._client.request(Status()))

    def fetch(self, reference: str) -> Bundle:
        """Fetch a bundle from the loop's store."""
        return pull_bundle(self._client, reference)

    def deploy(self, bundle: Bundle, verdict: Verdict | None) -> str:
        """Send a bundle, have it swapped in, and return its `name@digest`."""
        push_bundle(self._client, bundle, verdict)
        return str(self._client.request(Stage(reference=bundle.reference))["reference"])

    def close(self) -> None:
        """Free the socket."""
        self._client.close()


def start(settings: PruningProcessSettings) -> tuple[Callable[[], None], Callable[[], None]]:
    """Prepare the service; see `transport.process.run`."""
    loop = ZmqLoop(settings.network)
    coordinator = Coordinator(
        BundleStore(settings.store),
        loop,
        settings.config,
        environment=settings.environment,
        report=settings.report,
    )

    def prune(request: Prune) -> dict[str, Any]:
        config = validated(
            PruningServiceConfig, {**settings.config.model_dump(), **request.settings}, "pruning_service"
        )
        return {"job": coordinator.prune(config, request.rollouts)}

    def validate(request: Validate) -> dict[str, Any]:
        return {"job": coordinator.validate(request.reference, request.rollouts)}

    def deploy_if_wanted() -> None:
        try:
            coordinator.deploy_if_wanted()
        except ERRORS as error:
            _log.warning(f"not deployed: {error}")

    server = RequestServer(
        settings.network,
        "pruning",
        TypeAdapter(PruningRequest),
        {
            Status: answers(
                lambda _: {**coordinator.status.model_dump(mode="json"), "deployment": coordinator.deployment}
            ),
            Prune: answers(prune),
            Validate: answers(validate),
            Cancel: answers(lambda _: {"job": coordinator.cancel()}),
            Deploy: answers(lambda _: {"reference": coordinator.deploy()}),
        },
        errors=ERRORS,
        between=deploy_if_wanted,
    )
    server.start()
    stopped = threading.Event()

    def work() -> None:
        stopped.wait()
        server.close()
        coordinator.close()
        loop.close()

    return work, stopped.set


if __name__ == "__main__":
    run(PruningProcessSettings, start)
