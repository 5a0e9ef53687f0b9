"""What the command line shows: tables, and progress of long work. Everything but results goes to standard error."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from nncontrol_prune import tables
from nncontrol_prune.controllers.bundle import Bundle, short
from nncontrol_prune.controllers.specs import Manifest
from nncontrol_prune.controllers.verdict import Verdict, share_kept
from nncontrol_prune.runtime.statistics import Quantiles, TickSummary
from nncontrol_prune.shares import percent_removed

if TYPE_CHECKING:  # what makes these needs what a robot's computer may lack
    from nncontrol_prune.service.boundary import BoundaryPoint
    from nncontrol_prune.service.mnist_report import MnistReport
    from nncontrol_prune.transport.session import SessionResult

# Paths and units hold brackets and colons, so what is printed is no markup.
out = Console(markup=False, emoji=False)
if not out.is_terminal:
    out = Console(markup=False, emoji=False, width=120)
err = Console(markup=False, emoji=False, stderr=True)


TOLD_EVERY = 30.0
"""Seconds after which a log is told how far a stage is."""

OUTCOMES = {
    "passed": Text("passed"),
    "failed": Text("failed", style="bold red"),
    "undecided": Text("undecided", style="bold yellow"),
}


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Any]:
    """Show progress while the block runs; yields a function of what is done and the share of it, or None.

    Where there is no terminal it is a line for each stage, and for every half a minute.
    """
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=quiet or not err.is_terminal,
    ) as progress:
        task = progress.add_task("starting", total=None)
        last, told = "", 0.0

        def show(description: str, share: float | None = None) -> None:
            nonlocal last, told
            progress.update(task, description=description, total=None if share is None else 1.0, completed=share or 0.0)
            stage = description.rsplit("s  ", maxsplit=1)[-1]
            now = time.monotonic()
            if not err.is_terminal and not quiet and (stage != last or now - told >= TOLD_EVERY):
                err.print(description if stage != last or share is None else f"{description}: {share:.0%}")
                told = now
            last = stage

        yield show


def note(sentence: str) -> None:
    """Show what the user should know."""
    err.print(Text("note:", style="yellow"), sentence)


def bundle_table(bundle: Bundle) -> Table:
    """Return what a bundle's manifest says."""
    manifest = bundle.manifest
    table = Table(title=short(bundle.reference), show_header=False, title_justify="left")
    rows = {
        "architecture": str(manifest.architecture),
        "parameters": f"{manifest.parameters:,}",
        "observation": "\n".join(map(str, manifest.observation.terms)),
        "action": ", ".join(f"{joint} [{lower:g}, {upper:g}]" for joint, lower, upper in _limits(manifest))
        + (f" {manifest.action.unit}" if manifest.action.is_commanded else f"; {manifest.action.conversion}"),
        "rate": f"{manifest.rate:g} Hz",
        "environment": manifest.environment or "not stated",
    }
    if manifest.parent is not None and manifest.provenance is not None:
        made = manifest.provenance
        rows["pruned from"] = short(manifest.parent)
        rows["removed"] = (
            f"{percent_removed(made.sparsity)} of the parameters by {made.method}, {made.importance} importance"
        )
    for key, value in rows.items():
        table.add_row(key, value)
    return table


def in_terminal(table: tables.Table, **looks: Any) -> Table:
    """Return a table as the terminal shows it; looks are rich's, such as a title."""
    shown = Table(title_justify="left", **looks)
    for number, heading in enumerate(table.headings):
        shown.add_column(heading, justify="left" if table.prose or number < table.words else "right")
    for first, second, *others in table.rows:
        shown.add_row(first, OUTCOMES[second] if table.outcomes else second, *others)
    return shown


def groups_table(groups: Iterable[Mapping[str, Any]], title: str = "groups") -> Table:
    """Return the groups of channels that can only leave together; see `tables.groups_table`."""
    return in_terminal(tables.groups_table(groups), title=title)


def boundary_table(curve: Sequence[BoundaryPoint]) -> Table:
    """Return the sparsities that were tried on the way to the boundary."""
    table = Table(title="boundary: the largest sparsity that passes validation", title_justify="left")
    for heading in ("removed", "success", "return", "of the dense", ""):
        table.add_column(heading, justify="right")
    table.add_column("reason")
    for point in curve:
        kept = share_kept(point.return_mean, point.dense_return_mean)
        table.add_row(
            percent_removed(point.sparsity),
            f"{point.successes} of {point.episodes}",
            tables.four_digits(point.return_mean),
            f"{kept:.1%}",
            OUTCOMES["passed" if point.accepted else "failed"],
            point.reason,
        )
    return table


