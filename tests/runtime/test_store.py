from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nncontrol_prune.controllers.bundle import MANIFEST
from nncontrol_prune.controllers.errors import BundleError
from nncontrol_prune.files import write_atomically
from nncontrol_prune.runtime.store import BundleStore, NotAcceptedError, SlotRecord, StoreError


def test_stored_bundle_is_found_by_full_and_short_reference(store: BundleStore, small_bundle) -> None:
    reference = store.add(small_bundle)
    assert store.load(reference).digest == small_bundle.digest
    assert store.load(f"small@{small_bundle.digest[:12]}").digest == small_bundle.digest


def test_adding_twice_changes_nothing(store: BundleStore, small_bundle) -> None:
    assert store.add(small_bundle) == store.add(small_bundle)
    assert len(list((store.root / "bundles").iterdir())) == 1


@pytest.mark.parametrize("reference", ["small", "small@xyz", "small@12", "@" + "0" * 64, "small@" + "0" * 64, ""])
def test_unknown_or_malformed_reference_is_refused(store: BundleStore, small_bundle, reference: str) -> None:
    store.add(small_bundle)
    with pytest.raises(StoreError):
        store.load(reference)


def test_bundle_under_another_name_is_refused(store: BundleStore, small_bundle) -> None:
    store.add(small_bundle)
    with pytest.raises(StoreError, match="holds small@"):
        store.load(f"other@{small_bundle.digest}")


def test_damaged_bundle_in_the_store_is_refused(store: BundleStore, small_bundle) -> None:
    reference = store.add(small_bundle)
    (store.directory(small_bundle.digest) / "policy.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="policy.onnx"):
        store.load(reference)


def test_store_that_cannot_be_written_is_named(tmp_path: Path, small_bundle) -> None:
    (tmp_path / "file").touch()
    store = BundleStore(tmp_path / "file" / "store")
    for write in (
        lambda: store.add(small_bundle),
        lambda: store.write_slot("loop", SlotRecord(current=small_bundle.reference)),
    ):
        with pytest.raises(StoreError, match=f"the store {store.root} cannot be written: Not a directory"):
            write()


def test_bundle_that_could_not_be_stored_is_told_where_something_else_has_its_place(
    store: BundleStore, small_bundle
) -> None:
    place = store.directory(small_bundle.digest)
    place.parent.mkdir(parents=True)
    for occupy in (lambda: place.symlink_to("nowhere"), place.touch):
        occupy()
        with pytest.raises(StoreError, match=f"cannot be written: {place} exists already"):
            store.add(small_bundle)
        place.unlink()
    place.parent.rmdir()
    place.parent.touch()
    with pytest.raises(StoreError, match="cannot be written: File exists"):
        store.add(small_bundle)


def test_bundle_without_parent_needs_no_verdict(store: BundleStore, small_bundle) -> None:
    store.check_accepted(small_bundle)


def test_pruned_bundle_needs_an_accepted_verdict(
    store: BundleStore, small_bundle, make_cartpole_bundle, make_verdict
) -> None:
    pruned = make_cartpole_bundle(hidden=(4, 4), parent=small_bundle)
    with pytest.raises(NotAcceptedError, match=f"never validated, as far as the store {store.root} tells"):
        store.check_accepted(pruned)
    store.write_verdict(make_verdict(pruned, accepted=False))
    with pytest.raises(NotAcceptedError, match="rejected it: a test said so"):
        store.check_accepted(pruned)
    store.write_verdict(make_verdict(pruned, accepted=True))
    store.check_accepted(pruned)


def test_verdict_without_a_closed_loop_counts_only_where_that_is_allowed(
    store: BundleStore, small_bundle, make_cartpole_bundle, make_verdict
) -> None:
    pruned = make_cartpole_bundle(hidden=(4, 4), parent=small_bundle)
    store.write_verdict(make_verdict(pruned, offline=True))
    with pytest.raises(NotAcceptedError, match=r"on rollouts alone, without a closed loop; .*allow_offline"):
        store.check_accepted(pruned)
    store.check_accepted(pruned, allow_offline=True)
    store.write_verdict(make_verdict(pruned, accepted=False, offline=True))
    with pytest.raises(NotAcceptedError, match="rejected it"):
        store.check_accepted(pruned, allow_offline=True)


def test_verdict_in_closed_loop_is_not_replaced_by_one_without(
    store: BundleStore, small_bundle, make_cartpole_bundle, make_verdict
) -> None:
    pruned = make_cartpole_bundle(hidden=(4, 4), parent=small_bundle)
    rejected = make_verdict(pruned, accepted=False)
    offline = make_verdict(pruned, offline=True)
    store.write_verdict(offline)
    store.write_verdict(rejected)
    with pytest.raises(StoreError, match=r"was judged in closed loop \(reject\)"):
        store.write_verdict(offline)
    other = BundleStore(store.root / "other")
    other.write_verdict(rejected)
    with pytest.raises(StoreError, match="does not take the place"):
        other.receive(pruned.files, pruned.digest, make_verdict(pruned, accepted=False, offline=True))
    assert not other.directory(pruned.digest).exists()
    assert store.verdict(pruned.digest) == rejected


def test_verdict_that_cannot_be_read_makes_room_for_one_that_arrives(
    store: BundleStore, small_bundle, make_cartpole_bundle, make_verdict
) -> None:
    pruned = make_cartpole_bundle(hidden=(4, 4), parent=small_bundle)
    write_atomically(store.root / "verdicts" / f"{pruned.digest}.json", b'{"format_version": 1}')
    verdict = make_verdict(pruned)
    assert store.receive(pruned.files, pruned.digest, verdict) == pruned.reference
    assert store.verdict(pruned.digest) == verdict


def test_all_verdicts_that_can_be_read_are_listed(
    store: BundleStore, small_bundle, make_cartpole_bundle, make_verdict
) -> None:
    assert list(store.verdicts()) == []
    verdicts = [make_verdict(make_cartpole_bundle(hidden=(4, 4), seed=seed, parent=small_bundle)) for seed in (1, 2)]
    for verdict in verdicts:
        store.write_verdict(verdict)
    write_atomically(store.root / "verdicts" / f"{'0' * 64}.json", b"{}")
    assert sorted(store.verdicts(), key=lambda verdict: verdict.candidate) == sorted(
        verdicts, key=lambda verdict: verdict.candidate
    )


def test_verdict_about_another_bundle_does_not_count(
    store: BundleStore, small_bundle, make_cartpole_bundle, make_verdict
) -> None:
    pruned, other = (make_cartpole_bundle(hidden=(4, 4), seed=seed, parent=small_bundle) for seed in (1, 2))
    verdict = make_verdict(other)
    write_atomically(store.root / "verdicts" / f"{pruned.digest}.json", verdict.model_dump_json().encode())
    with pytest.raises(StoreError, match="is a verdict about"):
        store.check_accepted(pruned)


def test_verdict_against_another_than_the_parent_does_not_count(
    store: BundleStore, small_bundle, make_cartpole_bundle, make_verdict
) -> None:
    pruned = make_cartpole_bundle(hidden=(4, 4), parent=small_bundle)
    store.write_verdict(make_verdict(pruned).model_copy(update={"against": pruned.reference}))
    with pytest.raises(NotAcceptedError, match="judged against another"):
        store.check_accepted(pruned)


def test_verdict_that_contradicts_its_criteria_does_not_count(
    store: BundleStore, small_bundle, make_cartpole_bundle, make_verdict
) -> None:
    pruned = make_cartpole_bundle(hidden=(4, 4), parent=small_bundle)
    store.write_verdict(make_verdict(pruned, accepted=False).model_copy(update={"decision": "accept"}))
    with pytest.raises(StoreError, match="criteria do not say"):
        store.check_accepted(pruned)


def test_damaged_verdict_does_not_count(store: BundleStore, small_bundle, make_cartpole_bundle) -> None:
    pruned = make_cartpole_bundle(hidden=(4, 4), parent=small_bundle)
    write_atomically(store.root / "verdicts" / f"{pruned.digest}.json", b'{"decision": "accept"}')
    with pytest.raises(StoreError, match="is not a verdict"):
        store.check_accepted(pruned)


def test_directory_in_the_place_of_a_file_is_told(
    store: BundleStore, small_bundle, make_cartpole_bundle, make_verdict
) -> None:
    pruned = make_cartpole_bundle(hidden=(4, 4), parent=small_bundle)
    (store.root / "verdicts" / f"{pruned.digest}.json").mkdir(parents=True)
    (store.root / "slots" / "loop.json").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"verdict .*\.json cannot be read: Is a directory"):
        store.check_accepted(pruned)
    with pytest.raises(StoreError, match=r"the store .* cannot be written: Is a directory"):
        store.write_verdict(make_verdict(pruned))
    with pytest.raises(StoreError, match=r"slot record .*loop\.json cannot be read: Is a directory"):
        store.slot("loop")


