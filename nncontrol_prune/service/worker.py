"""The worker process: does one job and says how far it is.

It reads the job as one line of JSON from its standard input and writes lines of JSON to its standard output. When
its input closes, because the service closed it or died, it ends at once: a worker never outlives its service.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

from nncontrol_prune.processes import line_from_parent, told_to_parent
from nncontrol_prune.runtime.scheduling import stand_back


def main() -> None:
    """Do the job given on standard input."""
    stand_back(19)  # the control loop and its plant go first
    line, out = line_from_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def say(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")

    say(stage="starting", share=0.0)
    try:
        import torch

        torch.set_num_threads(1)
        from nncontrol_prune.progress import Progress
        from nncontrol_prune.service.jobs import Job
        from nncontrol_prune.service.work import carry_out

        carry_out(
            Job.model_validate_json(line),
            Progress(lambda stage, share: say(stage=stage, share=share)),
            lambda outcome: say(outcome=outcome.model_dump(mode="json")),
        )
        say(done=True)
    except Exception as error:  # the process boundary: whatever went wrong, the service must hear of it
        say(error=told_to_parent(error))


def _end_with_parent() -> None:
    sys.stdin.read()
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)  # with the processes that run episodes
    os._exit(1)


if __name__ == "__main__":
    main()
