"""The control loop as a process."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray
from pydantic import TypeAdapter

from nncontrol_prune.config import ControllerConfig
from nncontrol_prune.controllers.commands import CommandConverter
from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.controllers.specs import ActionSpec, Spec
from nncontrol_prune.plants.state import HEADER
from nncontrol_prune.rollouts.recorder import Recorder
from nncontrol_prune.runtime.loop import ControlLoop
from nncontrol_prune.runtime.slot import ControllerSlot
from nncontrol_prune.runtime.store import BundleStore
from nncontrol_prune.transport.bundles import BundleTransfer
from nncontrol_prune.transport.messages import TICKS_PER_REPLY, ControllerRequest, Rollback, Stage, Status, Ticks
from nncontrol_prune.transport.network import Network
from nncontrol_prune.transport.process import run
from nncontrol_prune.transport.requests import RequestServer, answers

SLOT = "nn_controller"


class ControllerProcessSettings(Spec):
    """What the controller process is told."""

    network: Network
    config: ControllerConfig
    store: Path
    reference: str
    """`name@digest` of the controller to start with, in the store."""
    bag: Path | None
    """Where to record; None to record nothing."""
    real_time_factor: float


class ControllerLink:
    """The loop's end of the streams."""

    def __init__(
        self,
        network: Network,
        observation_size: int,
        action: ActionSpec,
        recorder: Recorder | None = None,
        realtime_priority: int = 0,
    ) -> None:
        self._context = network.real_time_context(realtime_priority)
        self._states = network.connect(self._context, "state", zmq.SUB)
        self._states.setsockopt(zmq.SUBSCRIBE, b"")
        self._commands = network.connect(self._context, "command", zmq.PUB)
        self._command = np.zeros(1 + action.size)
        self._converter = CommandConverter(action)
        self._state = np.full(len(HEADER) + observation_size, math.nan)
        self._state_bytes = self._state.data.cast("B")
        self._observation = self._state[len(HEADER) :]
        self._recorder = recorder
        self._steps: deque[list[float]] = deque(maxlen=64)
        self.unfit = 0
        """States whose size is not the controller's."""

    def wait(self, timeout: float) -> bool:
        """Wait for a state that is sent from now on; those that queued up before say nothing about the plant's beat."""
        self._drain()
        return bool(self._states.poll(int(1000 * timeout)))

    def read(self, observation: NDArray[np.float64]) -> float:
        """Fill in the newest observation; keep the record of every step that came."""
        self._drain()
        observation[:] = self._observation
        return float(self._state[0])

    def _drain(self) -> None:
        try:
            while True:
                data = self._states.recv(zmq.NOBLOCK)
                if len(data) != len(self._state_bytes):
                    self.unfit += 1
                    continue
                self._state_bytes[:] = data
                self._steps.append(self._state[1 : len(HEADER)].tolist())
        except zmq.Again:
            pass

    def write(self, stamp: float, action: NDArray[np.float64]) -> None:
        """Send what an action commands."""
        self._command[0] = stamp
        self._command[1:] = self._converter.command(action)
        self._commands.send(self._command.tobytes(), zmq.NOBLOCK)

    def after_tick(self) -> None:
        """Record the steps that came."""
        while self._steps:
            stamp, episode, step, reward, terminated, truncated = self._steps.popleft()
            if self._recorder is not None and math.isfinite(stamp):  # no step led to the first state
                self._recorder.step(stamp, episode, step, reward, terminated > 0, truncated > 0)

    def close(self) -> None:
        """Free the sockets, after what was sent last has left."""
        self._context.destroy(linger=100)


def start(settings: ControllerProcessSettings) -> tuple[Callable[[], None], Callable[[], None]]:
    """Prepare the loop; see `transport.process.run`."""
    config = settings.config
    store = BundleStore(settings.store)
    slot: ControllerSlot  # had once the port is
    recorded_swaps = 0
    told: list[str] = []

    def problems() -> list[str]:
        recording = None if recorder is None or recorder.reason is None else f"recording: {recorder.reason}"
        return [problem for problem in (slot.problem, recording) if problem is not None]

    def tell_problems() -> None:
        nonlocal told
        before, told = told, problems()
        for problem in told:
            if problem not in before:
                sys.stderr.write(f"{problem}\n")

    def between_requests() -> None:
        nonlocal recorded_swaps
        slot.commit_if_due()
        tell_problems()
        for event in slot.events[recorded_swaps:]:
            recorded_swaps += 1
            if recorder is not None:
                recorder.bundle(event.swaps, event.reference)

    def status(_: Status) -> dict[str, Any]:
        active = slot.active
        return {
            "active": active.reference,
            "parameters": active.manifest.parameters,
            "rate": active.manifest.rate,
            "swaps": slot.swaps,
            "on_probation": slot.on_probation,
            "events": [event.model_dump() for event in slot.events],
            "ticks": loop.statistics.summary().model_dump(mode="json"),
            "real_time": loop.real_time,
            "faults": loop.faults,
            "stale": loop.stale,
            "unsound": loop.unsound,
            "unfit_states": link.unfit,
            "bag": None if settings.bag is None else str(settings.bag.resolve()),
            "dropped": 0 if recorder is None else recorder.dropped,
            "problems": problems(),
        }

    def stage(request: Stage) -> dict[str, Any]:
        return {"reference": slot.stage(request.reference)}

    def ticks(request: Ticks, _: bytes) -> tuple[dict[str, Any], bytes]:
        first = max(request.start, loop.statistics.oldest)
        rows = loop.statistics.rows(first, TICKS_PER_REPLY)
        return {"first": first, "rows": len(rows)}, rows.tobytes()

    # Before anything is written: the port may be taken.
    server = RequestServer(
        settings.network,
        "controller",
        TypeAdapter(ControllerRequest),
        {
            Status: answers(status),
            Stage: answers(stage),
            Rollback: answers(lambda _: {"reference": slot.rollback()}),
            Ticks: ticks,
            **BundleTransfer(store).handlers(),
        },
        errors=(ControllerError,),
        between=between_requests,
    )
    slot = ControllerSlot(
        store, settings.reference, slot=SLOT, probation=config.probation, allow_offline=config.allow_offline
    )
    manifest = slot.active.manifest
    observation_size = manifest.observation.size
    recorder = None
    if settings.bag is not None:
        recorder = Recorder(
            settings.bag,
            controller=SLOT,
            observation_size=observation_size,
            action_size=manifest.action.size,
            rate=manifest.rate,
        )
    link = ControllerLink(settings.network, observation_size, manifest.action, recorder, config.realtime_priority)
    loop = ControlLoop(
        slot,
        link,
        recorder,
        period=1.0 / (manifest.rate * settings.real_time_factor),
        observation_timeout=config.observation_timeout,
        realtime_priority=config.realtime_priority,
        safe_command=config.safe_command,
        observation_limit=config.observation_limit,
    )
    if recorder is not None:
        recorder.bundle(0, slot.active.reference)
    server.start()

    def work() -> None:
        try:
            loop.run()
        finally:
            server.close()
            link.close()
            slot.close()
            if recorder is not None:
                recorder.close()
                tell_problems()

    return work, loop.stop


if __name__ == "__main__":
    run(ControllerProcessSettings, start)
