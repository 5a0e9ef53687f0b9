from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.live import LivePlant
from nncontrol_prune.plants.state import HEADER
from tests.legged_robot import LEGGED, LeggedEnv


class Wire:
    """Answers every state at once with a constant command, unless told to keep silent."""

    def __init__(self, force: float = 1.0) -> None:
        self.states: list[NDArray[np.float64]] = []
        self.force = force
        self.silent = False
        self._answered = math.nan

    def command(self, action: NDArray[np.float64]) -> float:
        if self.silent or not self.states:
            return math.nan
        action[:] = self.force
        return float(self.states[-1][0])

    def publish(self, state: NDArray[np.float64]) -> None:
        self.states.append(state.copy())

    def wait(self, timeout: float) -> None:
        time.sleep(min(timeout, 0.001))


@contextmanager
def running(plant: LivePlant, wire: Wire) -> Iterator[None]:
    thread = threading.Thread(target=plant.run, args=(wire,))
    thread.start()
    try:
        yield
    finally:
        plant.stop()
        thread.join()


def run_for(plant: LivePlant, wire: Wire, seconds: float) -> None:
    with running(plant, wire):
        time.sleep(seconds)


def test_time_stands_still_until_the_first_command() -> None:
    wire = Wire()
    wire.silent = True
    plant = LivePlant(CARTPOLE)
    run_for(plant, wire, 0.2)
    assert plant.steps == 0
    assert {state[0] for state in wire.states} == {0.0}


def test_it_keeps_real_time_at_its_factor() -> None:
    wire = Wire()
    plant = LivePlant(CARTPOLE, real_time_factor=2.0)
    run_for(plant, wire, 1.0)
    # A busy machine may slow it down, but nothing may make it faster.
    assert 100 <= plant.steps <= 205


def test_stamps_join_each_step_to_the_observation_it_started_from() -> None:
    wire = Wire()
    run_for(LivePlant(CARTPOLE, real_time_factor=10.0), wire, 0.3)
    steps = [state for state in wire.states if not math.isnan(state[1])]
    for before, after in itertools.pairwise(steps):
        assert after[HEADER.index("step_stamp")] == before[HEADER.index("stamp")]
        assert after[HEADER.index("step")] == before[HEADER.index("step")] + 1


def test_reset_truncates_the_episode_and_starts_the_next() -> None:
    wire = Wire()
    plant = LivePlant(CARTPOLE, real_time_factor=10.0)
    with running(plant, wire):
        time.sleep(0.1)
        plant.reset()
        time.sleep(0.1)
    truncated = [state for state in wire.states if state[HEADER.index("truncated")] == 1.0]
    assert len(truncated) == 1
    assert truncated[0][len(HEADER) + 1] < -0.9, "the observation is the first of the next episode"
    assert wire.states[-1][HEADER.index("episode")] == 1.0


def test_without_commands_it_falls_back_to_zero() -> None:
    wire = Wire(force=10.0)
    plant = LivePlant(CARTPOLE, real_time_factor=10.0)
    with running(plant, wire):
        time.sleep(0.1)
        wire.silent = True
        time.sleep(0.3)
    assert plant.missed_commands > 50
    assert plant._action.tolist() == [0.0]


def test_commands_are_brought_back_into_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[float]] = []
    step = LeggedEnv.step

    def noting(env: LeggedEnv, action: NDArray[np.float32]) -> Any:
        taken.append(action.tolist())
        return step(env, action)

    monkeypatch.setattr(LeggedEnv, "step", noting)
    plant, wire = LivePlant(LEGGED, lockstep=True), Wire()
    taken.clear()  # of the specs
    wire.force = 0.4 + 0.25 * 2.0  # of the hip; for the knee it is far beyond
    run_for(plant, wire, 0.2)
    assert taken
    np.testing.assert_allclose(taken, [[2.0, 4.0]] * len(taken), atol=1e-6)


def test_paused_plant_does_not_step() -> None:
    wire = Wire()
    plant = LivePlant(CARTPOLE, real_time_factor=10.0)
    plant.paused.set()
    run_for(plant, wire, 0.2)
    assert plant.steps == 0


def test_in_lockstep_time_waits_for_the_command_and_the_state_is_sent_again() -> None:
    wire = Wire()
    plant = LivePlant(CARTPOLE, real_time_factor=10.0, lockstep=True)
    with running(plant, wire):
        time.sleep(0.1)
        wire.silent = True
        time.sleep(0.1)
        steps, sent = plant.steps, len(wire.states)
        time.sleep(0.3)
        assert plant.steps == steps
        assert len(wire.states) > sent
        assert {state[0] for state in wire.states[sent:]} == {wire.states[-1][0]}
        wire.silent = False
        time.sleep(0.1)
        assert plant.steps > steps
    assert plant.missed_commands == 0


def test_in_lockstep_the_same_seed_gives_the_same_run() -> None:
    runs = []
    for factor in (5.0, 20.0):
        wire = Wire()
        run_for(LivePlant(CARTPOLE, real_time_factor=factor, lockstep=True, seed=3), wire, 0.2)
        states = {state[0]: state for state in wire.states}
        runs.append([states[stamp] for stamp in sorted(states)][:60])
    for first, second in zip(*runs, strict=False):
        np.testing.assert_array_equal(first, second)
