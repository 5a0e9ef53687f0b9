"""Pictures of a run, and of reconstructed images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import matplotlib
import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.specs import ActionSpec
from nncontrol_prune.drawing import DENSE, PRUNED, without_wraps
from nncontrol_prune.plants.tasks import Signal, task_of
from nncontrol_prune.rollouts.reader import Rollouts
from nncontrol_prune.runtime.statistics import BUNDLE, COMPUTE, PERIOD

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SHARED_AXIS = 2
"""Commands that can be told apart on one axis; of more, each has a lane of its own."""
LANE = 0.24
"""Height of a lane in inches."""


def plot_run(
    path: Path,
    environment: str,
    rollouts: Rollouts,
    action: ActionSpec,
    ticks: NDArray[np.float64],
    active_by_swap: Sequence[str],
    real_time_factor: float = 1.0,
) -> None:
    """Draw the task's signal, the commands and the tick times of a run, across its swaps.

    Args:
        path: The PNG to write.
        environment: Gymnasium id, which says what the signal is.
        rollouts: The run's transitions.
        action: The controller's action, for names and units.
        ticks: The loop's ticks, (ticks, 5).
        active_by_swap: Which controller was active after how many swaps; the first is the dense one.
        real_time_factor: Plant seconds per second.
    """
    signals = task_of(environment).signals or {"first observation": Signal(entry=0)}
    name, shown = next(iter(signals.items()))
    heights = [2.6, max(2.0, LANE * action.size), 1.6]
    figure, (top, middle, bottom) = plt.subplots(
        3, 1, figsize=(10, sum(heights) + 0.3), sharex=True, constrained_layout=True, height_ratios=heights
    )
    commands = _in_lanes(rollouts.action, action) if action.size > SHARED_AXIS else rollouts.action
    time = rollouts.stamp
    signal = without_wraps(shown.of(rollouts.observation))
    signal[np.diff(rollouts.episode, prepend=rollouts.episode[0]) != 0] = np.nan
    tick_time = real_time_factor * np.cumsum(np.nan_to_num(ticks[:, PERIOD]))
    dense = active_by_swap[0]
    row_is_dense = np.array([i >= 0 and rollouts.controllers[i] == dense for i in rollouts.bundle])
    tick_is_dense = np.array([reference == dense for reference in active_by_swap])[ticks[:, BUNDLE].astype(int)]
    for is_dense, label, colour in ((True, "dense", DENSE), (False, "pruned", PRUNED)):
        mine = row_is_dense == is_dense
        if not mine.any():
            continue
        # Gaps where the other one was active.
        top.plot(time, np.where(mine, signal, np.nan), color=colour, lw=1.2, label=label)
        for index in range(action.size):
            style = ":" if index and action.size <= SHARED_AXIS else "-"
            middle.plot(time, np.where(mine, commands[:, index], np.nan), style, color=colour, lw=0.7)
        ours = tick_is_dense == is_dense
        bottom.plot(tick_time[ours], 1e6 * ticks[ours, COMPUTE], ".", ms=1.5, color=colour)
    for axis in (top, middle, bottom):
        for swap in time[1:][np.diff(rollouts.bundle) != 0]:
            axis.axvline(swap, color="0.35", lw=1, ls="--")
        axis.grid(alpha=0.25)
    for start in time[np.diff(rollouts.episode, prepend=rollouts.episode[0]) != 0]:
        top.axvline(start, color="0.8", lw=0.8)
    top.set_ylabel(shown.label(name))
    if action.size > SHARED_AXIS:
        middle.set_yticks(range(action.size), action.joints, fontsize=7)
        middle.set_ylim(action.size - 0.5, -0.5)
        middle.set_ylabel("commands" if action.is_commanded else "actions")
    else:
        what = "command" if action.is_commanded else "action"
        middle.set_ylabel(f"{what} [{action.unit}]" if action.unit and action.is_commanded else what)
    bottom.set_ylabel("tick time [µs]")
    bottom.set_yscale("log")
    bottom.set_xlabel("time [s]  (dashed: the swap; grey: a new episode)")
    swapped = (np.diff(rollouts.bundle) != 0).any()
    top.set_title(f"{environment}: the controller is pruned and swapped while it runs" if swapped else environment)
    top.title.set_fontsize(11)
    top.legend(loc="upper right", framealpha=0.9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _in_lanes(commands: NDArray[np.float64], action: ActionSpec) -> NDArray[np.float64]:
    """Return commands (ticks, m) one below the other, each between its limits in a lane around its number.

    The axis they are drawn on is upside down, so that the first is on top.
    """
    lower, upper = np.array(action.lower), np.array(action.upper)
    return np.asarray(np.arange(action.size) + 0.9 * (0.5 - (commands - lower) / (upper - lower)))


def plot_reconstructions(file: IO[bytes], rows: Sequence[tuple[str, str, NDArray[np.float32]]]) -> None:
    """Draw images in rows, such as originals above what networks make of them.

    Args:
        file: Where the PNG goes.
        rows: A title, a line of figures, and images (images, height, width) in 0..1; as many in each row.
    """
    columns = len(rows[0][2])
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(0.72 * columns + 1.9, 0.78 * len(rows)), squeeze=False, constrained_layout=True
    )
    for axis, (title, figures, images) in zip(axes[:, 0], rows, strict=True):
        # Dark on light, as in print, and a little apart.
        tiles = np.pad(1.0 - images, ((0, 0), (0, 0), (1, 1)), constant_values=1.0)
        axis.imshow(np.concatenate(tiles, axis=1), cmap="gray", vmin=0.0, vmax=1.0)
        axis.set_axis_off()
        axis.text(-0.015, 0.68, title, transform=axis.transAxes, ha="right", va="center", fontsize=9, weight="bold")
        axis.text(-0.015, 0.3, figures, transform=axis.transAxes, ha="right", va="center", fontsize=7.5, color="0.35")
    figure.savefig(file, dpi=110, bbox_inches="tight", pad_inches=0.1)
    plt.close(figure)
