from __future__ import annotations

import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.runtime.finding import first_controller
from nncontrol_prune.runtime.store import BundleStore, SlotRecord, StoreError

SHIPPED = "cartpole_swingup_sac"


def test_loop_begins_with_what_is_asked_for_or_ran_last_or_the_default(
    store: BundleStore, small_bundle: Bundle, shipped_bundle: Bundle
) -> None:
    with pytest.raises(StoreError, match=r"slot loop of the store .* has no current controller; name one"):
        first_controller(store, "loop", asked="", default="")
    assert first_controller(store, "loop", asked="", default=SHIPPED).reference == shipped_bundle.reference
    store.write_slot("loop", SlotRecord(current=store.add(small_bundle)))
    assert first_controller(store, "loop", asked="", default=SHIPPED).reference == small_bundle.reference
    assert first_controller(store, "loop", asked=SHIPPED, default="").reference == shipped_bundle.reference
    assert first_controller(store, "another", asked="", default=SHIPPED).reference == shipped_bundle.reference
