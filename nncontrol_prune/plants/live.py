"""The live plant: a gymnasium MuJoCo environment stepped in real time, as a robot would run by itself."""

from __future__ import annotations

import math
import threading
import time
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.commands import CommandConverter
from nncontrol_prune.plants.environments import environment_specs, make_environment
from nncontrol_prune.plants.state import HEADER
from nncontrol_prune.plants.viewer import Viewer

COMMAND_TIMEOUT = 0.5
"""Age of a command, in plant seconds, past which zero (the nearest the actuators allow) is applied instead of it."""
RESEND = 0.1
"""Seconds without an answer after which, in lockstep, a state is sent again: its controller may have been restarted."""


class CommandSource(Protocol):
    """Where the live plant gets its commands and leaves its states. But for `wait`, no method may block."""

    def command(self, command: NDArray[np.float64]) -> float:
        """Fill in the newest command (m,) and return the stamp it answers; NaN if none came since the last call."""
        ...

    def publish(self, state: NDArray[np.float64]) -> None:
        """Send a state: `HEADER`, then the observation."""
        ...

    def wait(self, timeout: float) -> None:
        """Wait for a command to arrive, for a number of seconds."""
        ...


class LivePlant:
    """Steps an environment at its control rate, against absolute deadlines on the monotonic clock.

    At the end of each period the newest command is applied for the next step. Time stands still until the first
    command has come, so that the plant does not fall while its controller is still loading.

    Args:
        environment: A gymnasium MuJoCo id.
        seed: Seed of the first episode; later ones follow from it.
        real_time_factor: Plant seconds per second.
        viewer: Whether to open a window; closing it does not stop the plant.
        lockstep: Whether to wait for the command that answers a state before the next step, however long it takes; the
            same seed then gives the same run. Without, the plant goes on as a robot would.

    Raises:
        PlantError: There is no such environment, or it is not a MuJoCo one, or no window can be opened.
    """

    def __init__(
        self,
        environment: str,
        *,
        seed: int = 0,
        real_time_factor: float = 1.0,
        viewer: bool = False,
        lockstep: bool = False,
    ) -> None:
        self._env = make_environment(environment)
        space: Any = self._env.action_space
        specs = environment_specs(environment)
        self._dt = specs.period
        self._wall_period = self._dt / real_time_factor
        self._lockstep = lockstep
        self._command_timeout = max(COMMAND_TIMEOUT, 2 * self._dt)
        self._stop = threading.Event()
        self._reset_wanted = threading.Event()
        self._converter = CommandConverter(specs.action)
        self._action = np.zeros(space.shape[0])
        self._command = np.array(self._converter.command(self._action))
        self._safe = np.clip(np.zeros(space.shape[0]), space.low, space.high).astype(np.float64)
        self._low, self._high = space.low.astype(np.float64), space.high.astype(np.float64)
        self.paused = threading.Event()
        """While set, time stands still."""
        observation, _ = self._env.reset(seed=seed)
        self._viewer = Viewer(self._env) if viewer else None
        self._state = np.zeros(len(HEADER) + len(observation))
        self._state[: len(HEADER)] = math.nan
        self._state[len(HEADER) :] = observation
        self.environment = self._env
        """The environment; to be read in `publish` only, while it stands still."""
        self.steps = 0
        """Steps since the start."""
        self.missed_commands = 0
        """Steps for which no command computed from the newest observation had come in time."""
        self.skipped = 0
        """Periods that were left out since the machine was too slow."""

    def stop(self) -> None:
        """End `run` after the step under way."""
        self._stop.set()

    def reset(self) -> None:
        """Start a new episode before the next step."""
        self._reset_wanted.set()

    def run(self, link: CommandSource) -> None:
        """Run until `stop`, with commands from a link, which the states go to."""
        try:
            if self._wait_for_controller(link):
                self._run(link)
        finally:
            if self._viewer is not None:
                self._viewer.close()
            self._env.close()

    def _wait_for_controller(self, link: CommandSource) -> bool:
        """Offer the first observation until the first command arrives."""
        self._state[0] = 0.0
        while not self._stop.is_set():
            link.publish(self._state)
            time.sleep(self._wall_period)
            if self._take(link) == 0.0:
                return True
        return False

    def _take(self, link: CommandSource) -> float:
        """Make the newest command the action; return the stamp it answers, NaN if none came since the last call."""
        answered = link.command(self._command)
        self._converter.action(self._command, self._action)
        return answered

    def _await(self, link: CommandSource, stamp: float) -> float:
        """Wait for a command; after a while without the one that is due, send the state again."""
        deadline = time.perf_counter() + RESEND
        while (left := deadline - time.perf_counter()) > 0 and not self._stop.is_set():
            link.wait(left)
            answered = self._take(link)
            if answered == stamp:
                return answered
        link.publish(self._state)
        return math.nan

    def _run(self, link: CommandSource) -> None:
        state, action = self._state, self._action
        stamp, episode, step, last_command = 0.0, 0, 0, 0.0
        deadline = time.perf_counter() + self._wall_period
        while not self._stop.is_set():
            time.sleep(max(0.0, deadline - time.perf_counter()))
            deadline += self._wall_period
            behind = time.perf_counter() - deadline
            if behind > self._wall_period:
                missed = int(behind / self._wall_period)
                self.skipped += missed
                deadline += missed * self._wall_period
            if self.paused.is_set():
                continue
            answered = self._take(link)
            while self._lockstep and answered != stamp and not self._stop.is_set():
                answered = self._await(link, stamp)
            if answered == stamp or (step == 0 and self.steps == 0):
                last_command = stamp
            else:
                self.missed_commands += 1
                if stamp - last_command > self._command_timeout:
                    action[:] = self._safe
            np.clip(action, self._low, self._high, out=action)
            observation, reward, terminated, truncated, _ = self._env.step(action)
            truncated = truncated or self._reset_wanted.is_set()
            state[1:7] = stamp, episode, step, reward, terminated, truncated
            self.steps += 1
            stamp = self.steps * self._dt
            step += 1
            if terminated or truncated:
                self._reset_wanted.clear()
                observation, _ = self._env.reset()
                episode, step = episode + 1, 0
            state[0] = stamp
            state[len(HEADER) :] = observation
            link.publish(state)
            if self._viewer is not None:
                self._viewer.show()
