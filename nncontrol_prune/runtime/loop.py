"""The control loop: reads an observation, asks the slot for an action, commands the plant; at a fixed rate."""

from __future__ import annotations

import gc
import math
import sys
import threading
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.limits import ActionLimits
from nncontrol_prune.runtime.scheduling import run_in_real_time
from nncontrol_prune.runtime.slot import ControllerSlot
from nncontrol_prune.runtime.statistics import TickStatistics

SWITCH_INTERVAL = 1e-4
"""How long another Python thread of the process may keep the loop waiting, in seconds (Python's default is 5 ms)."""


LEAD = 5e-4
"""How long before a deadline the loop wakes, in seconds, or an eighth of the period if that is less: it then goes once
through what the tick will do, without commanding anything, since code and weights have left the processor's caches
while it slept. Seen here at 100 Hz: a tick of 60 µs instead of 330."""

WAIT = 0.1
"""How long the loop waits for its plant at a time, in seconds, before it looks whether it should stop."""


LONGEST_BACKOFF = 64
"""A controller much too slow for such a rehearsal is rehearsed ever more rarely, at the least after so many ticks."""


class PlantConnection(Protocol):
    """How the loop reaches its plant. But for `wait`, no method may block."""

    def wait(self, timeout: float) -> bool:
        """Wait for the next observation to arrive, for a number of seconds; return whether it did."""
        ...

    def read(self, observation: NDArray[np.float64]) -> float:
        """Fill in the newest observation (n,) and return its stamp in plant seconds; NaN if there never was one."""
        ...

    def write(self, stamp: float, action: NDArray[np.float64]) -> None:
        """Command the plant with an action (m,), computed from the observation of that stamp."""
        ...

    def after_tick(self) -> None:
        """Do what can wait until the command has left."""
        ...


class TransitionSink(Protocol):
    """Where the loop leaves its transitions; never blocks."""

    def transition(
        self, stamp: float, bundle: int, observation: NDArray[np.float64], action: NDArray[np.float64]
    ) -> bool:
        """Take one transition; return False if it was dropped."""
        ...


def settle_memory() -> None:
    """Spare a loop that is about to run the search for garbage among all there is by now.

    It takes as long as many ticks, so not while a loop runs.
    """
    gc.unfreeze()  # what an earlier loop left is garbage by now, and would stay
    gc.collect()
    gc.freeze()


