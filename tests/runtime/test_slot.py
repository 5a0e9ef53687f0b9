from __future__ import annotations

import errno
import shutil
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.controllers.observations import ObservationSpec, ObservationTerm
from nncontrol_prune.controllers.specs import ActionSpec
from nncontrol_prune.files import write_atomically
from nncontrol_prune.runtime.slot import LONGEST_PATIENCE, PATIENCE, ControllerSlot, StagingError
from nncontrol_prune.runtime.store import HISTORY_LENGTH, BundleStore, NotAcceptedError, SlotRecord, StoreError


@pytest.fixture
def second(make_cartpole_bundle) -> Bundle:
    return make_cartpole_bundle(seed=9, name="second")


@pytest.fixture
def slot(store: BundleStore, small_bundle: Bundle, second: Bundle) -> ControllerSlot:
    store.add(second)
    slot = ControllerSlot(store, store.add(small_bundle), slot="loop", probation=0.03)
    assert store.slot("loop") is None, "nothing is written before the loop has its ports"
    slot.commit_if_due()
    return slot


def pass_ticks(slot: ControllerSlot, count: int, healthy: bool = True) -> None:
    for tick in range(count):
        slot.swap_if_staged(tick)
        slot.tick_passed(tick, healthy)


def stage(slot: ControllerSlot, bundle: Bundle, ticks: int) -> None:
    """Stage a controller, and run some ticks, three of which are its probation."""
    slot.stage(bundle.reference)
    pass_ticks(slot, ticks)


def current(store: BundleStore) -> str:
    record = store.slot("loop")
    assert record is not None
    return record.current


def test_staged_controller_takes_over_between_two_ticks(slot: ControllerSlot, second: Bundle) -> None:
    observation, before, after = np.ones(5), np.zeros(1), np.zeros(1)
    slot.act(observation, before)
    slot.stage(second.reference)
    slot.act(observation, after)
    assert after == before, "staging alone changes nothing"
    slot.swap_if_staged(7)
    slot.act(observation, after)
    expected = np.zeros(1)
    second.policy.act(observation, expected)
    assert after == expected
    assert (slot.swaps, slot.events[0].tick, slot.events[0].reference) == (1, 7, second.reference)


def test_it_is_committed_after_its_probation_and_not_before(
    slot: ControllerSlot, store: BundleStore, small_bundle: Bundle, second: Bundle
) -> None:
    stage(slot, second, 2)
    slot.commit_if_due()
    assert slot.on_probation
    assert current(store) == small_bundle.reference
    pass_ticks(slot, 1)
    slot.commit_if_due()
    assert current(store) == second.reference


