"""Tables that the command line and reports both show; importable without torch and MuJoCo."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nncontrol_prune.controllers.verdict import Verdict


@dataclass(frozen=True)
class Table:
    """Headings and rows of text.

    Attributes:
        headings: As many as each row has cells.
        rows: The first cell says what the row is about.
        title: Above it; empty for none.
        outcomes: Whether the second cell is an outcome, which is coloured by what it says.
        prose: Whether cells are sentences, and not figures to be set to the right.
        words: How many columns hold words; the rest are figures.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    outcomes: bool = False
    prose: bool = False
    words: int = 1


def criteria_table(verdict: Verdict) -> Table:
    """Return the criteria, their outcomes and their reasons."""
    rows = tuple(
        # The name stands in the first column already.
        (criterion.name, criterion.outcome, criterion.reason.removeprefix(criterion.name).lstrip(": "))
        for criterion in verdict.criteria
    )
    return Table(("criterion", "outcome", "reason"), rows, outcomes=True, prose=True)


def groups_table(groups: Iterable[Mapping[str, Any]]) -> Table:
    """Return the groups of channels that can only leave together.

    Args:
        groups: Of a `GroupReport` the fields; without `kept` and `coefficient` for what is not pruned.
    """
    groups = list(groups)
    pruned = ("kept", "coefficient") if any("kept" in group for group in groups) else ()
    rows = []
    for group in groups:
        left = (f"{group['kept']:,}", f"{group['coefficient']:.3f}") if pruned else ()
        words = (group["name"], ", ".join(group["components"]), group["kind"])
        rows.append((*words, f"{group['channels']:,}", *left, f"{group['parameters_per_channel']:,}"))
    headings = ("group", "components", "kind", "channels", *pruned, "parameters a channel")
    return Table(headings, tuple(rows), words=3)


def robustness_table(verdict: Verdict) -> Table:
    """Return what both did under each condition."""
    headings = ("condition", "dense", "95 %", "pruned", "95 %", "regressions", "return, dense", "pruned")
    rows = tuple(
        (
            found.condition,
            f"{found.dense_successes} of {found.pairs}",
            "{:.0%} to {:.0%}".format(*found.dense_interval),
            f"{found.pruned_successes} of {found.pairs}",
            "{:.0%} to {:.0%}".format(*found.pruned_interval),
            str(found.regressions),
            four_digits(found.dense_return),
            four_digits(found.pruned_return),
        )
        for found in verdict.robustness
    )
    return Table(headings, rows)


def four_digits(value: float) -> str:
    """Write a return with four digits, so that those of a column line up."""
    return f"{value:#.4g}".removesuffix(".")