def verdict_table(verdict: Verdict) -> Table:
    """Return a verdict, its reasons first."""
    title = f"{short(verdict.candidate)}: {verdict.decision.upper()}"
    looks = {"title": title, "title_style": "bold green" if verdict.accepted else "bold red"}
    table = in_terminal(tables.criteria_table(verdict), **looks)
    for told in verdict.notes:
        table.add_row("", "", told)
    return table


def robustness_table(verdict: Verdict) -> Table:
    """Return what both controllers did under other conditions."""
    return in_terminal(tables.robustness_table(verdict), title="robustness")


def mnist_table(report: MnistReport) -> Table:
    """Return how well each method keeps the images."""
    title = f"{report.test_images:,} test images; {report.dense_parameters:,} parameters, this share of them removed"
    return in_terminal(report.table(), title=title)


def session_table(result: SessionResult) -> Table:
    """Return dense against pruned, and how the loop fared."""
    table = Table(title="dense against pruned", title_justify="left")
    table.add_column("")
    table.add_column("dense", justify="right")
    table.add_column("pruned", justify="right")
    sides = [result.dense, result.pruned]

    def row(label: str, values: list[str]) -> None:
        table.add_row(label, *values)

    row("controller", [short(side.reference) if side else "-" for side in sides])
    row("parameters", [f"{side.parameters:,}" if side else "-" for side in sides])
    row("ticks", [f"{side.ticks:,}" if side else "-" for side in sides])
    for what, field in (("inference", "inference"), ("whole tick", "compute")):
        row(f"{what} p50 / p99", [_microseconds(getattr(side, field)) if side else "-" for side in sides])
    row("success (gate)", [side.success if side else "-" for side in sides])
    row(
        "return (gate)", [f"{side.return_mean:.1f}" if side and side.return_mean is not None else "-" for side in sides]
    )
    table.add_section()
    swap = "none" if result.swap_duration is None else f"{1e6 * result.swap_duration:.0f} µs"
    if result.swap_tick_compute is not None:
        swap += f", its whole tick {1e6 * result.swap_tick_compute:.0f} µs"
    table.add_row("swap", "", swap)
    table.add_row("ticks skipped, late", "", f"{result.skipped} of {result.ticks:,}, {result.overruns}")
    missed = "unknown" if result.missed_commands is None else str(result.missed_commands)
    table.add_row("plant steps without a fresh command", "", missed)
    table.add_row("recorder drops, faulty actions", "", f"{result.dropped}, {result.faults}")
    return table


def loop_table(status: Mapping[str, Any], times: TickSummary) -> Table:
    """Return how a loop fared, from what its controller says of itself and from its ticks."""
    counts = status["ticks"]
    rows = {
        "controller": short(status["active"]),
        "swaps": str(status["swaps"]),
        "ticks": f"{counts['ticks']:,} at {status['rate']:g} Hz",
        "ticks skipped, late": f"{counts['skipped']}, {counts['overruns']}",
        "whole tick p50 / p99": _microseconds(times.compute),
        "inference p50 / p99": _microseconds(times.inference),
        "ticks without a fresh state, with one that is no number": f"{status['stale']}, {status['unsound']}",
        "states of another size": str(status["unfit_states"]),
        "recorder drops, faulty actions": f"{status['dropped']}, {status['faults']}",
    }
    table = Table(title="the loop", title_justify="left", show_header=False)
    for row in rows.items():
        table.add_row(*row)
    return table


def written(paths: list[Path]) -> str:
    """Return a line that names what was written."""
    return "written: " + ", ".join(str(path) for path in paths)


def _microseconds(quantiles: Quantiles) -> str:
    return "-" if math.isnan(quantiles.p50) else f"{1e6 * quantiles.p50:.0f} / {1e6 * quantiles.p99:.0f} µs"


def _limits(manifest: Manifest) -> zip[tuple[str, float, float]]:
    return zip(manifest.action.joints, manifest.action.lower, manifest.action.upper, strict=True)
