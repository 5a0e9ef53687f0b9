import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nncontrol_prune.runtime import scheduling
from nncontrol_prune.runtime.scheduling import ProcessorWait, real_time_granted, run_in_real_time, running_threads

AUTOGROUP = Path("/proc/self/autogroup")
STATE = """
import os
from pathlib import Path
from nncontrol_prune.runtime.scheduling import stand_back
stand_back({niceness})
autogroup = Path("/proc/self/autogroup")
print(os.nice(0), os.sched_getscheduler(0), *autogroup.read_text().split()[-1:] if autogroup.exists() else ())
"""


def state_after(niceness: int, *, own_session: bool) -> list[str]:
    command = [sys.executable, "-c", STATE.format(niceness=niceness)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=own_session)
    return done.stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="policies of Linux")
@pytest.mark.parametrize(("niceness", "policy"), [(5, 0), (19, 5)])  # SCHED_OTHER, SCHED_IDLE
def test_a_process_stands_back_and_its_session_with_it(niceness: int, policy: int) -> None:
    group = [str(niceness)] if AUTOGROUP.exists() else []
    assert state_after(niceness, own_session=True) == [str(niceness), str(policy), *group]


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="no autogroups here")
def test_a_session_that_others_share_keeps_its_place() -> None:
    group = AUTOGROUP.read_text().split()[-1:]  # none in the session that the system started with
    assert state_after(19, own_session=False) == ["19", "5", *group]


@pytest.mark.skipif(not real_time_granted(1), reason="real-time scheduling is not granted here")
def test_threads_of_others_are_put_in_real_time_and_ended_ones_are_skipped() -> None:
    end = threading.Event()
    ended = threading.Thread(target=lambda: None)
    before = running_threads()
    waiting = threading.Thread(target=end.wait)
    waiting.start()
    ended.start()
    ended.join()
    try:
        started = running_threads() - before
        assert waiting.native_id is not None
        assert waiting.native_id in started
        assert ended.native_id is not None
        assert run_in_real_time(1, {ended.native_id, *started})
        assert os.sched_getscheduler(waiting.native_id) == os.SCHED_FIFO
        assert os.sched_getscheduler(0) == os.SCHED_OTHER, "only those that were named"
        assert not run_in_real_time(0, started)
    finally:
        end.set()
        waiting.join()


SPIN = """
import os
os.sched_setaffinity(0, {{{processor}}})
os.sched_setscheduler(0, {policy}, os.sched_param(0))
print("ready", flush=True)
while True:
    pass
"""


@contextmanager
def spinning(policy: int) -> Iterator[int]:
    """Run a process that wants one processor, the same for all of them, all the time."""
    code = SPIN.format(processor=min(os.sched_getaffinity(0)), policy=policy)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.kill()


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not tell")
def test_a_process_that_others_take_the_processor_from_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "WAIT_WINDOW", 1.0)
    with spinning(os.SCHED_IDLE) as behind, spinning(os.SCHED_OTHER):
        wait = ProcessorWait(behind)
        assert wait.share() == 0.0, "too early to tell"
        end = time.monotonic() + 30.0
        while wait.share() <= 0.5 and time.monotonic() < end:
            time.sleep(0.1)  # the system counts a wait when it is over, and one of these may take seconds
        assert 0.5 < wait.share() <= 1.0


def test_a_process_that_sleeps_or_is_gone_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "WAIT_WINDOW", 0.1)
    with subprocess.Popen(["sleep", "60"]) as process:
        wait = ProcessorWait(process.pid)
        time.sleep(0.5)
        try:
            assert wait.share() < 0.5
        finally:
            process.kill()
    time.sleep(0.2)
    assert wait.share() < 0.5
