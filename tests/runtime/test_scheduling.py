import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nncontrol_prune.runtime.scheduling import real_time_granted, run_in_real_time, running_threads

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
