"""What a report draws."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np

from nncontrol_prune.controllers.bundle import short
from nncontrol_prune.controllers.verdict import ConditionSummary, Decision, share_kept
from nncontrol_prune.drawing import DENSE, PRUNED, without_wraps
from nncontrol_prune.pruning.group_report import GroupReport
from nncontrol_prune.service.charts import Axis, Chart, Kind, Marker, Panel, Series, Values
from nncontrol_prune.service.report import CurvePoint, Report
from nncontrol_prune.shares import percent_removed
from nncontrol_prune.validation.evidence import Attraction, Response, Track
from nncontrol_prune.validation.stability import LocalStability, Pole

COMPONENTS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d31")
"""Of Okabe and Ito, which the colour-blind tell apart; they start again if there are more components."""
SEVERAL, KEPT, QUIET, GOOD, BAD = "#4d4d4d", "#e3e6ea", "#9aa3ad", "#1b7a5a", "#c0392b"

MOST_COMMANDS = 6
"""Commands that are drawn; the page would be a wall of them for a humanoid."""
SETTLED = 0.02
"""Share of its own range that a signal stays within of where it ends, once it has settled."""
LIMIT_IN_SIGHT = 10.0
"""A limit is drawn if it is at most so many times the largest value; further out it would press the curves flat."""

SLOW = 0.15
"""Distance from 1 within which poles are drawn a second time, closer: at a fast rate all that matters is there."""

DECISIONS: dict[Decision, tuple[str, str, Marker]] = {
    "accept": ("accepted", GOOD, "circle"),
    "inconclusive": ("inconclusive", QUIET, "triangle"),
    "reject": ("rejected", BAD, "cross"),
}
"""How they are called and drawn."""

STYLES: dict[str, tuple[str, Marker, float]] = {"dense": (DENSE, "circle", -0.14), "pruned": (PRUNED, "diamond", 0.14)}
"""How points of each controller are drawn, and how far beside their row."""

OUTCOMES: tuple[tuple[tuple[bool, bool], str, str, Marker], ...] = (
    ((True, True), "both succeed", QUIET, "circle"),
    ((False, False), "neither", "#222222", "plus"),
    ((False, True), "only the pruned one", DENSE, "triangle"),
    ((True, False), "only the dense one", BAD, "cross"),
)
"""(Dense, pruned) succeed: how that is called and drawn; the last is drawn over all others."""


def charts_of(report: Report) -> dict[str, Chart]:
    """Return the charts that there is data for, by name, in the order of the page."""
    evidence = report.evidence
    found: list[Chart | None] = [coefficients_chart(report.groups), curve_chart(report)]
    if evidence is not None:
        found += [
            responses_chart(evidence.responses, report.rate),
            eigenvalues_chart(evidence.dense_local, evidence.pruned_local),
            attraction_chart(evidence.attraction),
        ]
    if report.verdict.dense is not None:
        found.append(robustness_chart(report.verdict.robustness, report.verdict.dense.return_mean))
    if evidence is not None:
        share = report.verdict.thresholds.get("latency_share")
        limit = None if share is None else share / report.rate
        found.append(latency_chart(evidence.dense_latencies, evidence.pruned_latencies, limit))
    return {chart.name: chart for chart in found if chart is not None}


def coefficients_chart(groups: Sequence[GroupReport]) -> Chart | None:
    """Draw which share of each group's channels was removed, coloured by component; None without groups."""
    if not groups:
        return None
    components = list(dict.fromkeys(name for group in groups for name in group.components))
    # What couples components comes first: it is what breaks a controller soonest.
    ordered = sorted(groups, key=lambda group: (len(group.components) == 1, components.index(group.components[0])))
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(ordered):
        rows.setdefault(_component(group), []).append(row)
    removed = [1.0 - group.kept / group.channels for group in ordered]

    def bars(name: str, rows: list[int], colour: str, spans: list[tuple[float, float]], hatched: bool) -> Series:
        texts = tuple(_group_text(ordered[row]) for row in rows)
        x, y = tuple(end for _, end in spans), tuple(map(float, rows))
        return Series(name, "bars", x, y, colour, spans=tuple(spans), hatched=hatched, hover=texts)

    series = []
    for name, mine in rows.items():
        colour = COMPONENTS[components.index(name) % len(COMPONENTS)] if name in components else SEVERAL
        spans = [(0.0, removed[row]) for row in mine]
        series.append(bars(f"removed: {name}", mine, colour, spans, hatched=name not in components))
    series.append(bars("kept", [*range(len(ordered))], KEPT, [(share, 1.0) for share in removed], hatched=False))
    names = tuple(f"{group.name}  {group.channels} → {group.kept}" for group in ordered)
    panel = Panel(
        tuple(series),
        Axis("share of the group's channels", percent=True, limits=(0.0, 1.0)),
        Axis(names=names),
        height=110 + 30 * len(names),
    )
    return Chart("coefficients", ((panel,),))


