from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.verdict import Verdict
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.conditions import Conditions
from nncontrol_prune.plants.tasks import task_of
from nncontrol_prune.progress import Cancelled, Progress
from nncontrol_prune.pruning.errors import NoChoice, PruningError
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.rollouts.reader import Rollouts, read_rollouts
from nncontrol_prune.service.boundary import RESOLUTION, SEARCH_SEED, Boundary, narrow_down, prune_to_boundary
from nncontrol_prune.service.rollouts import record_episodes
from nncontrol_prune.validation.episode_cache import EpisodeCache
from nncontrol_prune.validation.selection import SELECTION_SEED
from nncontrol_prune.validation.settings import GateSettings


@pytest.mark.parametrize("boundary", [0.1, 0.6, 0.93, 0.989])
def test_bisection_ends_near_the_boundary(boundary: float) -> None:
    passing: list[float] = []

    def passes(sparsity: float) -> bool:
        if sparsity <= boundary:
            passing.append(sparsity)
        return sparsity <= boundary

    narrow_down(passes, 0.99, attempts=20)
    assert passing == sorted(passing)
    assert (1 - passing[-1]) / (1 - boundary) <= RESOLUTION if passing else boundary < 1 - 1 / RESOLUTION


def test_bisection_without_anything_that_passes_ends() -> None:
    tried: list[float] = []

    def fails(sparsity: float) -> bool:
        tried.append(sparsity)
        return False

    narrow_down(fails, 0.99)
    assert tried == sorted(tried, reverse=True)
    assert len(tried) <= 8


def test_attempts_are_bounded() -> None:
    tried: list[float] = []

    def passes(sparsity: float) -> bool:
        tried.append(sparsity)
        return True

    narrow_down(passes, 0.9999, attempts=3)
    assert len(tried) == 3


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory, shipped_bundle: Bundle) -> Rollouts:
    path = tmp_path_factory.mktemp("boundary") / "bag"
    record_episodes(shipped_bundle, CARTPOLE, range(4), path, lambda _: None)
    return read_rollouts(path)


