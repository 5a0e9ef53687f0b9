from __future__ import annotations

import gc
import math
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.runtime.loop import ControlLoop, settle_memory
from nncontrol_prune.runtime.slot import ControllerSlot
from nncontrol_prune.runtime.store import BundleStore


class FakePlant:
    """Gives a new observation at every read, and remembers the commands."""

    def __init__(self) -> None:
        self.reads = 0
        self.frozen = False
        self.observation = np.array([0.0, -1.0, 0.0, 0.0, 0.0])
        self.commands: list[tuple[float, float]] = []

    def wait(self, timeout: float) -> bool:
        return True

    def read(self, observation: NDArray[np.float64]) -> float:
        if not self.frozen:
            self.reads += 1
        observation[:] = self.observation
        return self.reads * 0.01

    def write(self, stamp: float, action: NDArray[np.float64]) -> None:
        self.commands.append((stamp, float(action[0])))

    def after_tick(self) -> None:
        pass


class Transitions(list[Any]):
    def transition(self, stamp, bundle, observation, action) -> bool:
        self.append((stamp, bundle, observation.copy(), action.copy()))
        return True


@pytest.fixture
def slot(store: BundleStore, small_bundle: Bundle) -> ControllerSlot:
    return ControllerSlot(store, store.add(small_bundle))


def run_while(loop: ControlLoop, action) -> None:
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        action()
    finally:
        loop.stop()
        thread.join()


def test_every_observation_is_answered_and_recorded(slot: ControllerSlot, small_bundle: Bundle) -> None:
    plant, recorded = FakePlant(), Transitions()
    run_while(ControlLoop(slot, plant, recorded), lambda: time.sleep(0.3))
    expected = np.zeros(1)
    small_bundle.policy.act(plant.observation, expected)
    answered = plant.commands[:-1]
    assert {command for _, command in answered} == {expected[0]}
    assert [stamp for stamp, *_ in recorded] == [stamp for stamp, _ in answered]


def test_deadlines_do_not_drift(slot: ControllerSlot) -> None:
    loop = ControlLoop(slot, FakePlant())
    run_while(loop, lambda: time.sleep(1.0))
    statistics = loop.statistics
    due = statistics.ticks + statistics.skipped
    assert due == pytest.approx(100, abs=10)
    # Each start lies at its deadline plus its lateness, so the sum of periods is free of accumulated error.
    rows = statistics.rows()
    periods = (np.nansum(rows[:, 1]) - rows[-1, 3] + rows[0, 3]) / 0.01
    assert periods == pytest.approx(round(periods), abs=0.1)
    assert 0 <= due - 1 - round(periods) <= statistics.skipped, "those that the last tick skipped are in no row"


def test_the_plant_gets_the_safe_command_at_the_end(slot: ControllerSlot) -> None:
    plant = FakePlant()
    run_while(ControlLoop(slot, plant), lambda: time.sleep(0.05))
    stamp, command = plant.commands[-1]
    assert math.isnan(stamp)
    assert command == 0.0


def test_old_observations_lead_to_the_safe_command_until_new_ones_come(slot: ControllerSlot) -> None:
    plant = FakePlant()
    loop = ControlLoop(slot, plant, observation_timeout=0.05)

    def freeze_and_thaw() -> None:
        time.sleep(0.1)
        plant.frozen = True
        time.sleep(0.3)
        plant.frozen = False
        time.sleep(0.15)

    run_while(loop, freeze_and_thaw)
    commands = [command for _, command in plant.commands[:-1]]
    assert loop.stale > 5
    assert 0.0 in commands
    assert commands[0] != 0.0
    assert commands[-1] != 0.0


@pytest.mark.parametrize("stamp", [math.nan, math.inf, -math.inf])
def test_state_without_a_time_is_no_observation(slot: ControllerSlot, stamp: float, monkeypatch) -> None:
    plant, recorded = FakePlant(), Transitions()
    monkeypatch.setattr(plant, "read", lambda _: stamp)
    loop = ControlLoop(slot, plant, recorded)
    run_while(loop, lambda: time.sleep(0.1))
    assert loop.stale > 0
    assert recorded == []
    assert {command for _, command in plant.commands} == {0.0}


@pytest.mark.parametrize("value", [math.nan, -math.inf, 1e300, -2e3])
def test_observation_beyond_belief_commands_nothing_wild_and_is_not_held_against_the_controller(
    slot: ControllerSlot, store: BundleStore, make_cartpole_bundle, value: float
) -> None:
    second = make_cartpole_bundle(seed=4, name="second")
    store.add(second)
    slot.stage(second.reference)
    plant = FakePlant()
    plant.observation[2] = value
    loop = ControlLoop(slot, plant, observation_limit=1e3)
    run_while(loop, lambda: time.sleep(0.1))
    assert loop.unsound > 0
    assert loop.faults == 0
    assert {command for _, command in plant.commands} == {0.0}
    assert slot.active.digest == second.digest


def test_controller_that_raises_is_taken_back_and_the_loop_goes_on(
    slot: ControllerSlot, store: BundleStore, small_bundle: Bundle, make_cartpole_bundle, monkeypatch
) -> None:
    second = make_cartpole_bundle(seed=4, name="second")
    store.add(second)
    slot.stage(second.reference)
    staged = slot._staged
    assert staged is not None

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(staged.bundle.policy, "act", fail)
    plant = FakePlant()
    loop = ControlLoop(slot, plant)
    run_while(loop, lambda: time.sleep(0.2))
    assert slot.active.digest == small_bundle.digest
    assert loop.faults == 1
    assert plant.commands[-2][1] != 0.0


