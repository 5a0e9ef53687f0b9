"""A report as one page that needs no network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from nncontrol_prune.controllers.bundle import short
from nncontrol_prune.controllers.verdict import Decision, Verdict
from nncontrol_prune.service.charts import Chart
from nncontrol_prune.service.report import Report
from nncontrol_prune.service.report_plots import embedded
from nncontrol_prune.service.report_tables import (
    behaviour_table,
    controllers_table,
    latency_table,
    local_table,
    thresholds_table,
    wander_table,
)
from nncontrol_prune.shares import percent_removed
from nncontrol_prune.tables import Table, criteria_table, groups_table, robustness_table

TEMPLATE = "report_page.html"
WORDS: dict[Decision, str] = {"accept": "ACCEPTED", "reject": "REJECTED", "inconclusive": "INCONCLUSIVE"}
NO_LOOP = "No closed loop was run."


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        title: Above it.
        reading: How to read it.
        charts: Names of the charts in it.
        tables: Below them.
        missing: Why something is not there, in sentences; empty if all is.
    """

    title: str
    reading: str
    charts: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    missing: tuple[str, ...] = ()


def page(report: Report, charts: dict[str, Chart]) -> str:
    """Return the page as HTML.

    Args:
        report: What it tells.
        charts: What it shows, by name, as `charts_of` returns them.
    """
    library, script, elements = embedded(charts)
    verdict = report.verdict
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        verdict=verdict,
        word=WORDS[verdict.decision],
        candidate=short(verdict.candidate),
        against=short(verdict.against),
        decided=verdict.created.replace("T", " ").replace("+00:00", " UTC"),
        removed=percent_removed(1.0 - report.pruned.parameters / report.dense.parameters).replace("%", " %"),
        criteria=criteria_table(verdict),
        controllers=controllers_table(report),
        notes=_notes(report),
        sections=[_as_missing(section, charts) for section in sections(report)],
        thresholds=thresholds_table(verdict),
        charts=charts,
        library=Markup(library),  # noqa: S704  Bokeh's own
        script=Markup(script),  # noqa: S704  written by Bokeh, with everything of ours as escaped JSON
        elements={name: Markup(element) for name, element in elements.items()},  # noqa: S704  Bokeh's, empty
    )


def _notes(report: Report) -> list[str]:
    evidence = report.evidence
    return [*dict.fromkeys([*report.verdict.notes, *(evidence.notes if evidence is not None else ())])]


def _as_missing(section: Section, charts: dict[str, Chart]) -> Section:
    """Return a section with the charts that there are; it need not say how to read what is not there."""
    drawn = tuple(name for name in section.charts if name in charts)
    if drawn or section.tables:
        return Section(section.title, section.reading, drawn, section.tables, section.missing)
    return Section(section.title, "", missing=section.missing)


def sections(report: Report) -> Iterable[Section]:
    """Yield the parts of the page below the verdict, in order."""
    yield _coefficients(report)
    yield _curve(report)
    yield _responses(report)
    yield _stability(report)
    yield _attraction(report)
    yield _robustness(report)
    yield _latency(report)


def _coefficients(report: Report) -> Section:
    return Section(
        "Pruning coefficients",
        "A bar is a group of channels that can only leave together, coloured by the component it belongs to; what is "
        "coloured was removed, its share is the group's coefficient. Groups that couple components are hatched.",
        ("coefficients",),
        (groups_table(group.model_dump() for group in report.groups),) if report.groups else (),
        ()
        if report.groups
        else (
            "Nothing is known to have been removed: the candidate does not say of any group how much of it is gone.",
        ),
    )


def _curve(report: Report) -> Section:
    missing = (
        ()
        if report.curve
        else (NO_LOOP if report.verdict.offline else "No verdict in the store has a return to be compared.",)
    )
    return Section(
        "Sparsity against return",
        "Everything that was pruned from the same controller and judged in the same environment: the further right at "
        "the same height, the better. The dashed line is the least return that the gate asks for on the mean.",
        ("sparsity",),
        missing=missing,
    )