class ControlLoop:
    """Runs the controller in a slot at its rate, against absolute deadlines on the monotonic clock.

    A tick that cannot start before the next one is due is skipped and counted; the deadlines never drift.

    Args:
        slot: Where the controller is.
        plant: Where observations come from and commands go.
        recorder: Where transitions go; None to keep none.
        period: Seconds of wall-clock time a tick; None for the controller's rate.
        observation_timeout: Age of an observation, in seconds of wall-clock time, past which the safe command is
            sent instead of the controller's.
        realtime_priority: Of the thread that runs the loop, 1..99, if the operating system grants it; 0 for none.
        safe_command: What is sent where the controller's command cannot be; empty for zero.
        observation_limit: Magnitude past which an entry of the observation is as wrong as NaN.

    Raises:
        ControllerError: The safe command has another size than the action, or exceeds its limits.
    """

    def __init__(
        self,
        slot: ControllerSlot,
        plant: PlantConnection,
        recorder: TransitionSink | None = None,
        *,
        period: float | None = None,
        observation_timeout: float = 0.25,
        realtime_priority: int = 0,
        safe_command: Sequence[float] = (),
        observation_limit: float = 1e6,
    ) -> None:
        manifest = slot.active.manifest
        self._slot = slot
        self._plant = plant
        self._recorder = recorder
        self._period = 1.0 / manifest.rate if period is None else period
        self._timeout = max(observation_timeout, 2 * self._period)
        self._limits = ActionLimits(manifest.action, safe_command)
        self._observation = np.zeros(manifest.observation.size)
        self._action = np.zeros(manifest.action.size)
        self._limit = observation_limit
        self._magnitude = np.zeros(manifest.observation.size)
        self._believable = np.zeros(manifest.observation.size, dtype=bool)
        self._realtime_priority = realtime_priority
        self._stop = threading.Event()
        self._started_before, self._last_stamp, self._last_change = math.nan, math.nan, -math.inf
        self._rest, self._backoff = 0, 1  # ticks without a rehearsal, and how many after the next that takes too long
        self.commanding = False
        """Whether the last tick sent the controller's command, and not the safe one for want of a good observation."""
        self.real_time = False
        """Whether the operating system granted the priority."""
        self.statistics = TickStatistics()
        self.faults = 0
        """Actions that held NaN or infinity, and were replaced by the safe command."""
        self.unsound = 0
        """Ticks whose observation held NaN or infinity, and that sent the safe command."""
        self.stale = 0
        """Ticks that had no observation, or too old a one, and sent the safe command."""

    def stop(self) -> None:
        """End the loop after the tick under way; from any thread or signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Run at the rate, against deadlines, until `stop`; on the way out the plant gets the safe command."""
        settle_memory()
        self.prepare()
        try:
            while not self._stop.is_set():
                if self._plant.wait(WAIT):
                    self._run()
        finally:
            self.send_safe_command()

    def prepare(self) -> None:
        """Make the calling thread ready to run the loop, and the others give way to it."""
        sys.setswitchinterval(SWITCH_INTERVAL)
        self.real_time = run_in_real_time(self._realtime_priority)

    def follow(self) -> None:
        """Do one tick now, for a plant whose own beat is followed instead of deadlines.

        All calls come from one thread, which called `prepare` before; `settle_memory` was called before that. Call it
        when an observation has come, and now and then when none comes, so that the safe command is sent. A tick's
        lateness is then by how much its period was longer than the rate's.
        """
        start = time.perf_counter()
        self._slot.swap_if_staged(self.statistics.ticks)
        self._tick(start, start - self._started_before - self._period)
        if time.perf_counter() - start > self._period:
            self.statistics.overruns += 1

    def send_safe_command(self) -> None:
        """Send the safe command, which answers no observation."""
        self._plant.write(math.nan, self._limits.safe_command)

    def _run(self) -> None:
        # The local names save a dictionary look-up each, thousands of times a second.
        clock, sleep, stopped = time.perf_counter, time.sleep, self._stop.is_set
        slot, statistics, period = self._slot, self.statistics, self._period
        # Half a period after the plant's own: then neither clock's jitter decides which observation a tick gets, nor
        # whether its command is in time for the plant's next step.
        deadline = clock() + period / 2
        lead = min(LEAD, period / 8)
        while not stopped():
            sleep(max(0.0, deadline - lead - clock()))
            slot.swap_if_staged(statistics.ticks)
            self.rehearse(deadline + lead)  # a first run after a sleep may take a little longer
            while (start := clock()) < deadline:
                pass

            self._tick(start, start - deadline)
            deadline += period
            late = clock() - deadline
            if late > 0:
                statistics.overruns += 1
                if late > period:
                    missed = int(late / period)
                    statistics.skipped += missed
                    deadline += missed * period

    def _tick(self, start: float, lateness: float) -> None:
        """Read, act, limit and command; then record."""
        clock, slot, plant, limits = time.perf_counter, self._slot, self._plant, self._limits
        recorder, statistics, observation, action = self._recorder, self.statistics, self._observation, self._action
        tick = statistics.ticks
        stamp = plant.read(observation)
        new = stamp != self._last_stamp and math.isfinite(stamp)  # without a time it is no observation, nor a new one
        if new:
            self._last_stamp, self._last_change = stamp, start
        fresh = start - self._last_change <= self._timeout
        np.abs(observation, out=self._magnitude)
        np.less_equal(self._magnitude, self._limit, out=self._believable)  # which NaN is not
        sound = fresh and bool(np.logical_and.reduce(self._believable))
        inference, healthy = math.nan, True
        if sound:
            before = clock()
            self._act()
            inference = clock() - before
            healthy = limits.apply(action)
            self.faults += not healthy
        else:
            # Some networks make numbers of NaN, and a sensor that gives it is no fault of the controller's.
            action[:] = limits.safe_command
            self.unsound += fresh
            self.stale += not fresh
        self.commanding = sound
        plant.write(stamp, action)
        end = clock()

        statistics.record(slot.swaps, start - self._started_before, end - start, lateness, inference)
        plant.after_tick()
        if sound:
            slot.advance()
        if recorder is not None and new and sound:
            recorder.transition(stamp, slot.swaps, observation, action)
        if new and sound:
            slot.tick_passed(tick, healthy)
        self._started_before = start

    def rehearse(self, latest: float) -> None:
        """Go through a tick's work without commanding anything, so that it is in the caches when it counts.

        Args:
            latest: When it should be over, on `time.perf_counter`; if it takes longer, the next ones are left out.
        """
        if self._rest > 0:
            self._rest -= 1
            return
        self._plant.read(self._observation)
        self._act()
        self._limits.apply(self._action)
        in_time = time.perf_counter() < latest
        self._backoff = 1 if in_time else min(2 * self._backoff, LONGEST_BACKOFF)
        self._rest = 0 if in_time else self._backoff

    def _act(self) -> None:
        """Ask the controller for an action; one that raises gives NaN, which the limits replace and count."""
        try:
            self._slot.act(self._observation, self._action)
        except Exception:  # whatever a policy raises, the loop has to go on commanding the plant
            self._action[:] = math.nan
