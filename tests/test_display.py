from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from rich.console import Console

from nncontrol_prune import display
from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.verdict import Criterion, Verdict
from nncontrol_prune.runtime.statistics import COLUMNS, summarize
from nncontrol_prune.service.boundary import BoundaryPoint
from nncontrol_prune.shares import percent_removed


def test_what_looks_like_a_style_or_a_picture_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    display.note("pip install 'nncontrol_prune[search]' and see [/tmp/x]")
    display.out.print("out/run[v2]/bag:x:y, duration [s]: 3", soft_wrap=True)
    told = capsys.readouterr()
    assert " ".join(told.err.split()) == "note: pip install 'nncontrol_prune[search]' and see [/tmp/x]"
    assert told.out == "out/run[v2]/bag:x:y, duration [s]: 3\n"


def test_log_is_told_each_stage_and_now_and_then_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([100.0, 101.0, 131.0, 132.0, 200.0])
    with display.progress_bar() as show:
        monkeypatch.setattr(display.time, "monotonic", lambda: next(seconds))
        for stage, share in (("groups", 0.0), ("groups", 0.5), ("groups", 0.9), ("choice", 0.1), ("choice", None)):
            show(stage, share)
        monkeypatch.undo()
    assert capsys.readouterr().err.strip().splitlines() == ["groups", "groups: 90%", "choice", "choice"]


@pytest.mark.parametrize(
    ("value", "text"), [(836.0, "836.0"), (9341.7, "9342"), (-0.5, "-0.5000"), (12345.0, "1.234e+04")]
)
def test_returns_have_four_digits(value: float, text: str) -> None:
    point = BoundaryPoint(sparsity=0.5, accepted=True, episodes=1, successes=1, dense_successes=1, return_mean=value,
                          dense_return_mean=1.0, reason="")  # fmt: skip
    with display.out.capture() as shown:
        display.out.print(display.boundary_table([point]))
    assert f" {text} " in shown.get()


def test_loop_that_never_ticked_has_no_times() -> None:
    status = {"active": "small@0123456789", "swaps": 0, "rate": 100.0, "stale": 0, "unsound": 0, "unfit_states": 3}
    status |= {"dropped": 0, "faults": 0, "ticks": {"ticks": 0, "skipped": 0, "overruns": 0}}
    console = Console(width=120)
    with console.capture() as shown:
        console.print(display.loop_table(status, summarize(np.zeros((0, len(COLUMNS))))))
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in shown.get().splitlines()]
    assert ["whole tick p50 / p99", "-"] in rows
    assert ["states of another size", "3"] in rows


def test_sparsities_of_a_boundary_can_be_told_apart(shipped_bundle: Bundle) -> None:
    dense = shipped_bundle.manifest.parameters
    left = [dense // 2, *(round(dense * 1.1**-step) for step in range(40, 90))]
    assert left[-1] > 10
    shown = [percent_removed(1 - parameters / dense) for parameters in left]
    assert shown[0] == "50.0%"
    assert len(set(shown)) == len(shown)


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0.0%"), (0.9, "90.0%"), (0.989, "98.9%"), (1 - 17 / 69_122, "99.975%"), (1.0, "100.0%")]
)
def test_removed_share_has_two_digits_of_what_is_left(share: float, text: str) -> None:
    assert percent_removed(share) == text


def test_share_of_a_return_below_zero_falls_with_the_loss() -> None:
    point = BoundaryPoint(
        sparsity=0.5,
        accepted=False,
        episodes=10,
        successes=10,
        dense_successes=10,
        return_mean=-20.0,
        dense_return_mean=-10.0,
        reason="it costs [/more]",
    )
    with display.out.capture() as shown:
        display.out.print(display.boundary_table([point]))
    assert "0.0%" in shown.get()
    assert "200" not in shown.get()
    assert "it costs [/more]" in shown.get()


def test_verdict_begins_with_its_decision_and_ends_with_its_notes(
    small_bundle: Bundle, make_verdict: Callable[..., Verdict]
) -> None:
    criterion = Criterion(name="return", outcome="failed", reason="return: it loses too much")
    changes = {"criteria": (criterion,), "notes": ("friction was left out",)}
    console = Console(width=120)
    with console.capture() as shown:
        console.print(display.verdict_table(make_verdict(small_bundle, accepted=False).model_copy(update=changes)))
    title, *lines = shown.get().splitlines()
    assert title.strip().endswith(": REJECT")
    cells = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in lines if line.startswith("│")]
    assert cells == [["return", "failed", "it loses too much"], ["friction was left out"]]
