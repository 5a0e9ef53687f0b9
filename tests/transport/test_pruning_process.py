from __future__ import annotations

import threading
from pathlib import Path

import pytest

from nncontrol_prune.config import PruningServiceConfig
from nncontrol_prune.service.coordinator import Coordinator
from nncontrol_prune.service.pruning_service import ServiceError
from nncontrol_prune.transport.messages import Status
from nncontrol_prune.transport.network import Network
from nncontrol_prune.transport.pruning_process import PruningProcessSettings, start
from nncontrol_prune.transport.requests import Client


def test_what_became_of_a_deployment_that_nobody_asked_for_is_told_in_the_status(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def deploy_if_wanted(_: Coordinator) -> None:
        asked.set()
        raise ServiceError("the loop is busy")

    monkeypatch.setattr(Coordinator, "deploy_if_wanted", deploy_if_wanted)
    monkeypatch.setattr(Coordinator, "deployment", "not deployed: the loop is busy")
    config = PruningServiceConfig(auto_deploy=True)
    settings = PruningProcessSettings(network=network, config=config, store=tmp_path, environment=None, report=None)
    work, stop = start(settings)
    try:
        assert asked.wait(5.0)
        with Client(network, "pruning", timeout=5.0) as client:
            assert client.request(Status())["deployment"] == "not deployed: the loop is busy"
    finally:
        stop()
        work()
