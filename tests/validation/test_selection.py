from __future__ import annotations

import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.validation import selection
from nncontrol_prune.validation.selection import FIRST_EPISODES, SELECTION_EPISODES, ClosedLoop


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, make_episode):
    """Return the episodes run, as (number of them, workers), and a function that scripts a controller's."""
    asked: list[tuple[int, int]] = []
    scripts: dict[str, tuple[list[bool], float]] = {}

    def script(bundle: Bundle, successes: list[bool], mean: float) -> None:
        scripts[bundle.digest] = successes, mean

    def run_episodes(bundle: Bundle, environment: str, seeds: range, jobs: int):
        asked.append((len(seeds), jobs))
        successes, mean = scripts[bundle.digest]
        first = seeds[0] - selection.SELECTION_SEED
        return [
            make_episode(seed=seed, success=successes[first + number], episode_return=mean)
            for number, seed in enumerate(seeds)
        ]

    monkeypatch.setattr(selection, "run_episodes", run_episodes)
    return asked, script


ALL = [True] * SELECTION_EPISODES


def test_successes_count_before_the_return(run, small_bundle: Bundle, pendulum: Bundle, shipped_bundle: Bundle) -> None:
    _, script = run
    script(small_bundle, [*ALL[1:], False], 900.0)
    script(pendulum, ALL, 700.0)
    script(shipped_bundle, ALL, 800.0)
    assert ClosedLoop(CARTPOLE, shipped_bundle).best([small_bundle, pendulum, shipped_bundle]) == 2


def test_what_fails_early_is_given_up_and_no_episode_is_run_twice(
    run, small_bundle: Bundle, pendulum: Bundle, shipped_bundle: Bundle
) -> None:
    asked, script = run
    script(small_bundle, [*[False] * 3, *ALL[3:]], 900.0)
    script(pendulum, ALL, 700.0)
    script(shipped_bundle, ALL, 800.0)
    loop = ClosedLoop(CARTPOLE, shipped_bundle)
    assert loop.best([small_bundle, pendulum]) == 1
    assert [count for count, _ in asked] == [FIRST_EPISODES, FIRST_EPISODES]
    assert loop.best([pendulum, shipped_bundle]) == 1
    assert [count for count, _ in asked[2:]] == [FIRST_EPISODES, *[SELECTION_EPISODES - FIRST_EPISODES] * 2]
    loop.enough(pendulum)
    assert len(asked) == 5


def test_workers_are_given_all_episodes_at_once_and_change_nothing(
    run, small_bundle: Bundle, pendulum: Bundle, shipped_bundle: Bundle
) -> None:
    asked, script = run
    script(small_bundle, [*[False] * 3, *ALL[3:]], 900.0)
    script(pendulum, ALL, 700.0)
    assert ClosedLoop(CARTPOLE, shipped_bundle, jobs=2).best([small_bundle, pendulum]) == 1
    assert asked == [(SELECTION_EPISODES, 2)] * 2


@pytest.mark.parametrize(
    ("successes", "mean", "dense_mean", "enough"),
    [(10, 785.0, 800.0, True), (10, 783.0, 800.0, False), (9, 850.0, 800.0, False), (10, -101.0, -100.0, True)],
)
def test_enough_is_to_do_as_the_dense_controller_does(
    run, small_bundle: Bundle, shipped_bundle: Bundle, successes: int, mean: float, dense_mean: float, enough: bool
) -> None:
    _, script = run
    script(shipped_bundle, ALL, dense_mean)
    script(small_bundle, [number < successes for number in range(SELECTION_EPISODES)], mean)
    assert ClosedLoop(CARTPOLE, shipped_bundle).enough(small_bundle) is enough
