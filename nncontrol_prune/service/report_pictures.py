"""A report's charts as PNGs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, PercentFormatter, StrMethodFormatter

from nncontrol_prune.service.charts import Axis, Chart, Kind, Marker, Panel, Series

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

WIDTH = 1100
"""Of a picture, in pixels."""
DPI = 100

MARKERS: dict[Marker, str] = {
    "circle": "o",
    "ring": "o",
    "cross": "x",
    "plus": "+",
    "triangle": "^",
    "diamond": "D",
}
POINTS_PER_PIXEL = 72 / DPI


def write_pictures(charts: dict[str, Chart], directory: Path) -> list[Path]:
    """Write each chart to a PNG of its name, and return the paths."""
    return [write_picture(chart, directory / f"{chart.name}.png") for chart in charts.values()]


def write_picture(chart: Chart, path: Path) -> Path:
    """Write a chart to a PNG."""
    heights = [row[0].height for row in chart.rows]
    width = heights[0] * len(chart.rows[0]) * 1.1 if chart.panels[0].equal else WIDTH
    figure, axes = plt.subplots(
        len(chart.rows),
        len(chart.rows[0]),
        figsize=(width / DPI, sum(heights) / DPI),
        height_ratios=heights,
        sharex=chart.linked,
        sharey="row" if chart.linked else False,
        squeeze=False,
        constrained_layout=True,
    )
    try:
        for row, (panels, of_row) in enumerate(zip(chart.rows, axes, strict=True)):
            for column, (panel, axis) in enumerate(zip(panels, of_row, strict=True)):
                _draw(panel, axis)
                axis.set_xlabel("" if chart.linked and row < len(chart.rows) - 1 else panel.x.label)
                axis.set_ylabel("" if chart.linked and column else panel.y.label)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=5, frameon=False, fontsize=9)
        if chart.note:
            figure.supxlabel(chart.note, fontsize=8, color="0.35")
        figure.savefig(path, dpi=DPI)
    finally:
        plt.close(figure)
    return path


def _draw(panel: Panel, axis: Axes) -> None:
    for series in panel.series:
        _DRAWERS[series.kind](series, axis)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if panel.title:
        axis.set_title(panel.title, fontsize=9, loc="left")
    _scale(panel.x, axis, "x")
    _scale(panel.y, axis, "y")
    if panel.equal:
        axis.set_aspect("equal")
        axis.locator_params(nbins=6)


def _scale(scale: Axis, axis: Axes, which: str) -> None:
    ruler = axis.xaxis if which == "x" else axis.yaxis
    set_limits = axis.set_xlim if which == "x" else axis.set_ylim
    if scale.logarithmic:
        (axis.set_xscale if which == "x" else axis.set_yscale)("log")
        ruler.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ruler.set_major_formatter(StrMethodFormatter("{x:,g}"))
        ruler.set_minor_locator(NullLocator())
    if scale.percent:
        ruler.set_major_formatter(PercentFormatter(1.0))
    if scale.limits is not None:
        set_limits(*scale.limits)
    if scale.names:
        ruler.set_major_locator(FixedLocator(range(len(scale.names))))
        ruler.set_ticklabels(scale.names)
        set_limits(len(scale.names) - 0.5, -0.5)


def _label(series: Series) -> str:
    return series.name or "_nolegend_"


def _line(series: Series, axis: Axes) -> None:
    axis.plot(
        series.x,
        series.y,
        color=series.colour,
        lw=series.size * POINTS_PER_PIXEL,
        ls="--" if series.dashed else "-",
        drawstyle="steps-post" if series.kind == "step" else "default",
        label=_label(series),
    )


def _points(series: Series, axis: Axes) -> None:
    if series.spans:
        lengths = np.abs(np.array(series.spans) - np.array(series.x)[:, None]).T
        axis.errorbar(series.x, series.y, xerr=lengths, fmt="none", ecolor=series.colour, elinewidth=1.4, capsize=3)
    axis.plot(
        series.x,
        series.y,
        MARKERS[series.marker],
        color=series.colour,
        ms=series.size * POINTS_PER_PIXEL,
        mfc="none" if series.marker == "ring" else series.colour,
        mew=1.5,
        label=_label(series),
    )


def _bars(series: Series, axis: Axes) -> None:
    starts = [start for start, _ in series.spans]
    axis.barh(
        series.y,
        [end - start for start, end in series.spans],
        left=starts,
        height=0.68,
        color=series.colour,
        hatch="//" if series.hatched else None,
        edgecolor="white" if series.hatched else series.colour,
        lw=0,
        label=_label(series),
    )


_DRAWERS: dict[Kind, Callable[[Series, Axes], None]] = {"line": _line, "step": _line, "points": _points, "bars": _bars}
