from __future__ import annotations

import subprocess
import sys


def test_worker_ends_when_its_service_is_gone() -> None:
    worker = subprocess.Popen(
        [sys.executable, "-m", "nncontrol_prune.service.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("{}\n")
    worker.stdin.flush()
    assert worker.stdout.readline().startswith('{"stage": "starting"')
    worker.stdin.close()
    assert worker.wait(timeout=30) == 1, "a job that fails ends with 0"
    worker.stdout.close()