def test_probation_does_not_run_while_nothing_new_is_observed(
    store: BundleStore, small_bundle: Bundle, make_cartpole_bundle
) -> None:
    slot = ControllerSlot(store, store.add(small_bundle), probation=0.1)
    second = make_cartpole_bundle(seed=4, name="second")
    store.add(second)
    slot.stage(second.reference)
    plant = FakePlant()
    plant.frozen = True
    run_while(ControlLoop(slot, plant, observation_timeout=0.05), lambda: time.sleep(0.4))
    assert slot.on_probation


@pytest.mark.parametrize("observed", ["what is no number", "nothing new"])
def test_probation_and_recording_go_on_with_each_good_observation_once(
    store: BundleStore, small_bundle: Bundle, make_cartpole_bundle, observed: str
) -> None:
    slot = ControllerSlot(store, store.add(small_bundle), probation=0.03)
    second = make_cartpole_bundle(seed=4, name="second")
    store.add(second)
    slot.stage(second.reference)
    plant, recorded = FakePlant(), Transitions()
    loop = ControlLoop(slot, plant, recorded, observation_timeout=60.0)
    loop.follow()
    if observed == "nothing new":
        plant.frozen = True
    else:
        plant.observation[2] = math.nan
    for _ in range(5):
        loop.follow()
    assert slot.on_probation
    assert len(recorded) == 1
    plant.frozen, plant.observation[2] = False, 0.0
    for _ in range(2):
        loop.follow()
    assert not slot.on_probation
    assert len(recorded) == 3


def test_controller_too_slow_to_be_rehearsed_is_run_once_a_tick(slot: ControllerSlot, monkeypatch) -> None:
    calls = []

    def slow(observation: NDArray[np.float64], action: NDArray[np.float64]) -> None:
        calls.append(1)
        time.sleep(0.004)

    monkeypatch.setattr(slot._policy, "act", slow)
    loop = ControlLoop(slot, FakePlant())
    run_while(loop, lambda: time.sleep(1.0))
    assert loop.statistics.ticks > 50
    assert len(calls) < 1.2 * loop.statistics.ticks


def test_swap_happens_in_the_running_loop(slot: ControllerSlot, store: BundleStore, make_cartpole_bundle) -> None:
    second = make_cartpole_bundle(seed=4, name="second")
    store.add(second)
    plant, recorded = FakePlant(), Transitions()

    def swap() -> None:
        time.sleep(0.1)
        slot.stage(second.reference)
        time.sleep(0.2)

    run_while(ControlLoop(slot, plant, recorded), swap)
    expected = np.zeros(1)
    second.policy.act(plant.observation, expected)
    after = {float(action[0]) for _, bundle, _, action in recorded if bundle == 1}
    assert after == {expected[0]}
    assert slot.events[0].duration < 1e-3


def test_stopping_before_the_first_observation_ends_the_loop(slot: ControllerSlot) -> None:
    class Silent(FakePlant):
        def wait(self, timeout: float) -> bool:
            time.sleep(0.001)
            return False

    plant = Silent()
    run_while(ControlLoop(slot, plant), lambda: time.sleep(0.05))
    assert [command for _, command in plant.commands] == [0.0]


def test_followed_plant_is_answered_at_its_own_beat(slot: ControllerSlot, small_bundle: Bundle) -> None:
    plant, recorded = FakePlant(), Transitions()
    loop = ControlLoop(slot, plant, recorded)
    loop.prepare()
    for _ in range(3):
        loop.follow()
    expected = np.zeros(1)
    small_bundle.policy.act(plant.observation, expected)
    assert plant.commands == [(0.01, expected[0]), (0.02, expected[0]), (0.03, expected[0])]
    assert len(recorded) == 3
    assert loop.commanding


def test_followed_plant_gets_the_staged_controller(
    slot: ControllerSlot, store: BundleStore, make_cartpole_bundle
) -> None:
    second = make_cartpole_bundle(seed=4, name="second")
    store.add(second)
    plant = FakePlant()
    loop = ControlLoop(slot, plant)
    loop.follow()
    slot.stage(second.reference)
    loop.follow()
    expected = np.zeros(1)
    second.policy.act(plant.observation, expected)
    assert plant.commands[-1][1] == expected[0]


def test_followed_tick_that_takes_longer_than_a_period_is_an_overrun(slot: ControllerSlot) -> None:
    class Slow(FakePlant):
        def after_tick(self) -> None:
            time.sleep(0.002)

    loop = ControlLoop(slot, Slow(), period=0.001)
    loop.follow()
    assert loop.statistics.overruns == 1


def test_what_an_earlier_loop_left_behind_is_freed_before_the_next() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.me = self

    cycle = Cycle()
    gone = weakref.ref(cycle)
    settle_memory()
    del cycle
    settle_memory()
    assert gone() is None


def test_what_there_is_when_a_loop_begins_is_not_searched_for_garbage(slot: ControllerSlot) -> None:
    gc.unfreeze()
    run_while(ControlLoop(slot, FakePlant()), lambda: time.sleep(0.05))
    assert gc.get_freeze_count() > 0


def test_chosen_safe_command_is_sent_where_there_is_no_observation(slot: ControllerSlot) -> None:
    plant = FakePlant()
    plant.frozen = True
    loop = ControlLoop(slot, plant, observation_timeout=0.02, safe_command=[2.5])
    loop.follow()
    time.sleep(0.05)
    loop.follow()
    assert plant.commands[-1][1] == 2.5
    assert not loop.commanding


def test_safe_command_beyond_the_limits_is_refused(slot: ControllerSlot) -> None:
    with pytest.raises(ControllerError, match=r"safe_command \[25\.0\] is not one value within each of: slider in"):
        ControlLoop(slot, FakePlant(), safe_command=[25.0])
