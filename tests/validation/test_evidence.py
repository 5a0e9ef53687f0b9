from __future__ import annotations

import numpy as np
import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.conditions import Conditions
from nncontrol_prune.progress import Cancelled, Progress
from nncontrol_prune.validation import evidence, growth, stability
from nncontrol_prune.validation.evaluation import run_episodes
from nncontrol_prune.validation.evidence import Evidence, gather, numbers
from nncontrol_prune.validation.settings import GateSettings
from nncontrol_prune.validation.stability import NoEquilibriumError


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of everything that is run less than a report shows."""
    monkeypatch.setattr(evidence, "EPISODES", 1)
    monkeypatch.setattr(stability, "SETTLING_TIME", 2.0)
    monkeypatch.setattr(growth, "STARTS", 2)
    monkeypatch.setattr(growth, "SECONDS", 0.5)


def test_both_controllers_are_drawn_from_the_same_starts(wrong_way_evidence: Evidence) -> None:
    assert [response.seed for response in wrong_way_evidence.responses] == [100_000, 100_001, 100_002]
    for response in wrong_way_evidence.responses:
        assert response.dense.signals.keys() == {"pole angle [rad]", "cart position [m]"}
        assert response.dense.signals["pole angle [rad]"][0] == response.pruned.signals["pole angle [rad]"][0]
        assert len(response.dense.signals["pole angle [rad]"]) == 1001
        assert len(response.dense.commands["slider"]) == 1000
        assert response.dense.success
        assert not response.pruned.success


def test_attraction_is_looked_at_in_the_plane_of_the_task(wrong_way_evidence: Evidence) -> None:
    assert wrong_way_evidence.attraction is not None
    assert wrong_way_evidence.attraction.labels == ("pole angle [rad]", "pole velocity [rad/s]")
    angles, speeds = np.array(wrong_way_evidence.attraction.starts).T
    assert 0.0 <= angles.min() < 1.0 < 5.0 < angles.max() <= 2 * np.pi
    assert -8.0 <= speeds.min() < -5.0 < 5.0 < speeds.max() <= 8.0
    assert sum(wrong_way_evidence.attraction.dense) == 36
    assert sum(wrong_way_evidence.attraction.pruned) < 5


def test_growth_is_looked_at_where_nothing_should_decrease(wrong_way_evidence: Evidence) -> None:
    assert wrong_way_evidence.decrease is None
    assert wrong_way_evidence.dense_growth is not None
    assert wrong_way_evidence.pruned_growth is not None
    assert wrong_way_evidence.dense_local is not None
    assert wrong_way_evidence.dense_local.spectral_radius > 1.0


def test_decrease_is_looked_at_where_both_loops_rest(pendulum_evidence: Evidence) -> None:
    found = pendulum_evidence
    assert found.decrease is not None
    assert found.decrease.dense == found.decrease.pruned
    assert (found.dense_growth, found.pruned_growth, found.attraction) == (None, None, None)
    assert found.dense_local == found.pruned_local


def test_latencies_ascend_and_are_of_this_machine(wrong_way_evidence: Evidence) -> None:
    for latencies in (wrong_way_evidence.dense_latencies, wrong_way_evidence.pruned_latencies):
        assert list(latencies) == sorted(latencies)
        assert 0.0 < latencies[0] < 1e-3


@pytest.mark.usefixtures("brief")
def test_what_is_shown_has_the_delay_that_was_judged(shipped_bundle: Bundle, wrong_way_evidence: Evidence) -> None:
    settings = GateSettings(attraction_starts=0, delay=4)
    found = gather(shipped_bundle, shipped_bundle, CARTPOLE, settings)
    late = run_episodes(shipped_bundle, CARTPOLE, [100_000], Conditions(delay=4))[0]
    assert found.responses[0].dense.episode_return == pytest.approx(late.episode_return, rel=1e-4)
    assert found.responses[0].dense.episode_return != wrong_way_evidence.responses[0].dense.episode_return
    assert found.notes[-1] == "how fast perturbations grow: without the delay of 4 ticks"


def test_it_can_be_cancelled(shipped_bundle: Bundle) -> None:
    progress = Progress(cancelled=lambda: True)
    with pytest.raises(Cancelled):
        gather(shipped_bundle, shipped_bundle, CARTPOLE, GateSettings(), progress)


def test_numbers_are_short() -> None:
    assert numbers([1 / 3, 123456.789]) == (0.33333, 123460.0)


@pytest.mark.usefixtures("brief")
def test_what_both_loops_lack_is_said_once(shipped_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise NoEquilibriumError("the loop does not come to rest")

    monkeypatch.setattr(evidence, "local_stability", none)
    found = gather(shipped_bundle, shipped_bundle, CARTPOLE, GateSettings(attraction_starts=0))
    assert found.notes == ("local stability: not applicable, the loop does not come to rest",)
    assert found.decrease is None
