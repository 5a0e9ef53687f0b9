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
from nncontrol_prune.service import work
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
