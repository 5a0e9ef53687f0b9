from __future__ import annotations

import dataclasses

import pytest

from nncontrol_prune.controllers import latency
from nncontrol_prune.controllers.bundle import Bundle


def test_policies_take_turns_so_that_other_work_falls_to_all(
    shipped_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, timed = dataclasses.replace(shipped_bundle), list[Bundle]()
    measure = latency.latencies

    def noted(bundle: Bundle, runs: int) -> object:
        timed.append(bundle)
        return measure(bundle, runs)

    monkeypatch.setattr(latency, "latencies", noted)
    first, second = latency.latencies_in_turns((shipped_bundle, other), 3, 2)
    assert [bundle is other for bundle in timed] == [False, True, False, True]
    assert first.shape == second.shape == (2, 3)
    assert (first > 0.0).all()
    assert (second > 0.0).all()