def _component(group: GroupReport) -> str:
    return group.components[0] if group.kind == "intra-component" else "several components"


def _group_text(group: GroupReport) -> str:
    return (
        f"{group.name} ({group.kind}: {', '.join(group.components)}): {group.kept} of {group.channels} channels kept, "
        f"coefficient {group.coefficient:.3f}, {group.parameters_per_channel:,} parameters a channel"
    )


def curve_chart(report: Report) -> Chart | None:
    """Draw what is left of the return of all that was pruned from one controller; None if nothing was judged."""
    points = report.curve
    if not points:
        return None
    line = [(0.0, 1.0), *((point.sparsity, point.return_ratio) for point in points)]
    series = [
        Series("", "line", *_columns(line), QUIET, size=1.2),
        Series("dense", "points", (0.0,), (1.0,), DENSE, "diamond", size=13, hover=("the dense controller",)),
    ]
    for decision, (name, colour, marker) in DECISIONS.items():
        mine = [point for point in points if point.decision == decision]
        if mine:
            places = _columns([(point.sparsity, point.return_ratio) for point in mine])
            texts = tuple(_point_text(point) for point in mine)
            series.append(Series(name, "points", *places, colour, marker, size=11, hover=texts))
    own = [(point.sparsity, point.return_ratio) for point in points if point.reference == report.verdict.candidate]
    if own:
        series.append(Series("this candidate", "points", *_columns(own), PRUNED, "ring", size=22))
    least = report.verdict.thresholds.get("return_ratio")
    if least is not None:
        series.append(Series("asked for", "line", (0.0, 1.0), (least, least), SEVERAL, dashed=True, size=1.2))
    x = Axis("sparsity (share of parameters removed)", percent=True, limits=(-0.02, 1.02))
    return Chart("sparsity", ((Panel(tuple(series), x, Axis("mean return, of the dense one's", percent=True)),),))


def _point_text(point: CurvePoint) -> str:
    return (
        f"{short(point.reference)}: {DECISIONS[point.decision][0]}; {percent_removed(point.sparsity)} removed, "
        f"{point.return_ratio:.1%} of the return; success {point.success:.1%}, dense {point.dense_success:.1%}, in "
        f"{point.pairs} pairs"
    )


def responses_chart(responses: Sequence[Response], rate: float) -> Chart | None:
    """Draw both controllers' signals and commands over time: an episode a column, a signal or command a row.

    Args:
        responses: The episodes.
        rate: Control rate in Hz.
    """
    if not responses:
        return None
    signals, commands = [*responses[0].dense.signals], [*responses[0].dense.commands]
    settled, whole = _settling_time(responses, rate)
    time = Axis("time [s]")
    notes = []
    if settled < whole / 2:
        # What happens is at the beginning, and would be a vertical line.
        time = Axis("time [s]", limits=(0.0, settled))
        notes.append(f"Shown are the first {settled:g} s of {whole:.4g} s; all has settled by then.")
    rows = [
        tuple(_signal_panel(response, name, rate, time, first=name == signals[0]) for response in responses)
        for name in signals
    ]
    rows += [
        tuple(_command_panel(response, joint, rate, time) for response in responses)
        for joint in commands[:MOST_COMMANDS]
    ]
    left_out = commands[MOST_COMMANDS:]
    if left_out:
        notes.append(f"Not drawn, and in report.json: the commands of {', '.join(left_out)}.")
    return Chart("responses", tuple(rows), " ".join(notes), linked=True)


def _settling_time(responses: Sequence[Response], rate: float) -> tuple[float, float]:
    """Return when everything has settled, rounded up, and how long the longest episode is; in seconds."""
    tracks = [track for response in responses for track in (response.dense, response.pruned)]
    lines = [values for track in tracks for values in (*track.signals.values(), *track.commands.values())]
    last = 0
    for values in map(np.array, lines):
        # NaN is never near, so that nothing is called settled that is not known to be.
        away = np.flatnonzero(~(np.abs(values - values[-1]) <= SETTLED * np.ptp(values)))
        last = max(last, int(away[-1]) if len(away) else 0)
    return float(math.ceil(1.25 * last / rate) or 1), (max(map(len, lines)) - 1) / rate


