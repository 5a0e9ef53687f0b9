"""The gate: decides in closed loop whether a pruned controller may take the dense one's place.

Both controllers start each pair of episodes from the same seed. Every criterion may be looked at after each pair
(betting.py), so the gate stops as soon as the verdict is certain: a criterion that is failed rejects at once, and once
all are passed and the least number of pairs is done, both are put through the conditions of robustness.py; who passes
that too is accepted. What is still undecided after the
largest number of pairs is inconclusive, which no controller is staged on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime, timezone

import numpy as np

from nncontrol_prune.controllers.bundle import Bundle, short
from nncontrol_prune.controllers.specs import ActionSpec, Manifest
from nncontrol_prune.controllers.verdict import ConditionSummary, Verdict, decision_of
from nncontrol_prune.plants.conditions import Conditions
from nncontrol_prune.plants.tasks import task_of
from nncontrol_prune.progress import Progress
from nncontrol_prune.validation.criteria import Reference, closed_loop_criteria
from nncontrol_prune.validation.episode_cache import EpisodeCache
from nncontrol_prune.validation.evaluation import check_environment, run_episodes, summarize
from nncontrol_prune.validation.latency import latency_criterion
from nncontrol_prune.validation.metrics import Episode
from nncontrol_prune.validation.robustness import ROUNDS, RobustnessTest, conditions_of
from nncontrol_prune.validation.settings import GateSettings
from nncontrol_prune.validation.stability import NoEquilibriumError, margin_criterion

LOOK = 25
"""Pairs run between two looks."""
REFERENCE_EPISODES = 20
"""Episodes that the dense controller's own return and action rate are taken from."""


class GateError(Exception):
    """The gate cannot judge what it was given; the message says why."""


