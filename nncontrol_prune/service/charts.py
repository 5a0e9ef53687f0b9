"""Charts as plain data, which the page and the pictures are drawn from alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Values = tuple[float, ...]
Kind = Literal["line", "step", "points", "bars"]
Marker = Literal["circle", "ring", "cross", "plus", "triangle", "diamond"]
ChartName = Literal["coefficients", "sparsity", "responses", "eigenvalues", "attraction", "robustness", "latency"]
"""By these alone a directory's pictures are known to be a report's."""


@dataclass(frozen=True)
class Series:
    """What has one name in the legend.

    Attributes:
        name: In the legend; empty to leave it out.
        kind: A step holds a value until the next one; bars lie, and are as long as their `spans`.
        x: NaN is a gap.
        y: As many as `x`.
        colour: As #rrggbb.
        marker: Of points; `ring` is a circle that leaves its middle free.
        dashed: Of lines: for bounds, and what else is there to compare with.
        hatched: Of bars.
        size: Diameter of points in pixels; width of lines.
        spans: From where to where along x: of bars, and intervals around points.
        hover: What is shown when the mouse is over each; empty to show the numbers.
    """

    name: str
    kind: Kind
    x: Values
    y: Values
    colour: str
    marker: Marker = "circle"
    dashed: bool = False
    hatched: bool = False
    size: float = 9.0
    spans: tuple[tuple[float, float], ...] = ()
    hover: tuple[str, ...] = ()


@dataclass(frozen=True)
class Axis:
    """One of the two axes of a panel.

    Attributes:
        label: With the unit; empty for none.
        logarithmic: Whether it is.
        percent: Whether 1 is written 100%.
        limits: The first and the last value; chosen to fit the data if None.
        names: What is written at 0, 1, 2, ... instead of numbers; of an upright axis from above to below.
    """

    label: str = ""
    logarithmic: bool = False
    percent: bool = False
    limits: tuple[float, float] | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panel:
    """A pair of axes and what is drawn between them.

    Attributes:
        series: The first is drawn first.
        x: The axis from left to right.
        y: The one from below to above.
        title: Above it; empty for none.
        height: In pixels.
        equal: Whether a step along x is as long as one along y.
    """

    series: tuple[Series, ...]
    x: Axis
    y: Axis
    title: str = ""
    height: int = 320
    equal: bool = False


@dataclass(frozen=True)
class Chart:
    """Panels that belong together: one picture.

    Attributes:
        name: Stem of the picture's file.
        rows: Panels beside each other, as many in each row. The legend of the first is that of all.
        note: A sentence below; empty for none.
        linked: Whether all have one range of x, and those of a row one range of y.
    """

    name: ChartName
    rows: tuple[tuple[Panel, ...], ...]
    note: str = ""
    linked: bool = False

    @property
    def panels(self) -> list[Panel]:
        """All panels, row by row."""
        return [panel for row in self.rows for panel in row]