def _signal_panel(response: Response, name: str, rate: float, time: Axis, *, first: bool) -> Panel:
    both = [
        (who, tuple(without_wraps(_finite(track.signals[name])).tolist()))
        for who, track in (("dense", response.dense), ("pruned", response.pruned))
    ]
    title = _response_title(response) if first else ""
    return Panel(_overlaid("line", both, rate), time, Axis(_folded(name)), title, height=190)


def _command_panel(response: Response, joint: str, rate: float, time: Axis) -> Panel:
    both = [("dense", _finite(response.dense.commands[joint])), ("pruned", _finite(response.pruned.commands[joint]))]
    return Panel(_overlaid("step", both, rate), time, Axis(_folded(f"command, {joint}")), height=160)


def _overlaid(kind: Kind, both: Sequence[tuple[str, Values]], rate: float) -> tuple[Series, ...]:
    """Return both lines, the lower one wider, so that it is seen where the other one lies on it."""
    looks = ((DENSE, 4.0), (PRUNED, 1.6)) if kind == "line" else ((DENSE, 2.6), (PRUNED, 1.2))
    return tuple(
        Series(who, kind, _times(len(values), rate), values, colour, size=size)
        for (who, values), (colour, size) in zip(both, looks, strict=True)
    )


def _folded(label: str) -> str:
    """Return a label in lines that are short enough for the height of a panel."""
    return textwrap.fill(label, 20)


def _response_title(response: Response) -> str:
    def told(track: Track) -> str:
        return f"{track.episode_return:.4g}{'' if track.success else ' (fails)'}"

    return f"seed {response.seed}: return {told(response.dense)}, pruned {told(response.pruned)}"


def eigenvalues_chart(dense: LocalStability | None, pruned: LocalStability | None) -> Chart | None:
    """Draw both loops' poles and the unit circle; None if neither comes to rest."""
    if dense is None and pruned is None:
        return None
    angles = np.linspace(0.0, 2.0 * math.pi, 721)
    circle = tuple(np.cos(angles).tolist()), tuple(np.sin(angles).tolist())
    series = [Series("unit circle", "line", *circle, SEVERAL, size=1.2)]
    poles: list[Pole] = []
    if dense is not None:
        series.append(_poles_of("dense", dense, DENSE, "ring", 13.0))
        poles += dense.poles
    if pruned is not None:
        series.append(_poles_of("pruned", pruned, PRUNED, "cross", 11.0))
        poles += pruned.poles
    reach = 1.12 * max(1.0, *(math.hypot(pole.real, pole.imaginary) for pole in poles))
    panels = [_plane(series, 0.0, reach, "all poles")]
    slow = [distance for pole in poles if (distance := math.hypot(pole.real - 1.0, pole.imaginary)) < SLOW]
    if slow:
        panels.append(_plane(series, 1.0, 1.4 * max(slow), "near 1, where poles are slow"))
    return Chart("eigenvalues", (tuple(panels),))


def _poles_of(who: str, local: LocalStability, colour: str, marker: Marker, size: float) -> Series:
    texts = tuple(
        f"{who}: magnitude {math.hypot(pole.real, pole.imaginary):.4f}, damping ratio {pole.damping:.3f}, "
        f"{pole.frequency:.3g} Hz"
        for pole in local.poles
    )
    places = _columns([(pole.real, pole.imaginary) for pole in local.poles])
    return Series(who, "points", *places, colour, marker, size=size, hover=texts)


def _plane(series: Sequence[Series], centre: float, reach: float, title: str) -> Panel:
    x = Axis("real part", limits=(centre - reach, centre + reach))
    return Panel(tuple(series), x, Axis("imaginary part", limits=(-reach, reach)), title, height=480, equal=True)


def attraction_chart(attraction: Attraction | None) -> Chart | None:
    """Draw from which starts both controllers, one of them or neither succeeds; None if none were tried."""
    if attraction is None:
        return None
    found = list(zip(attraction.dense, attraction.pruned, strict=True))
    series = []
    for outcome, name, colour, marker in OUTCOMES:
        places = [start for start, each in zip(attraction.starts, found, strict=True) if each == outcome]
        if places:
            named = f"{name}: {len(places)}"
            series.append(Series(named, "points", *_columns(places), colour, marker, size=8 if all(outcome) else 11))
    x, y = attraction.labels
    return Chart("attraction", ((Panel(tuple(series), Axis(x), Axis(y), height=440),),))


