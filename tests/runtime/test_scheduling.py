import subprocess
import sys
from pathlib import Path

import pytest

AUTOGROUP = Path("/proc/self/autogroup")
STATE = """
import os
from pathlib import Path
from nncontrol_prune.runtime.scheduling import stand_back
stand_back({niceness})
autogroup = Path("/proc/self/autogroup")
group = autogroup.read_text().split()[-1] if autogroup.exists() else ""
print(os.nice(0), os.sched_getscheduler(0), group)
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
    assert state_after(19, own_session=False)[-1] == AUTOGROUP.read_text().split()[-1]
