from __future__ import annotations

import time
from pathlib import Path

import pytest

from nncontrol_prune.config import PruningServiceConfig
from nncontrol_prune.service.coordinator import Coordinator
from nncontrol_prune.service.pruning_service import ServiceError
from nncontrol_prune.transport.messages import Deploy, Status
from nncontrol_prune.transport.network import Network
from nncontrol_prune.transport.pruning_process import PruningProcessSettings, start
from nncontrol_prune.transport.requests import Client


def test_what_became_of_a_deployment_is_told_in_the_status(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = iter([ServiceError("the loop is busy")])

    def deploy_if_wanted(_: Coordinator) -> None:
        if (error := next(failing, None)) is not None:
            raise error

    monkeypatch.setattr(Coordinator, "deploy_if_wanted", deploy_if_wanted)
    monkeypatch.setattr(Coordinator, "deploy", lambda _: "pruned@0123")
    config = PruningServiceConfig(auto_deploy=True)
    settings = PruningProcessSettings(network=network, config=config, store=tmp_path, environment=None, report=None)
    work, stop = start(settings)
    try:
        with Client(network, "pruning", timeout=5.0) as client:
            deadline = time.monotonic() + 5.0
            while not (told := client.request(Status())["deployment"]) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert told == "not deployed: the loop is busy"
            assert client.request(Deploy()) == {"reference": "pruned@0123"}
            assert client.request(Status())["deployment"] == "deployed pruned@0123"
    finally:
        stop()
        work()