def test_what_the_store_knows_is_not_written_again(
    slot: ControllerSlot, store: BundleStore, second: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(store, "write_slot", lambda _, record: written.append(record.current))
    slot.stage(second.reference)
    for _ in range(5):
        pass_ticks(slot, 1)
        slot.commit_if_due()
    assert written == [second.reference]


def test_controller_that_was_replaced_is_freed_outside_the_loop(
    slot: ControllerSlot, second: Bundle, third: Bundle
) -> None:
    stage(slot, second, 3)
    replaced = weakref.ref(slot.active)
    stage(slot, third, 3)
    assert replaced() is not None
    slot.commit_if_due()
    assert replaced() is None


def test_fault_on_probation_brings_the_old_one_back(
    slot: ControllerSlot, store: BundleStore, small_bundle: Bundle, second: Bundle
) -> None:
    stage(slot, second, 1)
    pass_ticks(slot, 1, healthy=False)
    slot.commit_if_due()
    assert slot.active.digest == small_bundle.digest
    assert current(store) == small_bundle.reference
    assert "fault" in slot.events[-1].reason
    assert not slot.on_probation, "another fault has nowhere to lead to"


def test_fault_after_probation_does_not_swap(slot: ControllerSlot, second: Bundle) -> None:
    stage(slot, second, 3)
    pass_ticks(slot, 5, healthy=False)
    assert slot.active.digest == second.digest


def test_rollback_returns_to_the_controller_before(
    slot: ControllerSlot, store: BundleStore, small_bundle: Bundle, second: Bundle
) -> None:
    stage(slot, second, 3)
    slot.commit_if_due()
    slot.rollback()
    pass_ticks(slot, 3)
    slot.commit_if_due()
    assert slot.active.digest == small_bundle.digest
    assert current(store) == small_bundle.reference
    with pytest.raises(StagingError, match="no earlier controller"):
        slot.rollback()


def test_rollback_on_probation_returns_too(slot: ControllerSlot, small_bundle: Bundle, second: Bundle) -> None:
    stage(slot, second, 1)
    slot.rollback()
    pass_ticks(slot, 1)
    assert slot.active.digest == small_bundle.digest


@pytest.fixture
def third(store: BundleStore, make_cartpole_bundle) -> Bundle:
    bundle = make_cartpole_bundle(seed=10, name="third")
    store.add(bundle)
    return bundle


def test_fault_after_a_rollback_does_not_bring_the_bad_one_back(
    slot: ControllerSlot, small_bundle: Bundle, second: Bundle
) -> None:
    stage(slot, second, 3)
    slot.commit_if_due()
    slot.rollback()
    pass_ticks(slot, 1)
    pass_ticks(slot, 3, healthy=False)
    assert slot.active.digest == small_bundle.digest


def test_second_rollback_does_not_bring_the_bad_one_back(
    slot: ControllerSlot, small_bundle: Bundle, second: Bundle
) -> None:
    stage(slot, second, 1)
    slot.rollback()
    pass_ticks(slot, 1)
    with pytest.raises(StagingError):
        slot.rollback()
    pass_ticks(slot, 1)
    assert slot.active.digest == small_bundle.digest


def test_fault_leads_to_the_last_proven_one_and_not_to_one_on_probation(
    slot: ControllerSlot, small_bundle: Bundle, second: Bundle, third: Bundle
) -> None:
    stage(slot, second, 1)
    stage(slot, third, 1)
    pass_ticks(slot, 1, healthy=False)
    assert slot.active.digest == small_bundle.digest


def test_fault_leads_to_the_last_that_passed_its_probation_and_not_to_the_first(
    slot: ControllerSlot, proven: list[Bundle], fourth: Bundle
) -> None:
    stage(slot, fourth, 1)
    pass_ticks(slot, 1, healthy=False)
    assert slot.active.digest == proven[-1].digest


def test_commit_that_cannot_be_written_is_told_and_tried_again_ever_more_rarely(
    slot: ControllerSlot,
    store: BundleStore,
    small_bundle: Bundle,
    second: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage(slot, second, 3)

    attempts = 0

    def fail(*_: object) -> None:
        nonlocal attempts
        attempts += 1
        raise StoreError("the store cannot be written: No space left on device")

    now = 0.0
    monkeypatch.setattr("nncontrol_prune.runtime.slot.time.monotonic", lambda: now)
    with monkeypatch.context() as broken:
        broken.setattr(store, "write_slot", fail)
        for _ in range(6000):  # 600 s
            slot.commit_if_due()
            now += 0.1
        assert attempts < 30
        assert "slot loop runs second@" in (slot.problem or "")
        assert "No space left on device" in (slot.problem or "")
    now += LONGEST_PATIENCE
    slot.commit_if_due()
    assert current(store) == second.reference
    assert slot.problem is None

    attempts = 0
    stage(slot, small_bundle, 3)
    monkeypatch.setattr(store, "write_slot", fail)
    for _ in range(2):
        slot.commit_if_due()
        now += PATIENCE
    assert attempts == 2, "the next failure is a first one"


@pytest.fixture
def proven(slot: ControllerSlot, second: Bundle, third: Bundle) -> list[Bundle]:
    """Two controllers that passed their probation after the first; the last one is active."""
    for bundle in (second, third):
        stage(slot, bundle, 3)
        slot.commit_if_due()
    return [second, third]


@pytest.fixture
def fourth(store: BundleStore, make_cartpole_bundle) -> Bundle:
    bundle = make_cartpole_bundle(seed=11, name="fourth")
    store.add(bundle)
    return bundle


@pytest.mark.parametrize("ticks", [0, 1, 2])
def test_rollback_of_what_was_just_staged_leads_to_the_active_one_whether_it_was_taken_or_not(
    slot: ControllerSlot, store: BundleStore, proven: list[Bundle], fourth: Bundle, ticks: int
) -> None:
    stage(slot, fourth, ticks)
    assert slot.rollback() == proven[-1].reference
    pass_ticks(slot, 3)
    slot.commit_if_due()
    assert slot.active.digest == proven[-1].digest
    assert current(store) == proven[-1].reference
    assert not slot.on_probation
    assert slot.swaps == (2 if ticks == 0 else 4), "what was not taken is not swapped"


def test_rollback_that_comes_while_the_loop_takes_a_controller_is_carried_out_by_the_next_tick(
    slot: ControllerSlot, proven: list[Bundle], fourth: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot.stage(fourth.reference)
    activate = slot._activate

    def roll_back_meanwhile(*arguments: Any) -> None:
        monkeypatch.undo()
        slot.rollback()
        activate(*arguments)

    monkeypatch.setattr(slot, "_activate", roll_back_meanwhile)
    slot.swap_if_staged(0)
    assert slot.active.digest == fourth.digest
    slot.swap_if_staged(1)
    assert slot.active.digest == proven[-1].digest


def test_rollback_that_comes_while_a_controller_is_staged_waits_and_gives_it_up(
    slot: ControllerSlot, store: BundleStore, proven: list[Bundle], fourth: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, back = store.load, list[str]()
    rollback = threading.Thread(target=lambda: back.append(slot.rollback()))

    def roll_back_meanwhile(reference: str) -> Bundle:
        monkeypatch.undo()
        rollback.start()
        rollback.join(0.2)  # it cannot end before the staging does
        return load(reference)

    monkeypatch.setattr(store, "load", roll_back_meanwhile)
    slot.stage(fourth.reference)
    rollback.join()
    assert back == [proven[-1].reference]


def test_rollback_on_probation_needs_nothing_of_the_store(
    slot: ControllerSlot, store: BundleStore, small_bundle: Bundle, second: Bundle
) -> None:
    stage(slot, second, 1)
    shutil.rmtree(store.root)
    slot.rollback()
    pass_ticks(slot, 1)
    assert slot.active.digest == small_bundle.digest


def test_rollback_leads_to_the_one_before_though_the_store_was_not_written(
    slot: ControllerSlot, store: BundleStore, proven: list[Bundle], fourth: Bundle, make_cartpole_bundle
) -> None:
    fifth = make_cartpole_bundle(seed=12, name="fifth")
    store.add(fifth)
    for bundle in (fourth, fifth):
        stage(slot, bundle, 3)
    for before in (fourth, *reversed(proven)):
        assert slot.rollback() == before.reference
        pass_ticks(slot, 1)
        assert slot.active.digest == before.digest
    slot.commit_if_due()
    assert current(store) == proven[0].reference


@pytest.mark.parametrize("ticks", [0, 1])
def test_two_rollbacks_go_two_controllers_back_whether_the_first_was_taken_or_not(
    slot: ControllerSlot, store: BundleStore, small_bundle: Bundle, proven: list[Bundle], ticks: int
) -> None:
    assert slot.rollback() == proven[0].reference
    pass_ticks(slot, ticks)
    assert slot.rollback() == small_bundle.reference
    pass_ticks(slot, 1)
    slot.commit_if_due()
    assert slot.active.digest == small_bundle.digest
    assert store.slot("loop") == SlotRecord(current=small_bundle.reference)


def test_history_is_as_long_as_a_record_may_be(
    slot: ControllerSlot, store: BundleStore, small_bundle: Bundle, second: Bundle
) -> None:
    for _ in range(HISTORY_LENGTH):
        for bundle in (second, small_bundle):
            stage(slot, bundle, 3)
    slot.commit_if_due()
    record = store.slot("loop")
    assert record is not None
    assert (record.current, len(record.history)) == (small_bundle.reference, HISTORY_LENGTH)


def test_started_again_a_slot_knows_what_it_ran_before(
    slot: ControllerSlot, store: BundleStore, small_bundle: Bundle, proven: list[Bundle]
) -> None:
    slot.close()
    again = ControllerSlot(store, proven[-1].reference, slot="loop")
    assert again.rollback() == proven[0].reference
    again.close()
    again = ControllerSlot(store, small_bundle.reference, slot="loop")
    assert again.rollback() == proven[-1].reference


def test_second_loop_cannot_have_the_slot_while_the_first_has_it(
    slot: ControllerSlot, store: BundleStore, second: Bundle
) -> None:
    with pytest.raises(StoreError, match=r"another loop has slot loop .*--store"):
        ControllerSlot(store, second.reference, slot="loop")
    ControllerSlot(store, second.reference, slot="another").close()
    slot.close()
    ControllerSlot(store, second.reference, slot="loop").close()


def test_slot_whose_record_is_damaged_is_not_held(store: BundleStore, small_bundle: Bundle) -> None:
    reference = store.add(small_bundle)
    write_atomically(store.root / "slots" / "loop.json", b"{}")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"loop\.json is not a slot record"):
            ControllerSlot(store, reference, slot="loop")


def test_loop_whose_store_cannot_be_written_has_its_slot(
    store: BundleStore, small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    reference = store.add(small_bundle)
    monkeypatch.setattr("nncontrol_prune.runtime.store.held_file", read_only)
    assert ControllerSlot(store, reference).active.digest == small_bundle.digest


def test_staging_an_earlier_controller_is_no_rollback(
    slot: ControllerSlot, store: BundleStore, small_bundle: Bundle, second: Bundle
) -> None:
    for bundle in (second, small_bundle):
        stage(slot, bundle, 3)
        slot.commit_if_due()
    slot.rollback()
    pass_ticks(slot, 1)
    assert slot.active.digest == second.digest


def test_rollback_without_predecessor_is_refused(slot: ControllerSlot) -> None:
    with pytest.raises(StagingError, match="no earlier controller"):
        slot.rollback()


def test_pruned_controller_without_accepted_verdict_cannot_be_staged(
    slot: ControllerSlot, store: BundleStore, small_bundle: Bundle, make_cartpole_bundle, make_verdict
) -> None:
    pruned = make_cartpole_bundle(hidden=(4, 4), parent=small_bundle)
    store.add(pruned)
    with pytest.raises(NotAcceptedError):
        slot.stage(pruned.reference)
    with pytest.raises(NotAcceptedError):
        ControllerSlot(store, pruned.reference)
    store.write_verdict(make_verdict(pruned, accepted=False))
    with pytest.raises(NotAcceptedError):
        slot.stage(pruned.reference)
    pass_ticks(slot, 1)
    assert slot.swaps == 0
    store.write_verdict(make_verdict(pruned))
    stage(slot, pruned, 1)
    assert slot.active.digest == pruned.digest


@pytest.mark.parametrize("allowed", [False, True])
def test_controller_that_was_accepted_on_rollouts_alone_can_be_staged_where_that_is_allowed(
    store: BundleStore, small_bundle: Bundle, make_cartpole_bundle, make_verdict, allowed: bool
) -> None:
    slot = ControllerSlot(store, store.add(small_bundle), allow_offline=allowed)
    pruned = make_cartpole_bundle(hidden=(4, 4), parent=small_bundle)
    store.add(pruned)
    store.write_verdict(make_verdict(pruned, offline=True))
    if allowed:
        assert slot.stage(pruned.reference) == pruned.reference
    else:
        with pytest.raises(NotAcceptedError, match="on rollouts alone"):
            slot.stage(pruned.reference)


def test_damaged_controller_cannot_be_staged(slot: ControllerSlot, store: BundleStore, second: Bundle) -> None:
    (store.directory(second.digest) / "weights.safetensors").unlink()
    with pytest.raises(ControllerError, match=r"weights\.safetensors is missing"):
        slot.stage(second.reference)
    assert slot.swaps == 0


def test_active_controller_is_not_staged_again(slot: ControllerSlot, small_bundle: Bundle) -> None:
    with pytest.raises(StagingError, match="active already"):
        slot.stage(small_bundle.reference)


def test_active_controller_takes_the_place_of_one_that_waits(
    slot: ControllerSlot, small_bundle: Bundle, second: Bundle
) -> None:
    assert not slot.waiting
    slot.stage(second.reference)
    assert slot.waiting
    slot.stage(small_bundle.reference)
    pass_ticks(slot, 5)
    assert (slot.active.digest, slot.swaps, slot.waiting) == (small_bundle.digest, 0, False)


def test_failure_to_write_is_told_no_more_once_a_rollback_leads_to_what_is_written(
    slot: ControllerSlot, store: BundleStore, second: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("the store cannot be written: No space left on device")

    stage(slot, second, 3)
    with monkeypatch.context() as broken:
        broken.setattr(store, "write_slot", fail)
        slot.commit_if_due()
        assert slot.problem is not None
        slot.rollback()
        pass_ticks(slot, 1)
        slot.commit_if_due()
        assert slot.problem is None
    stage(slot, second, 3)
    slot.commit_if_due()
    assert current(store) == second.reference, "at once"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 50.0}, "rate is 50 Hz, not 100 Hz"),
        (
            {"action": ActionSpec(joints=("slider",), lower=(-1.0,), upper=(1.0,))},
            r"in \[-1, 1\], not slider in",
        ),
        ({"observation": ObservationSpec(terms=(ObservationTerm(name="other", size=5),))}, "'other'"),
    ],
)
def test_controller_that_does_not_fit_the_loop_cannot_be_staged(
    slot: ControllerSlot, store: BundleStore, make_cartpole_bundle, changes: dict[str, object], message: str
) -> None:
    misfit = make_cartpole_bundle(seed=3, name="misfit", **changes)
    store.add(misfit)
    with pytest.raises(StagingError, match=message):
        slot.stage(misfit.reference)