def robustness_chart(conditions: Sequence[ConditionSummary], usual: float) -> Chart | None:
    """Draw how often both succeed under each condition, with 95 % intervals, and their returns; None if none was run.

    Args:
        conditions: What both did.
        usual: The dense controller's mean return in the environment as it is.
    """
    if not conditions:
        return None

    def success(who: str, found: list[tuple[int, tuple[float, float]]]) -> Series:
        texts = tuple(
            f"{condition.condition}: {who} succeeds in {count} of {condition.pairs}, {low:.1%} to {high:.1%}"
            for (count, (low, high)), condition in zip(found, conditions, strict=True)
        )
        shares = [count / condition.pairs for (count, _), condition in zip(found, conditions, strict=True)]
        return _pointwise(who, shares, texts, spans=tuple(interval for _, interval in found))

    def returned(who: str, found: list[float]) -> Series:
        texts = tuple(
            f"{condition.condition}: {who} returns {value:.4g}, as it is the dense controller {usual:.4g}"
            for value, condition in zip(found, conditions, strict=True)
        )
        return _pointwise(who, [share_kept(value, usual) for value in found], texts)

    height = 110 + 44 * len(conditions)
    successes = Panel(
        (
            success("dense", [(each.dense_successes, each.dense_interval) for each in conditions]),
            success("pruned", [(each.pruned_successes, each.pruned_interval) for each in conditions]),
        ),
        Axis("share of episodes that succeed, with its 95 % interval", percent=True, limits=(-0.02, 1.02)),
        Axis(names=tuple(f"{each.condition}  ({each.regressions} of {each.pairs} regress)" for each in conditions)),
        height=height,
    )
    returns = Panel(
        (
            returned("dense", [each.dense_return for each in conditions]),
            returned("pruned", [each.pruned_return for each in conditions]),
        ),
        Axis("mean return, as a share of the dense controller's in the environment as it is", percent=True),
        Axis(names=tuple(each.condition for each in conditions)),
        height=height,
    )
    return Chart("robustness", ((successes,), (returns,)))


def _pointwise(
    who: str,
    shares: Sequence[float],
    texts: tuple[str, ...],
    spans: tuple[tuple[float, float], ...] = (),
) -> Series:
    """Return a controller's points, one a row; the dense one's are a little above the pruned one's."""
    colour, marker, dy = STYLES[who]
    y = tuple(row + dy for row in range(len(shares)))
    return Series(who, "points", tuple(shares), y, colour, marker, size=10, spans=spans, hover=texts)


def latency_chart(dense: Values, pruned: Values, limit: float | None) -> Chart | None:
    """Draw which share of actions took at most how long.

    Args:
        dense: Seconds, in ascending order.
        pruned: The candidate's.
        limit: What the gate allows to 99 of 100, in seconds; None if it was not asked.
    """
    if not dense or not pruned:
        return None
    both = (("dense", dense, DENSE), ("pruned", pruned, PRUNED))
    series = [
        Series(
            who,
            "step",
            tuple(1e6 * value for value in values),
            tuple((index + 1) / len(values) for index in range(len(values))),
            colour,
            size=2.0,
        )
        for who, values, colour in both
    ]
    note = ""
    if limit is not None:
        largest = max(dense[-1], pruned[-1])
        if limit <= LIMIT_IN_SIGHT * largest:
            place = (1e6 * limit, 1e6 * limit)
            series.append(Series("allowed to 99 of 100", "line", place, (0.0, 1.0), BAD, dashed=True, size=1.4))
        else:
            note = (
                f"99 of 100 actions may take {1e6 * limit:,.0f} µs, which is {limit / largest:,.0f} times the longest "
                "seen here and lies far to the right."
            )
    x = Axis("time for an action [µs]", logarithmic=True)
    y = Axis("share of actions", percent=True, limits=(0.0, 1.02))
    return Chart("latency", ((Panel(tuple(series), x, y),),), note)


def _columns(places: Sequence[tuple[float, float]]) -> tuple[Values, Values]:
    return tuple(x for x, _ in places), tuple(y for _, y in places)


def _times(ticks: int, rate: float) -> Values:
    return tuple(tick / rate for tick in range(ticks))


def _finite(values: Sequence[float]) -> Values:
    """Return values with gaps where they are infinite."""
    return tuple(value if math.isfinite(value) else math.nan for value in values)