def test_record_of_a_slot_is_read_as_it_was_written(store: BundleStore) -> None:
    record = SlotRecord(current="b@" + "b" * 64, history=("a@" + "a" * 64,))
    store.write_slot("loop", record)
    assert store.slot("loop") == record
    assert store.slot("other") is None


def test_remains_of_dead_processes_are_removed_and_those_of_living_ones_are_not(store: BundleStore) -> None:
    bundles = store.root / "bundles"
    bundles.mkdir(parents=True)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (bundles / f".writing-{dead.pid}-x").mkdir()
    (bundles / f".writing-{os.getpid()}-x").mkdir()
    store.remove_unfinished()
    assert [path.name for path in bundles.iterdir()] == [f".writing-{os.getpid()}-x"]


ADD = """
import sys
from pathlib import Path
from nncontrol_prune.controllers.bundle import load_bundle
from nncontrol_prune.runtime.store import BundleStore
BundleStore(Path(sys.argv[1])).add(load_bundle(Path(sys.argv[2])))
"""


def test_processes_may_add_the_same_bundle_at_once(store: BundleStore, small_bundle, tmp_path: Path) -> None:
    small_bundle.write(tmp_path / "bundle")
    command = [sys.executable, "-c", ADD, str(store.root), str(tmp_path / "bundle")]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert [path.name for path in (store.root / "bundles").iterdir()] == [small_bundle.digest]


def test_dense_controller_is_found_through_those_pruned_from_it(
    store: BundleStore, small_bundle, make_cartpole_bundle
) -> None:
    middle = make_cartpole_bundle(hidden=(8, 8), parent=small_bundle, name="middle")
    last = make_cartpole_bundle(hidden=(4, 4), parent=middle, name="last")
    for bundle in (small_bundle, middle, last):
        store.add(bundle)
    assert store.dense(last.reference) == small_bundle.reference
    assert store.dense(small_bundle.reference) == small_bundle.reference
    manifest = store.directory(middle.digest) / MANIFEST
    manifest.write_text(middle.manifest.model_copy(update={"parent": last.reference}).model_dump_json())
    with pytest.raises(StoreError, match="says that last@.* was pruned from itself"):
        store.dense(last.reference)
    manifest.unlink()
    lineage = store.lineage(last.reference)
    assert [next(lineage), next(lineage)] == [last.reference, middle.reference]
    with pytest.raises(BundleError, match="manifest.json is missing"):
        next(lineage)