def test_the_boundary_passes_and_everything_tried_is_reported(
    shipped_bundle: Bundle,
    rollouts: Rollouts,
    lenient_gate: GateSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nncontrol_prune.service.boundary.RESOLUTION", 16.0)  # two tries
    cache = EpisodeCache(tmp_path)
    stages: list[str] = []
    found = prune_to_boundary(
        shipped_bundle,
        rollouts,
        PruningSettings(method="uniform", max_rows=1000, variations=0),
        environment=CARTPOLE,
        gate=lenient_gate,
        cache=cache,
        progress=Progress(lambda stage, _: stages.append(stage)),
    )
    assert found.verdict.accepted
    assert found.verdict.candidate == found.candidate.reference
    assert found.report.sparsity in {point.sparsity for point in found.curve if point.accepted}
    assert found.report.sparsity > 0.5
    assert [point.accepted for point in found.curve] == [True, False]
    assert [point.sparsity for point in found.curve] == sorted(point.sparsity for point in found.curve)
    assert all(point.reason for point in found.curve if not point.accepted)
    assert any(stage.startswith("try 2, ") and stage.endswith(": validation") for stage in stages)
    kept = cache.read(shipped_bundle, CARTPOLE, Conditions(), task_of(CARTPOLE))
    assert {SELECTION_SEED, SEARCH_SEED, GateSettings().first_seed} <= kept.keys()


def test_search_ends_where_it_is_cancelled(
    shipped_bundle: Bundle, small_bundle: Bundle, make_verdict: Callable[..., Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[str] = []

    def prune(*_: Any, progress: Progress, **__: Any) -> tuple[Bundle, Any]:
        progress("coefficients", 0.5)
        return small_bundle, SimpleNamespace(sparsity=0.5)

    monkeypatch.setattr("nncontrol_prune.service.boundary.prune", prune)
    monkeypatch.setattr("nncontrol_prune.service.boundary.judge", lambda *_, **__: make_verdict(small_bundle))
    progress = Progress(lambda stage, _: reached.append(stage), lambda: len(reached) == 2)
    with pytest.raises(Cancelled, match=r"cancelled during try 2, .*: coefficients"):
        prune_to_boundary(
            shipped_bundle,
            cast(Rollouts, None),  # not looked at here
            PruningSettings(),
            environment=CARTPOLE,
            gate=GateSettings(),
            progress=progress,
        )
    assert len(reached) == 2


def test_all_that_the_gate_asks_bounds_the_search_and_its_own_seeds_have_the_last_word(
    shipped_bundle: Bundle,
    small_bundle: Bundle,
    make_verdict: Callable[..., Verdict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[float] = []
    asked: list[GateSettings] = []

    def prune(*arguments: Any, **_: Any) -> tuple[Bundle, Any]:
        tried.append(arguments[2].sparsity)
        return small_bundle, SimpleNamespace(sparsity=tried[-1])

    def judge(*arguments: Any, **_: Any) -> Verdict:
        asked.append(arguments[3])
        return make_verdict(small_bundle, accepted=tried[-1] < 0.9 or not arguments[3].robustness.enabled)

    monkeypatch.setattr("nncontrol_prune.service.boundary.prune", prune)
    monkeypatch.setattr("nncontrol_prune.service.boundary.judge", judge)
    gate, rollouts = GateSettings(), cast(Rollouts, None)  # not looked at here
    found = prune_to_boundary(
        shipped_bundle, rollouts, PruningSettings(jobs=2), environment=CARTPOLE, gate=gate, progress=Progress()
    )
    assert max(point.sparsity for point in found.curve if point.accepted) > 0.85
    assert found.report.sparsity == max(point.sparsity for point in found.curve if point.accepted)
    with_jobs = gate.model_copy(update={"jobs": 2})
    assert asked[:-1] == [with_jobs.model_copy(update={"first_seed": SEARCH_SEED})] * len(tried)
    assert asked[-1] == with_jobs


def test_between_whole_channels_the_nearest_are_tried_once_each(
    shipped_bundle: Bundle,
    small_bundle: Bundle,
    make_cartpole_bundle: Callable[..., Bundle],
    make_verdict: Callable[..., Verdict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = {0.25: small_bundle, 0.875: make_cartpole_bundle()}
    asked, judged = list[float](), list[Bundle]()

    def prune(*arguments: Any, **_: Any) -> tuple[Bundle, Any]:
        asked.append(arguments[2].sparsity)
        if asked[-1] not in sizes:
            raise NoChoice("there are two sizes", min(sizes, key=lambda size: abs(size - asked[-1])))
        return sizes[asked[-1]], SimpleNamespace(sparsity=asked[-1])

    def judge(candidate: Bundle, *_: Any, **__: Any) -> Verdict:
        judged.append(candidate)
        return make_verdict(candidate, accepted=candidate is small_bundle)

    monkeypatch.setattr("nncontrol_prune.service.boundary.prune", prune)
    monkeypatch.setattr("nncontrol_prune.service.boundary.judge", judge)
    found = prune_to_boundary(
        shipped_bundle,
        cast(Rollouts, None),  # not looked at here
        PruningSettings(),
        environment=CARTPOLE,
        gate=GateSettings(),
        progress=Progress(),
    )
    assert found.report.sparsity == 0.25
    assert [(point.sparsity, point.accepted) for point in found.curve] == [(0.25, True), (0.875, False)]
    assert len(asked) > 4
    assert len(judged) == 3  # either in the search, and the one that passes on the gate's own seeds


def test_the_controller_itself_is_no_candidate(shipped_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def prune(*arguments: Any, **_: Any) -> tuple[Bundle, Any]:
        if arguments[2].sparsity > 0:
            raise NoChoice("there is one size", 0.0)
        return shipped_bundle, SimpleNamespace(sparsity=0.0)

    monkeypatch.setattr("nncontrol_prune.service.boundary.prune", prune)
    for multiple, message in (
        (1, "passes validation: .*: there is one size"),
        (256, "no fewer channels in multiples of 256"),
    ):
        with pytest.raises(PruningError, match=message):
            prune_to_boundary(
                shipped_bundle,
                cast(Rollouts, None),  # not looked at here
                PruningSettings(channel_multiple=multiple),
                environment=CARTPOLE,
                gate=GateSettings(),
                progress=Progress(),
            )


def test_what_its_own_seeds_reject_has_not_passed(
    shipped_bundle: Bundle,
    small_bundle: Bundle,
    make_verdict: Callable[..., Verdict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried, asked = list[float](), list[float]()
    confirmed = 0.5

    def prune(*arguments: Any, **_: Any) -> tuple[Bundle, Any]:
        tried.append(arguments[2].sparsity)
        return small_bundle, SimpleNamespace(sparsity=tried[-1])

    def judge(*arguments: Any, **_: Any) -> Verdict:
        searching = arguments[3].first_seed == SEARCH_SEED
        sparsity = tried[-1] if searching else sorted(tried)[-1 - len(asked)]
        if not searching:
            asked.append(sparsity)
        return make_verdict(small_bundle, accepted=searching or sparsity < confirmed)

    def boundary() -> Boundary:
        return prune_to_boundary(
            shipped_bundle,
            cast(Rollouts, None),
            PruningSettings(),
            environment=CARTPOLE,
            gate=GateSettings(),
            progress=Progress(),
        )

    monkeypatch.setattr("nncontrol_prune.service.boundary.prune", prune)
    monkeypatch.setattr("nncontrol_prune.service.boundary.judge", judge)
    monkeypatch.setattr(
        "nncontrol_prune.service.boundary.narrow_down", lambda passes, _: [*map(passes, (0.4, 0.6, 0.8))]
    )
    found = boundary()
    assert found.report.sparsity == 0.4
    assert [(point.sparsity, point.accepted) for point in found.curve] == [(0.4, True), (0.6, False), (0.8, False)]
    assert all(point.reason for point in found.curve[1:])
    tried.clear()
    asked.clear()
    confirmed = 0.0
    with pytest.raises(PruningError, match=r"40.0%: .+; 60.0%: .+; 80.0%: .+"):
        boundary()


def test_nothing_that_passes_is_an_error_with_everything_tried(
    shipped_bundle: Bundle, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PruningError("no luck")

    monkeypatch.setattr("nncontrol_prune.service.boundary.prune", refuse)
    with pytest.raises(PruningError, match=r"nothing that was tried passes validation: .*%: no luck"):
        prune_to_boundary(
            shipped_bundle,
            rollouts,
            PruningSettings(),
            environment=CARTPOLE,
            gate=GateSettings(),
            progress=Progress(),
        )
