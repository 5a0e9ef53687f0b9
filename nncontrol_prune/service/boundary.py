"""The boundary: the largest sparsity that still passes validation, by bisection."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.controllers.verdict import Verdict
from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.errors import NoChoice, PruningError, in_multiples
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.rollouts.reader import Rollouts
from nncontrol_prune.service.work import prune
from nncontrol_prune.shares import percent_removed
from nncontrol_prune.validation.episode_cache import EpisodeCache
from nncontrol_prune.validation.gate import judge
from nncontrol_prune.validation.settings import GateSettings

if TYPE_CHECKING:
    from nncontrol_prune.pruning.pipeline import PruningReport

SEARCH_SEED = 10_000_000
"""Seeds of the episodes that the search is judged by start here; those of the gate stay unseen until the end."""
ATTEMPTS = 8
RESOLUTION = 1.1
"""The search ends when the largest share of parameters that failed is within this factor of the least that passed."""


class BoundaryPoint(Spec):
    """One sparsity that was tried."""

    sparsity: float
    accepted: bool
    episodes: int
    successes: int
    dense_successes: int
    return_mean: float
    dense_return_mean: float
    reason: str
    """Why it was rejected, or could not be built; empty if it was accepted."""


@dataclass(frozen=True)
class Boundary:
    """What the search found.

    Attributes:
        candidate: The smallest controller that passes.
        report: How it was pruned.
        verdict: The gate's verdict about it, on the gate's own seeds.
        curve: Everything that was tried, by sparsity.
    """

    candidate: Bundle
    report: PruningReport
    verdict: Verdict
    curve: tuple[BoundaryPoint, ...]


def narrow_down(passes: Callable[[float], bool], largest: float, attempts: int = ATTEMPTS) -> None:
    """Try sparsities until the boundary is known: a larger one after each that passes, and a smaller after others.

    It halves the logarithm of the share that is left: from 90 to 95 % is as far as from 95 to 97.5 %.

    Args:
        passes: Tries a sparsity.
        largest: No sparsity above it can be reached.
        attempts: Sparsities to try at the most.
    """
    most, least = 1.0, 1.0 - largest  # shares left: `most` passes, below `least` there is nothing
    for _ in range(attempts):
        if most <= RESOLUTION * least:
            return
        share = (most * least) ** 0.5
        if passes(1.0 - share):
            most = share
        else:
            least = share


def prune_to_boundary(
    dense: Bundle,
    rollouts: Rollouts,
    settings: PruningSettings,
    *,
    environment: str,
    gate: GateSettings,
    cache: EpisodeCache | None = None,
    progress: Progress,
    name: str | None = None,
) -> Boundary:
    """Prune as far as validation lets it, and confirm the result on the gate's own seeds.

    Args:
        dense: The controller.
        rollouts: What to prune from.
        settings: How to prune, and how many workers validate; its sparsity is not used.
        environment: Where candidates are validated.
        gate: What the gate asks.
        cache: Where the dense controller's episodes are kept.
        progress: Told of every stage, and asked whether to stop.
        name: Of the new controller.

    Raises:
        PruningError: Nothing that was tried passes.
        Cancelled: `progress` said so.
    """
    from nncontrol_prune.pruning.pipeline import largest_sparsity

    tried: list[tuple[BoundaryPoint, Bundle | None, PruningReport | None]] = []
    gate = gate.model_copy(update={"jobs": settings.jobs})
    searching = gate.model_copy(update={"first_seed": SEARCH_SEED})

    def pruned_to(sparsity: float, told: Progress) -> tuple[Bundle, PruningReport]:
        pruned = functools.partial(
            prune, dense, rollouts, gate=gate, environment=environment, cache=cache, name=name, progress=told
        )
        try:
            return pruned(settings.model_copy(update={"sparsity": sparsity}))
        except NoChoice as error:  # as of a small network, or one that keeps multiples
            if error.nearest <= 0.0:  # that would be the controller itself
                raise
            return pruned(settings.model_copy(update={"sparsity": error.nearest}))

    def passes(sparsity: float) -> bool:
        told = Progress(
            lambda stage, share: progress(f"try {len(tried) + 1}, {percent_removed(sparsity)}: {stage}", share),
        )
        try:
            candidate, report = pruned_to(sparsity, told)
        except PruningError as error:
            tried.append((_unbuilt(sparsity, str(error)), None, None))
            return False
        for point, other, _ in tried:  # one may be the nearest to several sparsities
            if other is not None and (other.reference, point.sparsity) == (candidate.reference, report.sparsity):
                return point.accepted
        verdict = judge(candidate, dense, environment, searching, told, cache=cache)
        tried.append((_point(report.sparsity, verdict), candidate, report))
        return verdict.accepted

    narrow_down(passes, largest_sparsity(dense, settings.channel_multiple))
    tried.sort(key=lambda attempt: attempt[0].sparsity)
    # From the smallest on: chance may have let one pass in the search that does not pass on seeds of its own.
    for number, (point, candidate, report) in reversed([*enumerate(tried)]):
        if point.accepted and candidate is not None and report is not None:
            verdict = judge(candidate, dense, environment, gate, progress, cache=cache)
            tried[number] = _point(report.sparsity, verdict), candidate, report
            if verdict.accepted:
                return Boundary(candidate, report, verdict, tuple(point for point, _, _ in tried))
    reasons = _tried([point for point, _, _ in tried]) or (
        f"there are no fewer channels{in_multiples(settings.channel_multiple)} that would be worth a try"
    )
    raise PruningError(f"nothing that was tried passes validation: {reasons}")


def _point(sparsity: float, verdict: Verdict) -> BoundaryPoint:
    assert verdict.dense is not None
    assert verdict.pruned is not None
    return BoundaryPoint(
        sparsity=sparsity,
        accepted=verdict.accepted,
        episodes=verdict.pruned.episodes,
        successes=verdict.pruned.successes,
        dense_successes=verdict.dense.successes,
        return_mean=verdict.pruned.return_mean,
        dense_return_mean=verdict.dense.return_mean,
        reason="" if verdict.accepted else "; ".join(verdict.reasons),
    )


def _unbuilt(sparsity: float, reason: str) -> BoundaryPoint:
    return BoundaryPoint(
        sparsity=sparsity,
        accepted=False,
        episodes=0,
        successes=0,
        dense_successes=0,
        return_mean=float("nan"),
        dense_return_mean=float("nan"),
        reason=reason,
    )


def _tried(curve: Sequence[BoundaryPoint]) -> str:
    return "; ".join(f"{percent_removed(point.sparsity)}: {point.reason}" for point in curve)
