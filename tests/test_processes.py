from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import joblib
import pytest

from nncontrol_prune.processes import BestEffortStream, end_workers, how_it_ended, told_to_parent
from nncontrol_prune.runtime.store import StoreError


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "ended with status 0"),
        (1, "ended with status 1"),
        (-9, "was killed by signal 9 (SIGKILL)"),
        (-40, "was killed by signal 40"),
    ],
)
def test_end_of_a_process_is_told_in_words(status: int, words: str) -> None:
    assert how_it_ended(status) == words


def test_errors_of_ours_are_told_without_a_traceback_and_others_by_their_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert told_to_parent(StoreError("the disk is full")) == "the disk is full"
    assert told_to_parent(StoreError("bags/f\udcfcnf is no bag")) == r"bags/f\udcfcnf is no bag"
    assert capsys.readouterr().err == ""
    assert told_to_parent(KeyError()) == "KeyError"
    assert capsys.readouterr().err == "KeyError\n", "what led to it stands above where it was raised"


def test_workers_that_joblib_keeps_are_ended() -> None:
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(os.getpid)() for _ in range(4))
    kept = multiprocessing.active_children()
    assert set(found) <= {worker.pid for worker in kept}
    end_workers()
    # Not by is_alive: a thread of joblib's may be just about to write down that a worker it waited for has ended.
    assert not [worker.pid for worker in kept if Path(f"/proc/{worker.pid}").exists()]


def test_what_cannot_be_told_ends_nothing() -> None:
    full = Path("/dev/full").open("w")  # noqa: SIM115 - closing it fails, as is to be seen
    stream = BestEffortStream(full)
    assert stream.write("a line\n") == 7
    stream.flush()
    assert stream.fileno() == full.fileno()
    with pytest.raises(OSError, match="No space left"):
        full.close()
