from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from nncontrol_prune.controllers.bundle import Bundle, short
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning import pipeline
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.rollouts.reader import Rollouts, read_rollouts
from nncontrol_prune.rollouts.writer import BagWriter
from nncontrol_prune.runtime.store import BundleStore
from nncontrol_prune.service import work
from nncontrol_prune.service.jobs import Job
from nncontrol_prune.validation import selection
from nncontrol_prune.validation.offline import OfflineError
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


def made_from(dense: Bundle, make_cartpole_bundle, transitions: int | None, *bags: str) -> Bundle:
    """Return a controller that says it was pruned from so many transitions of these bags."""
    usual = make_cartpole_bundle(parent=dense).manifest.provenance
    provenance = usual.model_copy(update={"bags": bags, "transitions": transitions})
    return make_cartpole_bundle(parent=dense, provenance=provenance)


class Rows(list[int]):
    """Stands for rollouts of so many transitions."""

    controllers = ()
    bags = ("bag",)

    def rows(self, chosen: slice) -> Rows:
        return Rows(self[chosen])


def test_without_an_environment_no_row_is_checked_on_that_was_pruned_from(
    monkeypatch: pytest.MonkeyPatch, store: BundleStore, shipped_bundle: Bundle, make_cartpole_bundle
) -> None:
    recorded = Rows(range(100))
    pruned = made_from(shipped_bundle, make_cartpole_bundle, 75, *Rows.bags)
    store.add(pruned)
    pruned_from, checked_on = list[Rows](), list[Rows]()

    def prune(dense: Bundle, rollouts: Rows, *_: Any, **__: Any) -> tuple[Bundle, Any]:
        pruned_from.append(rollouts)
        return pruned, None

    def judged(candidate: Bundle, dense: Bundle, store: BundleStore, where: Rows, *_: Any) -> None:
        checked_on.append(where)
        raise Asked

    monkeypatch.setattr(work, "read", lambda *_: recorded)
    monkeypatch.setattr(work, "prune", prune)
    monkeypatch.setattr(work, "judged", judged)
    job = Job(store=store.root, controller=store.add(shipped_bundle), environment=None, gate=GateSettings())
    for asked in (
        {"pruning": PruningSettings()},
        {"candidate": pruned.reference},
        {"candidate": pruned.reference},
    ):
        with pytest.raises(Asked):
            work.carry_out(job.model_copy(update=asked), Progress(), lambda _: None)
        recorded += range(len(recorded), len(recorded) + 40)  # the loop goes on recording
    assert pruned_from == [Rows(range(75))]
    assert checked_on == [Rows(range(75, 100)), Rows(range(105, 140)), Rows(range(135, 180))]


def test_candidate_is_checked_again_on_what_it_was_not_pruned_from(
    tmp_path: Path, shipped_bundle: Bundle, make_cartpole_bundle
) -> None:
    rollouts = recorded(tmp_path / "bag", shipped_bundle.reference)
    before = len(rollouts) - len(rollouts) // 4
    assert before == round(0.75 * len(rollouts))

    pruned_from = partial(made_from, shipped_bundle, make_cartpole_bundle)
    (bag,) = rollouts.bags
    assert len(work.unseen_part(pruned_from(before, "another"), rollouts)) == len(rollouts)
    for transitions in (before, before - 1):  # before the bag grew, in the latter case
        unseen = work.unseen_part(pruned_from(transitions, bag), rollouts)
        np.testing.assert_array_equal(unseen.stamp, rollouts.stamp[before:])
    several = replace(rollouts, bags=[bag, "another"])
    assert len(work.unseen_part(pruned_from(before, bag, "another"), several)) == len(rollouts) - before
    for candidate, seen in (
        (pruned_from(len(rollouts), bag), rollouts),
        (pruned_from(None, bag), rollouts),  # by an older version
        (pruned_from(before, bag, "another"), rollouts),  # what there was of it may be all that there is here
        (pruned_from(before - 1, bag, "another"), several),  # which of them has grown?
    ):
        with pytest.raises(OfflineError, match="was pruned from"):
            work.unseen_part(candidate, seen)


@pytest.mark.parametrize("acted", ["dense", "pruned", "parent", "nobody"])
def test_rollouts_of_a_controllers_own_kin_are_nothing_to_warn_of(
    tmp_path: Path, store: BundleStore, shipped_bundle: Bundle, make_cartpole_bundle, acted: str
) -> None:
    dense = make_cartpole_bundle(parent=shipped_bundle, name="dense")
    pruned = make_cartpole_bundle(hidden=(4, 4), parent=dense, name="pruned")
    for bundle in (dense, pruned):
        store.add(bundle)
    references = {"dense": dense.reference, "pruned": pruned.reference, "parent": shipped_bundle.reference}
    rollouts = recorded(tmp_path / "bag", references.get(acted))
    assert work.with_origin(rollouts, dense, store).warnings == rollouts.warnings


def test_rollouts_of_another_controller_are_warned_of(
    tmp_path: Path, store: BundleStore, shipped_bundle: Bundle, small_bundle: Bundle
) -> None:
    (warning,) = work.with_origin(recorded(tmp_path / "bag", small_bundle.reference), shipped_bundle, store).warnings
    assert f"were recorded with {short(small_bundle.reference)}, which" in warning
    assert f"neither {short(shipped_bundle.reference)} nor pruned from it" in warning


def recorded(path: Path, controller: str | None) -> Rollouts:
    """Return rollouts in which a controller acted."""
    with BagWriter(path, observation_size=5, action_size=1, rate=100.0) as writer:
        if controller is not None:
            writer.bundle(0, controller)
        for tick in range(100):
            writer.transition(tick * 0.01, 0, np.zeros(5), np.zeros(1))
    return read_rollouts(path)
