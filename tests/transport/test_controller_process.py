from __future__ import annotations

import subprocess
import sys


def test_the_robots_process_needs_neither_torch_nor_a_simulator() -> None:
    code = "import nncontrol_prune.transport.controller_process, sys; print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "gymnasium", "mujoco", "matplotlib", "scipy", "joblib", "onnx", "rosbags", "mcap"}
    assert heavy.isdisjoint(modules)
