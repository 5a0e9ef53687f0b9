from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from nncontrol_prune.transport import signals
from nncontrol_prune.transport.signals import ending_by_signal, interrupt_by_any_signal

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def left(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Handlers that are as they were before in the end, and who was told to leave the terminal, which is the tests'."""
    left: list[str] = []
    monkeypatch.setattr(signals, "_leave_terminal", lambda: left.append("terminal"))
    before = {number: signal.getsignal(number) for number in ENDING}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    yield left
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_first_signal_asks_for_the_end_and_a_second_one_interrupts(number: signal.Signals, left: list[str]) -> None:
    with ending_by_signal() as ending:
        assert not ending.is_set()
        signal.raise_signal(number)
        assert ending.is_set()
        assert left == (["terminal"] if number == signal.SIGHUP else [])
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", ENDING)
def test_signal_after_the_block_interrupts(number: signal.Signals) -> None:
    with ending_by_signal() as ending:
        pass
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert not ending.is_set()


def test_loss_of_the_terminal_is_left_to_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert interrupt_by_any_signal() == [signal.SIGINT, signal.SIGTERM]
    with ending_by_signal() as ending:
        signal.raise_signal(signal.SIGHUP)
        assert not ending.is_set()
