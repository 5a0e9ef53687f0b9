"""The package as a user builds it, and the commands that a user then gives."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.ros.graph import Graph, ros_environment

ROOT = Path(__file__).resolve().parents[2]


def build(base: Path) -> None:
    """Build the package with colcon, from this environment, into `install`."""
    command = [sys.executable, "-m", "colcon", "--log-base", str(base / "log"), "build", "--base-paths", str(ROOT)]
    command += ["--build-base", str(base / "build"), "--install-base", str(base / "install")]
    done = subprocess.run(command, cwd=base, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def in_workspace(workspace: Path, command: str) -> list[str]:
    setup = next(path for path in (workspace / "install").glob("setup.*sh") if path.name in ("setup.bash", "setup.sh"))
    return ["bash", "-c", f"source {shlex.quote(str(setup))} && {command}"]


def environment(store: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command: as of a node, but for the package, which is found in the workspace."""
    return {**ros_environment(store), "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **variables}


def run(
    workspace: Path, command: str, store: Path, *, directory: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Give a command, and wait for its end."""
    return subprocess.run(
        in_workspace(workspace, command),
        env=environment(store, variables),
        cwd=directory or workspace,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Launched:
    """A command under way, such as a launch; its end takes everything along."""

    def __init__(self, workspace: Path, graph: Graph, command: str, **variables: str) -> None:
        self._log = graph.tmp_path / f"launch_{len(list(graph.tmp_path.glob('launch_*.log')))}.log"
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                in_workspace(workspace, f"exec {command}"),
                env=environment(graph.store_path, variables),
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=graph.tmp_path,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def pid_of(self, executable: str) -> int:
        """Return the process of a node that launch has started, the last one if it was started again."""
        found = re.findall(rf"\[{executable}-\d+\]: process started with pid \[(\d+)\]", self.log)
        return int(found[-1]) if found else 0

    def end(self) -> int:
        """Interrupt it and all it has started, as Ctrl-C does, and return its exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(20)
