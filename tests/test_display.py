from __future__ import annotations

import pytest
from rich.console import Console

from nncontrol_prune import display
from nncontrol_prune.service.boundary import BoundaryPoint


def test_what_looks_like_a_style_is_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "err", Console(stderr=True, width=120))
    display.note("pip install 'nncontrol_prune[search]' and see [/tmp/x]")
    assert capsys.readouterr().err == "note: pip install 'nncontrol_prune[search]' and see [/tmp/x]\n"


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
    console = Console(width=120)
    with console.capture() as shown:
        console.print(display.boundary_table([point]))
    assert "0.0%" in shown.get()
    assert "200" not in shown.get()
    assert "it costs [/more]" in shown.get()
