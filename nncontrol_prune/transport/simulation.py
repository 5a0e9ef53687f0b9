"""The three processes of a setup on one machine: plant, controller and pruning service."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.config import Config, ConfigError, ControllerConfig
from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.plants.environments import PlantError, check_controller, check_rate, environment_specs
from nncontrol_prune.runtime.finding import find_bundle
from nncontrol_prune.runtime.slot import initial_reference
from nncontrol_prune.runtime.statistics import COLUMNS
from nncontrol_prune.runtime.store import BundleStore
from nncontrol_prune.transport.controller_process import SLOT, ControllerProcessSettings
from nncontrol_prune.transport.messages import Ticks
from nncontrol_prune.transport.network import Network
from nncontrol_prune.transport.plant_process import PlantProcessSettings
from nncontrol_prune.transport.process import GRACE, ChildProcess, ProcessError
from nncontrol_prune.transport.pruning_process import PruningProcessSettings
from nncontrol_prune.transport.requests import Client

REPORT = "report"
"""Where, among what comes of a simulation, the report is."""


def first_controller(config: ControllerConfig, store: BundleStore) -> Bundle:
    """Find the controller that a simulation begins with.

    Raises:
        ControllerError: There is none, or it fails a check.
    """
    return find_bundle(store, config.controller or config.default_controller or initial_reference(store, SLOT))


class Simulation:
    """Starts the processes, in a context; at its end they are gone, whatever happened.

    Args:
        config: The setup.
        network: Where the processes find each other.
        out: Directory for logs, and for the report.
        store: The bundle store.
        bag: Where to record; None to record nothing.

    Raises:
        ConfigError: The rate is not the environment's.
        ControllerError, PlantError: The controller does not exist, or does not fit the environment.
        ProcessError: A process cannot start; the message says which and why.
    """

    def __init__(self, config: Config, network: Network, *, out: Path, store: BundleStore, bag: Path | None) -> None:
        environment = config.mujoco_sim.env
        specs = environment_specs(environment)
        bundle = first_controller(config.nn_controller, store)
        store.check_accepted(bundle, allow_offline=config.nn_controller.allow_offline)
        check_controller(bundle.manifest, specs)
        if config.nn_controller.rate is not None:
            try:
                check_rate(config.nn_controller.rate, specs)
            except PlantError as error:
                raise ConfigError(f"nn_controller: {error}") from error
        store.add(bundle)
        self.store = store
        self.dense = bundle
        self.plant = Client(network, "plant")
        self.controller = Client(network, "controller")
        self.pruning = Client(network, "pruning", timeout=15.0)
        plant = PlantProcessSettings(network=network, config=config.mujoco_sim)
        controller = ControllerProcessSettings(
            network=network,
            config=config.nn_controller,
            store=store.root,
            reference=bundle.reference,
            bag=bag,
            real_time_factor=config.mujoco_sim.real_time_factor,
        )
        pruning = PruningProcessSettings(
            network=network,
            config=config.pruning_service,
            store=store.root,
            environment=environment,
            report=out / REPORT,
        )
        self._planned: dict[str, Spec] = {"plant": plant, "controller": controller, "pruning": pruning}
        self._logs = out / "logs"
        self._children: list[ChildProcess] = []

    def __enter__(self) -> Simulation:
        self._logs.mkdir(parents=True, exist_ok=True)
        try:
            for name in self._planned:
                self._children.append(self._start(name))
            for child in self._children:
                child.wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by name."""
        return {child.name: child.pid for child in self._children}

    def dead(self) -> list[str]:
        """Return the processes that have ended."""
        return [child.name for child in self._children if child.exit_code is not None]

    def check_alive(self) -> None:
        """Check that the loop is closed; the pruning service may die without it.

        Raises:
            ProcessError: The plant or the controller has ended.
        """
        for name in self.dead():
            if name != "pruning":
                raise ProcessError(f"the {name} process has ended; see {self._logs / name}.log")

    def restart_pruning(self) -> None:
        """Start the pruning service again if it has ended; the loop has gone on without it."""
        for index, child in enumerate(self._children):
            if child.name == "pruning" and child.exit_code is not None:
                child.finish_stop(0.0)
                self._children[index] = self._start("pruning")
                self._children[index].wait_until_ready()

    def ticks(self) -> TickTrace:
        """Fetch the controller's ticks."""
        return fetch_ticks(self.controller)

    def _start(self, name: str) -> ChildProcess:
        module = f"nncontrol_prune.transport.{name}_process"
        return ChildProcess(name, module, self._planned[name], self._logs / f"{name}.log")

    def _stop(self) -> None:
        for client in (self.plant, self.controller, self.pruning):
            client.close()
        for child in self._children:
            child.begin_stop()
        deadline = time.monotonic() + GRACE  # one for all of them, so that the end does not take as long as their sum
        for child in self._children:
            child.finish_stop(max(0.0, deadline - time.monotonic()))
        self._children.clear()


@dataclass(frozen=True)
class TickTrace:
    """Consecutive ticks of a loop.

    Attributes:
        first: Number of the first.
        rows: (ticks, 5), columns as in `runtime.statistics.COLUMNS`.
    """

    first: int
    rows: NDArray[np.float64]


def fetch_ticks(controller: Client) -> TickTrace:
    """Fetch a loop's ticks, as many as it keeps, in pieces."""
    pieces: list[NDArray[np.float64]] = []
    first = start = 0
    while True:
        result, payload = controller.exchange(Ticks(start=start))
        if not pieces:
            first = result["first"]
        elif result["first"] != start:
            pieces, first = [], result["first"]  # the loop has gone round meanwhile: keep what is consecutive
        pieces.append(np.frombuffer(payload).reshape(-1, len(COLUMNS)))
        start = result["first"] + result["rows"]
        if result["rows"] == 0:
            return TickTrace(first, np.concatenate(pieces))
