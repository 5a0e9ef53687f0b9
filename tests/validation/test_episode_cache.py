from __future__ import annotations

from pathlib import Path

import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.conditions import Conditions
from nncontrol_prune.plants.tasks import Task
from nncontrol_prune.validation import episode_cache
from nncontrol_prune.validation.episode_cache import EpisodeCache


def test_episodes_are_found_again_by_controller_environment_conditions_and_task(
    tmp_path: Path, shipped_bundle: Bundle, small_bundle: Bundle, make_episode, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = EpisodeCache(tmp_path)
    episodes = [make_episode(seed=seed) for seed in (3, 4)]
    cache.add(shipped_bundle, CARTPOLE, Conditions(), Task(), episodes)
    assert cache.read(shipped_bundle, CARTPOLE, Conditions(), Task()) == {3: episodes[0], 4: episodes[1]}
    assert cache.read(shipped_bundle, CARTPOLE, Conditions(delay=1), Task()) == {}
    assert cache.read(shipped_bundle, CARTPOLE, Conditions(), Task(hold=1.0)) == {}
    assert cache.read(shipped_bundle, "Hopper-v5", Conditions(), Task()) == {}
    assert cache.read(small_bundle, CARTPOLE, Conditions(), Task()) == {}
    monkeypatch.setattr(episode_cache, "environment_digest", lambda _: "another reward")
    assert cache.read(shipped_bundle, CARTPOLE, Conditions(), Task()) == {}


def test_line_that_was_cut_short_costs_that_episode_only(tmp_path: Path, shipped_bundle: Bundle, make_episode) -> None:
    cache = EpisodeCache(tmp_path)
    cache.add(shipped_bundle, CARTPOLE, Conditions(), Task(), [make_episode(seed=seed) for seed in (1, 2)])
    (file,) = tmp_path.glob("*/*")
    file.write_bytes(file.read_bytes()[:-20])
    cache.add(shipped_bundle, CARTPOLE, Conditions(), Task(), [make_episode(seed=3)])
    assert sorted(cache.read(shipped_bundle, CARTPOLE, Conditions(), Task())) == [1, 3]
