"""A report's charts as interactive plots in a page, by Bokeh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from bokeh.embed import components
from bokeh.layouts import gridplot
from bokeh.models import (
    BasicTickFormatter,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    Legend,
    LegendItem,
    LogTicker,
    NumeralTickFormatter,
    PlainText,
    Range1d,
    UIElement,
    Whisker,
)
from bokeh.models.formatters import TickFormatter
from bokeh.plotting import figure
from bokeh.resources import Resources

from nncontrol_prune.service.charts import Axis, Chart, Kind, Marker, Panel, Series

WIDTH = 1080
"""Of a chart, in pixels; the page is as wide."""
TOOLBAR = 34
LEGEND = 30
AROUND = 70
"""What titles and axes take of a panel's height, about."""
FONT = "system-ui, sans-serif"
TOOLS = "pan,wheel_zoom,box_zoom,reset,save"

MARKERS: dict[Marker, str] = {
    "circle": "circle",
    "ring": "circle",
    "cross": "x",
    "plus": "cross",
    "triangle": "triangle",
    "diamond": "diamond",
}


def embedded(charts: Mapping[str, Chart]) -> tuple[str, str, dict[str, str]]:
    """Return what a page needs to show charts: Bokeh itself, the script that draws, and an element for each by name."""
    if not charts:
        return "", "", {}
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    script, elements = components({name: _layout(chart) for name, chart in charts.items()})
    return library, script, dict(elements)


def _layout(chart: Chart) -> UIElement:
    columns = len(chart.rows[0])
    width = (WIDTH - TOOLBAR) // columns
    plots = [[_plot(panel, width) for panel in row] for row in chart.rows]
    if chart.linked:
        _link(plots)
    _add_legends(chart, plots)
    last = len(chart.rows) - 1
    for row, (panels, figures) in enumerate(zip(chart.rows, plots, strict=True)):
        for column, (panel, plot) in enumerate(zip(panels, figures, strict=True)):
            plot.xaxis.axis_label = _plain("" if chart.linked and row < last else panel.x.label)
            plot.yaxis.axis_label = _plain("" if chart.linked and column else panel.y.label)
    return gridplot(plots, merge_tools=True, toolbar_location="right", toolbar_options={"logo": None})


def _link(plots: list[list[figure]]) -> None:
    for row in plots:
        for plot in row:
            plot.x_range = plots[0][0].x_range
            plot.y_range = row[0].y_range


def _plain(text: str) -> PlainText | None:
    """Return a text that is not looked at for formulas, whatever a user has called a joint; None for none."""
    return PlainText(text=text) if text else None


def _plot(panel: Panel, width: int) -> figure:
    """Return a figure with everything but its legend and its axes' labels."""
    scales: dict[str, Any] = {
        "x_axis_type": "log" if panel.x.logarithmic else "linear",
        "y_axis_type": "log" if panel.y.logarithmic else "linear",
    }
    for key, scale in (("x_range", panel.x), ("y_range", panel.y)):
        if scale.names:
            scales[key] = Range1d(len(scale.names) - 0.5, -0.5)
        elif scale.limits is not None:
            scales[key] = Range1d(*scale.limits)
    if panel.equal:
        # What lies between the axes is square, whatever their numbers take.
        scales |= {"frame_width": panel.height - AROUND, "frame_height": panel.height - AROUND}
    plot = figure(width=width, height=panel.height, tools=TOOLS, match_aspect=panel.equal, **scales)
    plot.toolbar.logo = None
    if panel.title:
        plot.title.text = panel.title
    for series in panel.series:
        _DRAWERS[series.kind](plot, series)
    _write_axis(plot.xaxis, panel.x)
    _write_axis(plot.yaxis, panel.y)
    _calm(plot)
    return plot


def _calm(plot: figure) -> None:
    plot.outline_line_color = None
    plot.grid.grid_line_color = "#e8eaee"
    plot.axis.axis_line_color = "#8a919a"
    plot.axis.minor_tick_line_color = None
    plot.axis.axis_label_text_font = plot.axis.major_label_text_font = FONT
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.axis_label_text_font_size = plot.axis.major_label_text_font_size = "12px"
    plot.title.text_font, plot.title.text_font_size = FONT, "12px"
    plot.title.text_font_style = "normal"


