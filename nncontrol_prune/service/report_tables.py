"""What a report says in tables, beside what the command line says too."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nncontrol_prune.controllers.bundle import short
from nncontrol_prune.controllers.verdict import EpisodeSummary, Verdict
from nncontrol_prune.service.report import Report
from nncontrol_prune.tables import Table
from nncontrol_prune.validation.decrease import Share
from nncontrol_prune.validation.evidence import Evidence, Numbers
from nncontrol_prune.validation.growth import Growth
from nncontrol_prune.validation.metrics import Episode
from nncontrol_prune.validation.stability import LARGEST_DELAY, LARGEST_GAIN, LocalStability, Pole

POLES = 4
"""Of each controller in the table, the slowest to die away."""
NOTHING = "–"


def controllers_table(report: Report) -> Table:
    """Return the two controllers, and how they did in the gate's episodes."""
    rows: list[tuple[str, ...]] = [
        ("controller", short(report.dense.reference), short(report.pruned.reference)),
        ("architecture", report.dense.architecture, report.pruned.architecture),
        ("parameters", f"{report.dense.parameters:,}", f"{report.pruned.parameters:,}"),
    ]
    dense, pruned = report.verdict.dense, report.verdict.pruned
    if dense is not None and pruned is not None:
        rows += [
            ("episodes", f"{dense.episodes:,}", f"{pruned.episodes:,}"),
            ("successes", _successes(dense), _successes(pruned)),
            ("return, mean ± standard deviation", _returns(dense), _returns(pruned)),
        ]
    return Table(("", "dense", "pruned"), tuple(rows))


def _successes(summary: EpisodeSummary) -> str:
    return f"{summary.successes:,} ({summary.successes / summary.episodes:.1%})"


def _returns(summary: EpisodeSummary) -> str:
    return f"{summary.return_mean:.5g} ± {summary.return_std:.3g}"


def behaviour_table(evidence: Evidence) -> Table:
    """Return what was measured of both controllers' episodes, as medians."""
    sides = (evidence.dense_episodes, evidence.pruned_episodes)

    def row(name: str, told: str, value: Callable[[Episode], float | None]) -> tuple[str, ...]:
        # What never settles takes longer than anything that does.
        values = ([math.inf if (found := value(one)) is None else found for one in side] for side in sides)
        medians = (float(np.median(some)) for some in values)
        return (
            name,
            *(told.format(median) if math.isfinite(median) else "does not settle" for median in medians),
        )

    def signal(name: str, field: str) -> Callable[[Episode], float | None]:
        return lambda episode: getattr(episode.signals[name], field)

    rows = []
    for label, name in zip(evidence.responses[0].dense.signals, sides[0][0].signals, strict=False):
        rows += [
            row(f"{label}: settling time", "{:.3g} s", signal(name, "settling_time")),
            row(f"{label}: overshoot", "{:.1%}", signal(name, "overshoot")),
            row(f"{label}: error in the end", "{:.3g}", signal(name, "steady_state_error")),
        ]
    rows += [
        row("commands, root mean square, of half their range", "{:.1%}", lambda episode: episode.effort),
        row("change of the commands, of their range a second", "{:.1%}", lambda episode: episode.action_rate),
    ]
    return Table(("", "dense", "pruned"), tuple(rows), title=f"Medians over {len(sides[0])} episodes")


def local_table(evidence: Evidence) -> Table:
    """Return the figures of both loops near rest."""
    sides = (evidence.dense_local, evidence.pruned_local)

    def row(name: str, told: Callable[[LocalStability], str]) -> tuple[str, ...]:
        return (name, *(NOTHING if side is None else told(side) for side in sides))

    rows = [
        row("spectral radius", lambda local: f"{local.spectral_radius:.5f}"),
        row("locally stable", lambda local: "yes" if local.stable else "no"),
        row("delay margin, ticks", _delay_margin),
        row("gain margins, factors", _gain_margins),
    ]
    most = max(len(_upper(side)) for side in sides if side is not None)
    rows += [
        row(f"pole {index + 1}: damping ratio, frequency", functools.partial(_pole, index=index))
        for index in range(min(POLES, most))
    ]
    return Table(("", "dense", "pruned"), tuple(rows), title="Near rest")


def _delay_margin(local: LocalStability) -> str:
    if not local.stable:
        return NOTHING
    return f"{local.delay_margin}{' or more' if local.delay_margin >= LARGEST_DELAY else ''}"


def _gain_margins(local: LocalStability) -> str:
    if local.gain_margins is None:
        return NOTHING
    low, high = local.gain_margins
    down = "any smaller" if low <= 1.0 / LARGEST_GAIN else f"{low:.2f}"
    up = "any larger" if high >= LARGEST_GAIN else f"{high:.2f}"
    return f"{down} to {up}"


def _upper(local: LocalStability) -> list[Pole]:
    """Return the poles without the lower half of each pair of conjugates."""
    return [pole for pole in local.poles if pole.imaginary >= 0.0]


def _pole(local: LocalStability, index: int) -> str:
    poles = _upper(local)
    return f"{poles[index].damping:.3f}, {poles[index].frequency:.3g} Hz" if index < len(poles) else NOTHING


def wander_table(evidence: Evidence) -> Table | None:
    """Return the Lyapunov decrease, or else how perturbations grow; None if neither was looked at."""
    found = evidence.decrease
    if found is not None:
        row = ("states from which it does not fall", _share(found.dense), _share(found.pruned))
        return Table(("", "dense", "pruned"), (row,), title=f"Lyapunov decrease of {found.function}")
    growths = (evidence.dense_growth, evidence.pruned_growth)
    if growths == (None, None):
        return None
    rates = ("growth rate [1/s]", *(NOTHING if growth is None else _growth(growth) for growth in growths))
    return Table(("", "dense", "pruned"), (rates,), title="Growth of small perturbations")


def _share(share: Share) -> str:
    if share.states == 0:
        return "none was outside of the ball"
    low, high = share.interval
    return f"{share.share:.1%} ({low:.1%} to {high:.1%}) of {share.states:,}"


def _growth(growth: Growth) -> str:
    return f"{growth.rate:+.3g} ({growth.interval[0]:+.3g} to {growth.interval[1]:+.3g})"


def latency_table(evidence: Evidence) -> Table:
    """Return quantiles of the time for an action."""
    sides = (("dense", evidence.dense_latencies), ("pruned", evidence.pruned_latencies))
    rows = tuple((who, *_quantiles(seconds)) for who, seconds in sides)
    return Table(("", "median", "99 of 100 within", "longest"), rows)


def _quantiles(seconds: Numbers) -> Iterator[str]:
    if not seconds:
        yield from (NOTHING,) * 3
        return
    for share in (0.5, 0.99, 1.0):
        yield f"{1e6 * float(np.quantile(seconds, share)):,.1f} µs"


def thresholds_table(verdict: Verdict) -> Table:
    """Return what the gate was told to ask for."""
    rows: Sequence[tuple[str, str]] = [(name, f"{value:g}") for name, value in verdict.thresholds.items()]
    return Table(("threshold", "value"), tuple(rows))
