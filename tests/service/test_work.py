from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning import pipeline
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.rollouts.reader import Rollouts
from nncontrol_prune.runtime.store import BundleStore
from nncontrol_prune.service import work
from nncontrol_prune.service.jobs import Job
from nncontrol_prune.validation import selection
from nncontrol_prune.validation.settings import GateSettings


class Asked(Exception):
    """Episodes were asked for, from this many workers."""


def test_candidates_are_run_by_as_many_workers_as_the_settings_say(
    monkeypatch: pytest.MonkeyPatch, shipped_bundle: Bundle
) -> None:
    def run_episodes(bundle: Bundle, environment: str, seeds: range, *_: Any, jobs: int, **__: Any) -> None:
        raise Asked(jobs)

    def prune_bundle(dense: Bundle, *_: Any, choose: Callable[[Sequence[Bundle]], int], **__: Any) -> None:
        choose([dense])

    monkeypatch.setattr(selection, "run_episodes", run_episodes)
    monkeypatch.setattr(pipeline, "prune_bundle", prune_bundle)
    rollouts = cast(Rollouts, None)  # not looked at here
    with pytest.raises(Asked, match="3"):
        work.prune(
            shipped_bundle,
            rollouts,
            PruningSettings(jobs=3),
            gate=GateSettings(),
            environment=CARTPOLE,
            progress=Progress(),
        )


class Rows(list[int]):
    """Stands for rollouts of so many transitions."""

    def rows(self, chosen: slice) -> Rows:
        return Rows(self[chosen])


def test_without_an_environment_no_row_is_checked_on_that_was_pruned_from(
    monkeypatch: pytest.MonkeyPatch, store: BundleStore, shipped_bundle: Bundle, small_bundle: Bundle
) -> None:
    recorded = Rows(range(100))
    pruned_from, checked_on = list[Rows](), list[Rows]()

    def prune(dense: Bundle, rollouts: Rows, *_: Any, **__: Any) -> tuple[Bundle, Any]:
        pruned_from.append(rollouts)
        return small_bundle, None

    def decide(candidate: Bundle, dense: Bundle, store: BundleStore, where: Rows, *_: Any) -> None:
        checked_on.append(where)
        raise Asked

    monkeypatch.setattr(work, "read", lambda *_: recorded)
    monkeypatch.setattr(work, "prune", prune)
    monkeypatch.setattr(work, "decide", decide)
    job = Job(store=store.root, controller=store.add(shipped_bundle), environment=None, gate=GateSettings())
    for asked in (
        {"pruning": PruningSettings()},
        {"candidate": small_bundle.reference},
        {"candidate": small_bundle.reference},
    ):
        with pytest.raises(Asked):
            work.carry_out(job.model_copy(update=asked), Progress(), lambda _: None)
        recorded += range(len(recorded), len(recorded) + 40)  # the loop goes on recording
    assert pruned_from == [Rows(range(75))]
    assert checked_on == [Rows(range(75, 100)), Rows(range(105, 140)), Rows(range(135, 180))]
