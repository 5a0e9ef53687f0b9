"""A control loop and, if wanted, the pruning service that works for it, as processes of one machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.config import Config
from nncontrol_prune.controllers.bundle import Bundle, short
from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.runtime.statistics import COLUMNS
from nncontrol_prune.runtime.store import BundleStore
from nncontrol_prune.transport.controller_process import ControllerProcessSettings
from nncontrol_prune.transport.messages import TICKS_PER_REPLY, Status, Ticks
from nncontrol_prune.transport.network import Network, TransportError
from nncontrol_prune.transport.process import ProcessError, ProcessGroup
from nncontrol_prune.transport.pruning_process import PruningProcessSettings
from nncontrol_prune.transport.requests import Client

POLL = 1.0
"""Seconds between looks at a loop."""
REPORT = "report"
"""Where, among what comes of a loop, the report is."""


class LiveLoop(ProcessGroup):
    """Starts the loop, and what belongs to it, in a context.

    Args:
        config: The setup.
        network: Where the processes find each other.
        bundle: The controller to begin with.
        out: Directory for logs, and for the report.
        store: The bundle store.
        bag: Where to record; None to record nothing.
        environment: Where candidates are validated; None for what the controller was made for.
        pruning: Whether the pruning service is started too.
        plant: What a simulated plant is told; None where the plant is somebody else's.

    Raises:
        ConfigError: The rate is not the controller's.
        ControllerError: The controller was pruned, and the gate has not accepted it.
        ProcessError: A process cannot start; the message says which and why.
    """

    def __init__(
        self,
        config: Config,
        network: Network,
        bundle: Bundle,
        *,
        out: Path,
        store: BundleStore,
        bag: Path | None,
        environment: str | None = None,
        pruning: bool = True,
        plant: Spec | None = None,
    ) -> None:
        config.nn_controller.check_rate(bundle.manifest)
        store.check_accepted(bundle, allow_offline=config.nn_controller.allow_offline)
        store.add(bundle)
        settings: dict[str, Spec] = {} if plant is None else {"plant": plant}
        settings["controller"] = ControllerProcessSettings(
            network=network,
            config=config.nn_controller,
            store=store.root,
            reference=bundle.reference,
            bag=bag,
            real_time_factor=1.0 if plant is None else config.mujoco_sim.real_time_factor,
        )
        if pruning:
            settings["pruning"] = PruningProcessSettings(
                network=network,
                config=config.pruning_service,
                store=store.root,
                environment=environment,
                report=out / REPORT,
            )
        super().__init__(settings, out / "logs")
        self.store = store
        self.dense = bundle
        self.controller = Client(network, "controller")
        self.pruning = Client(network, "pruning", timeout=15.0)

    def close(self) -> None:
        """End the processes."""
        for client in (self.controller, self.pruning):
            client.close()
        super().close()

    def check_alive(self) -> None:
        """Check that the loop is closed; the pruning service may die without it.

        Raises:
            ProcessError: The plant or the controller has ended.
        """
        for name in self.dead():
            if name != "pruning":
                raise ProcessError(self.how_it_ended(name))

    def revive_pruning(self) -> str | None:
        """Start the pruning service again if it has died; return what became of it, as a sentence, if it had.

        A plant needs its loop, and can do without the service: where it cannot start, that is all there is to say.
        """
        if "pruning" not in self.dead():
            return None
        try:
            self.restart("pruning")
        except ProcessError as error:
            return f"the pruning process ended, and cannot be started again: {error}"
        return "the pruning process ended; it was started again, and its job is lost"

    def ticks(self) -> TickTrace:
        """Fetch the controller's ticks."""
        return fetch_ticks(self.controller)


def watch(
    loop: LiveLoop, *, duration: float | None, tell: Callable[[str], None], ending: threading.Event
) -> tuple[dict[str, Any], TickTrace, list[str]]:
    """Let a loop run, and look after it.

    Args:
        loop: The running processes.
        duration: Seconds; None to go on until `ending` is set.
        tell: Told what goes on.
        ending: Ends it once it is set.

    Returns:
        What the controller says of itself in the end, its ticks, and what the user should know, as sentences.

    Raises:
        ProcessError: The controller ended by itself.
        TransportError: It does not answer in the end.
    """
    started, notes = time.monotonic(), list[str]()
    while True:
        loop.check_alive()
        if (died := loop.revive_pruning()) is not None:
            notes.append(died)
        elapsed = time.monotonic() - started
        over = ending.is_set() or (duration is not None and elapsed >= duration)
        try:
            status: dict[str, Any] = loop.controller.request(Status())
        except TransportError as error:
            loop.check_alive()  # it may have died since
            if over:
                raise
            doing = str(error)  # others keep it busy, or a slow disk does; its loop has a thread of its own
        else:
            if over:
                return status, loop.ticks(), [*notes, *status["problems"]]
            doing = _doing(status)
        tell(f"{elapsed:3.0f} s  {doing}")
        ending.wait(POLL if duration is None else max(0.0, min(POLL, started + duration - time.monotonic())))


def _doing(status: Mapping[str, Any]) -> str:
    if status["ticks"]["ticks"] > status["stale"]:
        return f"running {short(status['active'])}"
    if status["unfit_states"]:
        return "the plant's states do not fit: they have another size than the controller takes"
    return "waiting for the plant's states"


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
        if result["rows"] < TICKS_PER_REPLY:  # not 0: a loop may do a tick or more from one request to the next
            return TickTrace(first, np.concatenate(pieces))
