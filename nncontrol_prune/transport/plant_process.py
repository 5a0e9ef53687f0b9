"""The plant as a process: a live environment whose states go out and whose commands come in over ZeroMQ."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray
from pydantic import TypeAdapter

from nncontrol_prune.config import PlantConfig
from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.plants.environments import PlantError
from nncontrol_prune.plants.live import LivePlant
from nncontrol_prune.plants.state import HEADER
from nncontrol_prune.plants.tasks import Task, task_of
from nncontrol_prune.runtime.scheduling import run_in_real_time
from nncontrol_prune.transport.messages import Pause, PlantRequest, Reset, Status
from nncontrol_prune.transport.network import Network
from nncontrol_prune.transport.process import run
from nncontrol_prune.transport.requests import RequestServer, answers


class PlantProcessSettings(Spec):
    """What the plant process is told."""

    network: Network
    config: PlantConfig


class PlantLink:
    """The plant's end of the streams: float64 arrays, states out and commands in.

    A state is `plants.live.HEADER` and the observation; a command is the stamp of the observation it answers and
    what the joints are commanded.
    """

    def __init__(self, network: Network, task: Task, realtime_priority: int = 0) -> None:
        self._context = network.real_time_context(realtime_priority)
        self._authenticator = network.authenticate(self._context)
        self._states = network.bind(self._context, "state", zmq.PUB)
        self._commands = network.bind(self._context, "command", zmq.SUB)
        self._commands.setsockopt(zmq.SUBSCRIBE, b"")
        self._task = task
        self._goal_since = math.nan
        self.goal_held = 0.0
        """How long the plant has been at the task's goal, in plant seconds."""

    def command(self, command: NDArray[np.float64]) -> float:
        """Fill in the newest command; return the stamp it answers, NaN if there is none or it answers none.

        A message that is no command, of another size or with what is no number, does not count.
        """
        stamp = math.nan
        try:
            while True:
                data = self._commands.recv(zmq.NOBLOCK)
                if len(data) != 8 * (1 + len(command)):
                    continue
                values = np.frombuffer(data)
                if np.isfinite(values[1:]).all():
                    stamp, command[:] = values[0], values[1:]
        except zmq.Again:
            return float(stamp)

    def publish(self, state: NDArray[np.float64]) -> None:
        """Send a state."""
        self._states.send(state.tobytes(), zmq.NOBLOCK)
        if not self._task.goal or not self._task.at_goal(state[len(HEADER) :]):
            self._goal_since, self.goal_held = math.nan, 0.0
        elif math.isnan(self._goal_since):
            self._goal_since = state[0]
        else:
            self.goal_held = state[0] - self._goal_since

    def wait(self, timeout: float) -> None:
        """Wait for a command to arrive, for a number of seconds."""
        self._commands.poll(int(1000 * timeout))

    def close(self) -> None:
        """Free the ports."""
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(linger=0)


def start(settings: PlantProcessSettings) -> tuple[Callable[[], None], Callable[[], None]]:
    """Prepare the plant; see `transport.process.run`."""
    config = settings.config
    task = task_of(config.env)
    link = PlantLink(settings.network, task, config.realtime_priority)
    plant = LivePlant(
        config.env,
        seed=config.seed,
        real_time_factor=config.real_time_factor,
        viewer=not config.headless,
        lockstep=config.lockstep,
    )

    def status(_: Status) -> dict[str, Any]:
        return {
            "environment": config.env,
            "steps": plant.steps,
            "missed_commands": plant.missed_commands,
            "skipped": plant.skipped,
            "paused": plant.paused.is_set(),
            "has_goal": bool(task.goal),
            "goal_held": link.goal_held,
        }

    def reset(_: Reset) -> dict[str, Any]:
        plant.reset()
        return {}

    def pause(request: Pause) -> dict[str, Any]:
        if request.paused:
            plant.paused.set()
        else:
            plant.paused.clear()
        return {"paused": request.paused}

    server = RequestServer(
        settings.network,
        "plant",
        TypeAdapter(PlantRequest),
        {Status: answers(status), Reset: answers(reset), Pause: answers(pause)},
        errors=(PlantError,),
    )
    server.start()

    def work() -> None:
        run_in_real_time(config.realtime_priority)
        try:
            plant.run(link)
        finally:
            server.close()
            link.close()

    return work, plant.stop


if __name__ == "__main__":
    run(PlantProcessSettings, start)