def judge(
    candidate: Bundle,
    dense: Bundle,
    environment: str,
    settings: GateSettings,
    progress: Progress | None = None,
    *,
    cache: EpisodeCache | None = None,
) -> Verdict:
    """Run the gate.

    Args:
        candidate: The controller to be judged.
        dense: The controller it is to replace.
        environment: A gymnasium id.
        settings: Criteria and number of episodes.
        progress: Told of every batch, and asked whether to stop.
        cache: Where the dense controller's episodes are kept from one time to the next.

    Raises:
        GateError: The candidate was pruned from another controller or has another layout or rate, or the dense one's
            mean return is zero.
        PlantError: The environment does not exist, raises, or does not fit one of the controllers.
        Cancelled: `progress` said so.
    """
    progress = progress or Progress()
    if candidate.manifest.parent not in (None, dense.reference):
        raise GateError(
            f"{short(candidate.reference)} was pruned from {short(str(candidate.manifest.parent))}, "
            f"so it is judged against that and not against {short(dense.reference)}"
        )
    _check_same_layout(candidate.manifest, dense.manifest)
    check_environment(dense.manifest, environment)
    progress("validation", 0.0)

    usual = Conditions(delay=settings.delay)

    def episodes(bundle: Bundle, seeds: Sequence[int], conditions: Conditions) -> list[Episode]:
        kept = cache if bundle.digest == dense.digest else None
        return run_episodes(bundle, environment, seeds, conditions, jobs=settings.jobs, cache=kept)

    first = settings.first_seed + settings.max_episodes
    own = episodes(dense, range(first, first + REFERENCE_EPISODES), usual)
    reference = Reference(
        episode_return=float(np.mean([episode.episode_return for episode in own])),
        action_rate=float(np.mean([episode.action_rate for episode in own])),
    )
    if reference.episode_return == 0.0:
        raise GateError(f"the mean return of {short(dense.reference)} is zero, of which no share can be kept")
    deciding = closed_loop_criteria(settings, reference, task_of(environment).description)
    known = [latency_criterion(candidate, dense, settings.latency_share)]
    notes: list[str] = []
    ours: list[Episode] = []
    theirs: list[Episode] = []
    while True:
        done = len(ours)
        first = settings.first_seed + done
        seeds = range(first, first + min(LOOK, settings.max_episodes - done))
        theirs += episodes(dense, seeds, usual)
        progress("validation", _share(done, settings, min(criterion.share for criterion in deciding)))
        ours += episodes(candidate, seeds, usual)
        pairs = list(zip(ours, theirs, strict=True))
        for criterion in deciding:
            criterion.add(pairs[done:])
        criteria = [criterion.criterion(pairs) for criterion in deciding]
        decision = decision_of([*criteria, *known])
        if done == 0 and decision != "reject":
            try:
                known.append(margin_criterion(candidate, dense, environment, settings))
            except NoEquilibriumError as error:
                notes.append(f"local stability: not applicable, {error}")
            decision = decision_of([*criteria, *known])
        finished = decision == "accept" and len(pairs) >= settings.min_episodes
        if decision == "reject" or finished or len(pairs) >= settings.max_episodes:
            break
        progress("validation", _share(len(pairs), settings, min(criterion.share for criterion in deciding)))
    robustness: tuple[ConditionSummary, ...] = ()
    conditions = conditions_of(settings, dense) if settings.robustness.enabled else {}
    if decision == "accept" and conditions:
        test = RobustnessTest(
            conditions,
            settings,
            lambda given, seeds: list(
                zip(episodes(candidate, seeds, given), episodes(dense, seeds, given), strict=True)
            ),
        )
        while not test.decided and test.rounds < settings.robustness.max_rounds:
            progress("robustness", max(test.share, test.rounds / settings.robustness.max_rounds))
            first = settings.first_seed + test.rounds
            left = settings.robustness.max_rounds - test.rounds
            test.run_rounds(range(first, first + min(ROUNDS, left)))
        known.append(test.criterion())
        robustness = test.summaries()
        decision = decision_of([*criteria, *known])
    return Verdict(
        candidate=candidate.reference,
        against=dense.reference,
        decision=decision,
        criteria=(*criteria, *known),
        notes=tuple(notes),
        environment=environment,
        thresholds={
            "success_margin": settings.success_margin,
            "return_ratio": settings.return_ratio,
            "action_rate_ratio": settings.action_rate_ratio,
            "latency_share": settings.latency_share,
            "margin_share": settings.margin_share,
            "robustness_margin": settings.robustness.margin,
            "delay": settings.delay,
        },
        robustness=robustness,
        seed=settings.first_seed,
        dense=summarize(dense, theirs),
        pruned=summarize(candidate, ours),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _check_same_layout(candidate: Manifest, dense: Manifest) -> None:
    who = f"{candidate.name} cannot take the place of {dense.name}"
    pairs = itertools.zip_longest(candidate.observation.terms, dense.observation.terms)
    for number, (ours, theirs) in enumerate(pairs, 1):
        if ours != theirs:
            found, wanted = (term and f"{term.name!r} ({term.size} {term.quantity})" for term in (ours, theirs))
            raise GateError(
                f"{who}: its observation term {number} is {found or 'missing'}, not {wanted or 'one at all'}"
            )
    if candidate.action != dense.action:
        raise GateError(f"{who}: it commands {_told(candidate.action)}, not {_told(dense.action)}")
    if candidate.rate != dense.rate:
        raise GateError(f"{who}: its rate is {candidate.rate:g} Hz, not {dense.rate:g} Hz")


def _told(action: ActionSpec) -> str:
    limits = zip(action.joints, action.lower, action.upper, strict=True)
    return ", ".join(f"{joint} in [{lower:g}, {upper:g}] {action.unit}".rstrip() for joint, lower, upper in limits)


def _share(done: int, settings: GateSettings, evidence: float) -> float:
    """Return how much of the way is behind, judged by what is nearest to ending it."""
    return max(done / settings.max_episodes, min(done / settings.min_episodes, evidence, 0.99))
