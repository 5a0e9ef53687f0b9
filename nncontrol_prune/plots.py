"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.specs import ActionSpec
from nncontrol_prune.plants.tasks import task_of
from nncontrol_prune.rollouts.reader import Rollouts
from nncontrol_prune.runtime.statistics import BUNDLE, COMPUTE, PERIOD

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DENSE, PRUNED = "#2b5d8c", "#d9822b"


def plot_run(path: Path, environment: str, rollouts: Rollouts, action: ActionSpec, ticks: NDArray[np.float64]) -> None:
    """Draw the task's signal, the commands and the tick times of a run, across its swaps.

    Args:
        path: The PNG to write.
        environment: Gymnasium id, which says what the signal is.
        rollouts: The run's transitions.
        action: The controller's action, for names and units.
        ticks: The loop's ticks, (ticks, 5).
    """
    task = task_of(environment)
    figure, (top, middle, bottom) = plt.subplots(
        3, 1, figsize=(10, 6.5), sharex=True, constrained_layout=True, height_ratios=[2, 1.5, 1.2]
    )
    time = rollouts.stamp
    signal = task.signal(rollouts.observation).astype(float)
    jumps = np.abs(np.diff(signal, prepend=signal[:1])) > np.pi
    signal[jumps | (np.diff(rollouts.episode, prepend=rollouts.episode[0]) != 0)] = np.nan
    tick_time = np.cumsum(np.nan_to_num(ticks[:, PERIOD]))
    for swaps in np.unique(rollouts.bundle):
        colour = DENSE if swaps == 0 else PRUNED
        label = "dense" if swaps == 0 else "pruned"
        mine = rollouts.bundle == swaps
        top.plot(time[mine], signal[mine], color=colour, lw=1.2, label=label)
        for index, joint in enumerate(action.joints):
            style = "-" if index == 0 else ":"
            middle.plot(time[mine], rollouts.action[mine, index], style, color=colour, lw=0.7, label=joint)
        ours = ticks[:, BUNDLE] == swaps
        bottom.plot(tick_time[ours], 1e6 * ticks[ours, COMPUTE], ".", ms=1.5, color=colour)
    for axis in (top, middle, bottom):
        for swap in time[1:][np.diff(rollouts.bundle) != 0]:
            axis.axvline(swap, color="0.35", lw=1, ls="--")
        axis.grid(alpha=0.25)
    for start in time[np.diff(rollouts.episode, prepend=rollouts.episode[0]) != 0]:
        top.axvline(start, color="0.8", lw=0.8)
    top.set_ylabel(task.signal_label)
    middle.set_ylabel(f"command [{action.unit}]" if action.unit else "command")
    bottom.set_ylabel("tick time [µs]")
    bottom.set_yscale("log")
    bottom.set_xlabel("time [s]  (dashed: the swap; grey: a new episode)")
    top.set_title(f"{environment}: the controller is pruned and swapped while it runs", fontsize=11)
    top.legend(loc="upper right", framealpha=0.9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
