"""What a report on a candidate holds: the verdict, what was pruned, and what both controllers do.

`report_files.write_report` makes of it a directory with `report.json`, one page that needs no network, and pictures.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import JsonValue

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.controllers.verdict import Decision, Verdict, share_kept
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.group_report import GroupReport
from nncontrol_prune.runtime.store import BundleStore
from nncontrol_prune.service.inspection import inspect_groups
from nncontrol_prune.validation.evidence import Evidence


class ControllerSummary(Spec):
    """One of the two controllers."""

    reference: str
    """`name@digest`."""
    architecture: str
    parameters: int


class CurvePoint(Spec):
    """A controller that was pruned from the same dense one and judged in the same environment."""

    reference: str
    sparsity: float
    """Share of the dense controller's parameters that is gone."""
    return_ratio: float
    """1 less what it loses of the dense controller's mean return, as a share of that, in the same pairs."""
    success: float
    """Share of the pairs in which it succeeded."""
    dense_success: float
    pairs: int
    decision: Decision


class Report(Spec):
    """Everything about one candidate."""

    format_version: Literal[1] = 1
    verdict: Verdict
    task: str
    """Success in words; empty if no closed loop was run."""
    rate: float
    """Control rate in Hz."""
    dense: ControllerSummary
    pruned: ControllerSummary
    groups: tuple[GroupReport, ...]
    """What was removed; empty for a candidate that was not pruned."""
    curve: tuple[CurvePoint, ...]
    """By sparsity, from all verdicts in the store; this candidate's is one of them."""
    evidence: Evidence | None
    """None if no closed loop was run."""
    pruning: dict[str, JsonValue] | None = None
    """What the pipeline did, where it ran in the same job: errors by candidate, time, warnings."""


def make_report(
    verdict: Verdict,
    candidate: Bundle,
    dense: Bundle,
    store: BundleStore,
    task: str,
    evidence: Evidence | None,
    pruning: dict[str, Any] | None = None,
) -> Report:
    """Put a report together.

    Args:
        verdict: The gate's, which the store holds by now.
        candidate: The controller that was judged.
        dense: The one that it was judged against.
        store: Where other verdicts are.
        task: Success in words.
        evidence: What was run for the report.
        pruning: How the candidate was pruned, if that is known.
    """
    return Report(
        verdict=verdict,
        task=task,
        rate=dense.manifest.rate,
        dense=_summary(dense),
        pruned=_summary(candidate),
        groups=removed_groups(candidate, dense),
        curve=curve(verdict, dense, store),
        evidence=evidence,
        pruning=pruning,
    )


def _summary(bundle: Bundle) -> ControllerSummary:
    manifest = bundle.manifest
    return ControllerSummary(
        reference=bundle.reference, architecture=str(manifest.architecture), parameters=manifest.parameters
    )


def removed_groups(candidate: Bundle, dense: Bundle) -> tuple[GroupReport, ...]:
    """Return what became of the dense controller's groups, by the candidate's provenance."""
    provenance = candidate.manifest.provenance
    if provenance is None:
        return ()
    try:
        groups = inspect_groups(dense)
    except PruningError:  # no recipe any more for what it was pruned with
        return ()
    found = []
    for group in groups:
        coefficient = provenance.coefficients.get(group["name"], 0.0)
        kept = group["channels"] - round(coefficient * group["channels"])
        found.append(GroupReport.model_validate({**group, "kept": kept, "coefficient": coefficient}))
    return tuple(found)


def curve(verdict: Verdict, dense: Bundle, store: BundleStore) -> tuple[CurvePoint, ...]:
    """Return what became of all that was pruned from a controller and judged in the verdict's environment."""
    points = []
    for other in store.verdicts():
        if (other.against, other.environment) != (verdict.against, verdict.environment):
            continue
        if other.dense is None or other.pruned is None or other.dense.return_mean == 0.0:
            continue
        try:
            manifest = store.manifest(other.candidate)
        except ControllerError:  # it was removed, or is damaged: the verdict alone does not say how small it was
            continue
        points.append(
            CurvePoint(
                reference=other.candidate,
                sparsity=1.0 - manifest.parameters / dense.manifest.parameters,
                return_ratio=share_kept(other.pruned.return_mean, other.dense.return_mean),
                success=other.pruned.successes / other.pruned.episodes,
                dense_success=other.dense.successes / other.dense.episodes,
                pairs=other.pruned.episodes,
                decision=other.decision,
            )
        )
    return tuple(sorted(points, key=lambda point: point.sparsity))
