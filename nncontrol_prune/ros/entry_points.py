"""What `ros2 run` starts: a signal that comes while a node's libraries are imported ends it without a traceback."""

from __future__ import annotations

import importlib
import signal


def controller_node() -> None:
    """Run the node `nn_controller`."""
    _run("controller_node")


def pruning_node() -> None:
    """Run the node `pruning_service`."""
    _run("pruning_node")


def simulator_node() -> None:
    """Run the node `mujoco_sim`."""
    _run("simulator_node")


def _run(module: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the node handles it, which is once there is something to end
    importlib.import_module(f"nncontrol_prune.ros.{module}").main()