def _responses(report: Report) -> Section:
    evidence = report.evidence
    return Section(
        "Time responses",
        "Both controllers from the same starts, an episode a column: what is to be controlled above, the commands "
        "below. A line ends where its episode does; an angle has a gap where it wraps. Zooming moves all in step.",
        ("responses",),
        (behaviour_table(evidence),) if evidence is not None and evidence.dense_episodes else (),
        () if evidence is not None and evidence.responses else (NO_LOOP,),
    )


def _stability(report: Report) -> Section:
    evidence = report.evidence
    title = "Eigenvalues and stability"
    if evidence is None:
        return Section(title, "", missing=(NO_LOOP,))
    locals_ = {"dense": evidence.dense_local, "pruned": evidence.pruned_local}
    missing = tuple(
        f"The {who} controller's loop has no poles to show{_because(evidence.notes, f'local stability of the {who}')}"
        for who, local in locals_.items()
        if local is None
    )
    both = _because(evidence.notes, "local stability:")
    if len(missing) == len(locals_) and both != ".":
        missing = (f"Neither controller's loop has poles to show{both}",)
    tables = [local_table(evidence)] if any(local is not None for local in locals_.values()) else []
    wander = wander_table(evidence)
    if wander is not None:
        tables.append(wander)
    reading = ""
    if evidence.dense_local is not None or evidence.pruned_local is not None:
        reading = (
            "Poles of each loop, linearized where it comes to rest: inside the unit circle a disturbance dies away, "
            "the faster the nearer to the middle. That is necessary, and never sufficient. "
        )
    if evidence.decrease is not None:
        reading += "A share of states well above the dense controller's says that the candidate wanders. "
    elif wander is not None:
        reading += (
            "Where nothing comes to rest, it is looked at how fast small perturbations grow: below 0 they die away; "
            "above, it is the difference to the dense controller's that tells. "
        )
    return Section(title, reading.strip(), ("eigenvalues",), tuple(tables), missing)


def _attraction(report: Report) -> Section:
    evidence = report.evidence
    if evidence is None:
        missing: tuple[str, ...] = (NO_LOOP,)
    elif evidence.attraction is None:
        missing = (f"It was not looked at{_because(report.verdict.notes, 'region of attraction')}",)
    else:
        missing = ()
    return Section(
        "Region of attraction",
        "Each mark is a start in a plane through the task's box of starts; it tells which of the two succeed from "
        "there. Crosses are what pruning has lost.",
        ("attraction",),
        missing=missing,
    )


def _robustness(report: Report) -> Section:
    return Section(
        "Robustness",
        "Success under each condition, with its 95 % interval, and the return: the pruned controller's should lie "
        "where the dense one's do. A regression is a pair in which the dense controller succeeds and the pruned one "
        "fails.",
        ("robustness",),
        (robustness_table(report.verdict),) if report.verdict.robustness else (),
        () if report.verdict.robustness else (_no_robustness(report.verdict),),
    )


def _no_robustness(verdict: Verdict) -> str:
    if verdict.offline:
        return NO_LOOP
    if verdict.accepted:
        return "The gate was not told to look at it."
    return "The gate looks at it last, where it is told to, and only for candidates that have passed everything else."


def _latency(report: Report) -> Section:
    evidence = report.evidence
    there = evidence is not None and evidence.dense_latencies and evidence.pruned_latencies
    return Section(
        "Latency",
        "Which share of actions was computed within a time, on the machine that made this report: the further left, "
        "the faster. Both took turns, after the decision, and whatever else the machine did is in all times; the gate "
        "goes by the quietest of some turns.",
        ("latency",),
        (latency_table(evidence),) if evidence is not None and there else (),
        () if there else ("No actions were timed for this report.",),
    )


def _because(notes: Iterable[str], about: str) -> str:
    """Return the reason that notes give for something, as the end of a sentence."""
    for note in notes:
        if note.startswith(about):
            reason = note.partition(": ")[2].removeprefix("not applicable, ").removeprefix("not looked at, ")
            return f": {reason}."
    return "."