def _write_axis(axis: Any, scale: Axis) -> None:
    if scale.names:
        axis.ticker = FixedTicker(ticks=list(range(len(scale.names))))
        axis.major_label_overrides = {row: _plain(name) for row, name in enumerate(scale.names)}
        return
    if scale.logarithmic:
        axis.ticker = LogTicker(mantissas=[1, 2, 5])
        axis.formatter = BasicTickFormatter(use_scientific=False)
    if scale.percent:
        axis.formatter = _percent()


def _percent() -> TickFormatter:
    return NumeralTickFormatter(format="0.[0]%")


def _source(series: Series, **columns: Any) -> ColumnDataSource:
    # As arrays they travel packed, and NaN stays NaN.
    data: dict[str, Any] = {"x": np.array(series.x), "y": np.array(series.y), **columns}
    if series.hover:
        data["text"] = list(series.hover)
    return ColumnDataSource(data)


def _hover(plot: figure, series: Series, renderer: Any) -> None:
    """Show what a series says of each of its points, or their numbers."""
    renderer.name = series.name
    if not series.name:
        return
    told: Any = "@text" if series.hover else [("", "$name"), ("", "@x{0.[0000]}, @y{0.[0000]}")]
    plot.add_tools(HoverTool(renderers=[renderer], tooltips=told, visible=False))


def _line(plot: figure, series: Series) -> None:
    draw = plot.step if series.kind == "step" else plot.line
    more = {"mode": "after"} if series.kind == "step" else {}
    dash = "dashed" if series.dashed else "solid"
    renderer = draw(
        "x", "y", source=_source(series), line_color=series.colour, line_width=series.size, line_dash=dash, **more
    )
    _hover(plot, series, renderer)


def _points(plot: figure, series: Series) -> None:
    low, high = (np.array([span[end] for span in series.spans]) for end in (0, 1))
    source = _source(series, low=low, high=high) if series.spans else _source(series)
    renderer = plot.scatter(
        "x",
        "y",
        source=source,
        marker=MARKERS[series.marker],
        size=series.size,
        line_color=series.colour,
        line_width=1.8,
        fill_color=None if series.marker == "ring" else series.colour,
    )
    _hover(plot, series, renderer)
    if series.spans:
        ends = {"base": "y", "lower": "low", "upper": "high"}
        whisker = Whisker(**ends, dimension="width", source=source, line_color=series.colour, line_width=1.6)
        for head in (whisker.upper_head, whisker.lower_head):
            head.size, head.line_color = 8, series.colour
        plot.add_layout(whisker)


def _bars(plot: figure, series: Series) -> None:
    source = _source(series, left=[start for start, _ in series.spans], right=[end for _, end in series.spans])
    renderer = plot.hbar(
        y="y",
        left="left",
        right="right",
        height=0.68,
        source=source,
        fill_color=series.colour,
        line_color=None,
        hatch_pattern="right_diagonal_line" if series.hatched else None,
        hatch_color="white",
    )
    _hover(plot, series, renderer)


_DRAWERS: dict[Kind, Callable[[figure, Series], None]] = {
    "line": _line,
    "step": _line,
    "points": _points,
    "bars": _bars,
}


def _add_legends(chart: Chart, plots: list[list[figure]]) -> None:
    """Put a legend above each panel of the first row; a click hides a name in all panels."""
    everywhere: dict[str, list[Any]] = {}
    for plot in (plot for row in plots for plot in row):
        for renderer in plot.renderers:
            if renderer.name:
                everywhere.setdefault(renderer.name, []).append(renderer)
    for plot in plots[0]:
        mine = [renderer for renderer in plot.renderers if renderer.name]
        items = []
        for renderer in mine:
            others = [other for other in everywhere[renderer.name] if other is not renderer]
            items.append(LegendItem(label={"value": renderer.name}, renderers=[renderer, *others]))
        legend = Legend(items=items, orientation="horizontal", click_policy="hide", border_line_color=None, padding=2)
        legend.label_text_font, legend.label_text_font_size = FONT, "12px"
        legend.margin, legend.spacing = 2, 14
        plot.add_layout(legend, "above")
        plot.height = (plot.height or 0) + LEGEND
