"""What the controller node says of itself in `/diagnostics`."""

from __future__ import annotations

import math
import time

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus

from nncontrol_prune.controllers.bundle import short
from nncontrol_prune.rollouts.recorder import Recorder
from nncontrol_prune.ros.diagnostics import Problem
from nncontrol_prune.ros.loop_runner import LoopRunner
from nncontrol_prune.runtime.inputs import Arrival
from nncontrol_prune.runtime.slot import ControllerSlot
from nncontrol_prune.runtime.statistics import PERIOD, TickStatistics

RECENT = 2.0
"""Seconds for which a problem that has passed is still told."""
HISTORY = 5
"""How many swaps are told."""
LAST_TICKS, GROUP, FEWEST_GROUPS = 1000, 10, 5
"""How many ticks the rate is taken over, how many of them a mean, and how many means it takes."""
OFF_RATE = 0.1
"""How far the rate of the ticks may be off the controller's, as a share, before it is told."""


def health(
    slot: ControllerSlot | None, runner: LoopRunner | None, recorder: Recorder | None, *, active: bool
) -> tuple[list[Problem], dict[str, object]]:
    """Return what is wrong, with its level, and figures by name."""
    if slot is None or runner is None:
        return [(DiagnosticStatus.STALE, "not configured: there is no controller")], {}
    values: dict[str, object] = {"active bundle": slot.active.reference, "swaps": slot.swaps}
    for event in slot.events[-HISTORY:]:
        values[f"swap {event.swaps}"] = f"{event.reason} to {short(event.reference)} in {1e6 * event.duration:.0f} us"
    problems: list[Problem] = []
    if slot.on_probation:
        values["on probation"] = True
    _add_inputs(runner, problems, values, active=active)
    _add_ticks(slot, runner, problems, values)
    if recorder is not None:
        values["bag"] = recorder.directory
        values["recorded messages"] = recorder.written
        values["messages not recorded"] = recorder.dropped
        if recorder.dropped and recorder.failure is None:  # of which the node tells itself
            reason = f": {recorder.reason}" if recorder.reason else ""
            problems.append((DiagnosticStatus.WARN, f"{recorder.dropped} messages could not be recorded{reason}"))
    if slot.problem is not None:
        problems.append((DiagnosticStatus.ERROR, slot.problem))
    if not active:
        values["state"] = "inactive: commands nothing"
    return problems, values


def _add_inputs(runner: LoopRunner, problems: list[Problem], values: dict[str, object], *, active: bool) -> None:
    link = runner.link
    monitor = link.monitor
    values["states taken"] = monitor.counts[Arrival.NEW]
    values["states twice, early, late"] = ", ".join(
        str(monitor.counts[kind]) for kind in (Arrival.DUPLICATE, Arrival.EARLY, Arrival.LATE)
    )
    values["states missed"] = monitor.gaps
    values["clock jumps back"] = monitor.jumps_back
    recent = time.perf_counter() - link.problem_time < RECENT
    if recent:
        level = DiagnosticStatus.ERROR if link.problem else DiagnosticStatus.WARN
        problems.append((level, link.problem or "a state could not be acted on a moment ago"))
    if monitor.ahead and not runner.stale:
        text = f"joint states are stamped {monitor.ahead:.3f} s ahead of the clock, so it is not seen when they are old"
        problems.append((DiagnosticStatus.WARN, text))
    if active and runner.stale:
        reason = "no joint states that can be acted on are coming: the safe command is sent"
        if link.last_state == float("-inf"):
            reason = f"nothing is commanded: {link.absence}"
        problems.append((DiagnosticStatus.ERROR, reason))


def _add_ticks(slot: ControllerSlot, runner: LoopRunner, problems: list[Problem], values: dict[str, object]) -> None:
    loop = runner.loop
    if loop is None or not loop.statistics.ticks:
        return
    rate = slot.active.manifest.rate
    summary = loop.statistics.summary()
    found = rate_of(loop.statistics) / runner.pace
    values["ticks"] = summary.ticks
    values["rate [Hz]"] = f"{found:.2f}"
    values["rate of the controller [Hz]"] = f"{rate:g}"
    for name, quantiles in (("lateness", summary.lateness), ("compute", summary.compute)):
        figures = (1e3 * value for value in (quantiles.p50, quantiles.p99, quantiles.max))
        values[f"{name} p50, p99, max [ms]"] = ", ".join(f"{figure:.3f}" for figure in figures)
    values["overruns"], values["skipped"] = summary.overruns, summary.skipped
    values["actions that were no numbers"], values["observations that were none"] = loop.faults, loop.unsound
    values["ticks without an observation"] = loop.stale
    values["real-time priority granted"] = loop.real_time
    values["executor"] = runner.executor_name
    if loop.faults:
        problems.append((DiagnosticStatus.WARN, f"the controller gave {loop.faults} actions that were no numbers"))
    if abs(found / rate - 1) > OFF_RATE and not runner.stale:
        text = f"ticks come at {found:.1f} Hz, the controller was made for {rate:g}"
        problems.append((DiagnosticStatus.WARN, text))


def rate_of(statistics: TickStatistics) -> float:
    """Return the rate of the last ticks in Hz; NaN for too few of them.

    Where states come faster than the ticks, a tick's period is that of one state or of several in turns: the means of
    some ticks are alike, and their median leaves out where nothing came.
    """
    periods = statistics.rows(statistics.ticks - LAST_TICKS)[:, PERIOD]
    periods = periods[np.isfinite(periods)]
    means = periods[: len(periods) // GROUP * GROUP].reshape(-1, GROUP).mean(axis=1)
    return float(1 / np.median(means)) if len(means) >= FEWEST_GROUPS else math.nan
