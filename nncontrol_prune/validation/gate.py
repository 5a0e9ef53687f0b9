"""The gate: decides from paired episodes whether a pruned controller may take the dense one's place.

Both controllers start each episode from the same seed. The number of episodes is fixed beforehand; the gate stops
early only once a rejection is certain, which never accepts. The bound on regressions is exact. The t-test on returns is
approximate: where a few episodes lose much and the rest nothing, it accepts a controller at its margin more often than
5 % (simulated: 8 % at 50 episodes if 5 % of them lose everything, 22 % at 30). The success criterion stands beside it
for such failures, but a task without a goal that never terminates has only the returns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone

import numpy as np
from scipy import stats

from nncontrol_prune.controllers.bundle import Bundle, short
from nncontrol_prune.controllers.verdict import Criterion, Verdict
from nncontrol_prune.plants.tasks import task_of
from nncontrol_prune.progress import Progress
from nncontrol_prune.validation.evaluation import Episode, check_environment, run_episodes, summarize
from nncontrol_prune.validation.settings import GateSettings

ERROR_RATE = 0.05
"""How often, at the most, each criterion passes a controller that is exactly at its margin."""
BATCH = 10
"""Pairs run between two looks."""


class GateError(Exception):
    """The gate cannot judge what it was given; the message says why."""


def judge(
    candidate: Bundle, dense: Bundle, environment: str, settings: GateSettings, progress: Progress | None = None
) -> Verdict:
    """Run the gate.

    Args:
        candidate: The controller to be judged.
        dense: The controller it is to replace.
        environment: A gymnasium id.
        settings: Criteria and number of episodes.
        progress: Told of every batch, and asked whether to stop.

    Raises:
        GateError: The candidate was pruned from another controller, or so few episodes cannot show the margin.
        PlantError: The environment does not exist or does not fit one of the controllers.
        Cancelled: `progress` said so.
    """
    progress = progress or Progress()
    if candidate.manifest.parent not in (None, dense.reference):
        raise GateError(
            f"{short(candidate.reference)} was pruned from {short(str(candidate.manifest.parent))}, "
            f"so it is judged against that and not against {short(dense.reference)}"
        )
    check_environment(dense.manifest, environment)
    check_environment(candidate.manifest, environment)
    allowed = allowed_regressions(settings.episodes, settings.success_margin)
    if allowed < 0:
        needed = math.ceil(math.log(ERROR_RATE) / math.log(1 - settings.success_margin))
        raise GateError(
            f"{settings.episodes} episodes cannot show a success margin of {settings.success_margin:g}, "
            f"even if none fails; ask for at least {needed}, or for a larger margin"
        )
    ours: list[Episode] = []
    theirs: list[Episode] = []
    while len(ours) < settings.episodes and regressions(ours, theirs) <= allowed:
        progress("validation", len(ours) / settings.episodes)
        first = settings.first_seed + len(ours)
        seeds = range(first, min(first + BATCH, settings.first_seed + settings.episodes))
        theirs += run_episodes(dense, environment, seeds, jobs=settings.jobs)
        ours += run_episodes(candidate, environment, seeds, jobs=settings.jobs)
    criteria = (
        _success_criterion(ours, theirs, settings, task_of(environment).description),
        _return_criterion(ours, theirs, settings),
    )
    return Verdict(
        candidate=candidate.reference,
        against=dense.reference,
        decision="accept" if all(criterion.passed for criterion in criteria) else "reject",
        criteria=criteria,
        environment=environment,
        thresholds={"success_margin": settings.success_margin, "return_ratio": settings.return_ratio},
        seed=settings.first_seed,
        dense=summarize(dense, theirs),
        pruned=summarize(candidate, ours),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def regressions(ours: Sequence[Episode], theirs: Sequence[Episode]) -> int:
    """Count the pairs in which the dense controller succeeds and the candidate fails."""
    return sum(their.success and not our.success for our, their in zip(ours, theirs, strict=True))


def allowed_regressions(episodes: int, margin: float) -> int:
    """Return the most regressions for which their probability is below the margin with 95 % confidence.

    The bound is that of Clopper and Pearson (1934). -1 means that so few episodes cannot show it.
    """
    count = -1
    while count + 1 < episodes and _upper_bound(count + 1, episodes) <= margin:
        count += 1
    return count


def _upper_bound(count: int, episodes: int) -> float:
    return float(stats.beta.ppf(1 - ERROR_RATE, count + 1, episodes - count)) if count < episodes else 1.0


def _success_criterion(
    ours: Sequence[Episode], theirs: Sequence[Episode], settings: GateSettings, task: str
) -> Criterion:
    found, allowed = regressions(ours, theirs), allowed_regressions(settings.episodes, settings.success_margin)
    complete = len(ours) == settings.episodes
    reason = (
        f"success ({task}): {sum(e.success for e in ours)} of {len(ours)} episodes, dense "
        f"{sum(e.success for e in theirs)}; it failed {found} times where the dense controller succeeded, "
        f"{allowed} of {settings.episodes} are allowed for a margin of {settings.success_margin:.0%}"
    )
    if not complete:
        reason += "; stopped early, since it cannot pass any more"
    return Criterion(name="success", passed=complete and found <= allowed, reason=reason)


def _return_criterion(ours: Sequence[Episode], theirs: Sequence[Episode], settings: GateSettings) -> Criterion:
    """Paired t-test that the mean return keeps its ratio; approximate, see the head of this file.

    It tests differences, so that negative returns work too, with the dense controller's mean taken as known.
    """
    our, their = (np.array([e.episode_return for e in episodes]) for episodes in (ours, theirs))
    dense = float(their.mean())
    allowed_loss = (1.0 - settings.return_ratio) * abs(dense)
    difference = our - their
    spread = float(difference.std(ddof=1)) / np.sqrt(len(difference))
    lower = float(difference.mean()) - stats.t.ppf(1 - ERROR_RATE, len(difference) - 1) * spread
    reason = (
        f"return: {our.mean():.4g} against {dense:.4g}; the difference is {difference.mean():+.3g}, "
        f"with 95 % confidence above {lower:+.3g}, and must be "
        f"above {-allowed_loss:+.3g} ({settings.return_ratio:.0%} kept)"
    )
    return Criterion(name="return", passed=bool(lower >= -allowed_loss), reason=reason)
