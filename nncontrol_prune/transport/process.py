"""What every process of a setup does: take its settings, say when it is ready, and end with its parent.

A process reads its settings as one line of JSON from standard input and answers with one line on standard output:
`{"ready": ...}` or `{"error": ...}`. When its standard input closes, because the parent closed it or died, it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.processes import how_it_ended, line_from_parent, told_to_parent

GRACE = 1.2
"""Seconds that a process has to end by itself."""
PATIENCE = 30.0
"""Seconds that one has to start again, in which nobody looks after the others."""

Settings = TypeVar("Settings", bound=Spec)
Group = TypeVar("Group", bound="ProcessGroup")


class ProcessError(Exception):
    """A process could not be started; the message is what it said."""


def run(settings: type[Settings], start: Callable[[Settings], tuple[Callable[[], None], Callable[[], None]]]) -> None:
    """Be a process: read the settings, start, run, and stop when the parent says so or is gone.

    Args:
        settings: The class of the settings.
        start: Prepares everything; returns a function that runs until the other one, callable from any thread,
            stops it.
    """
    line, answer = line_from_parent()
    try:
        work, stop = start(settings.model_validate_json(line))
    except Exception as error:  # the process boundary: the parent tells the user
        answer.write(json.dumps({"error": told_to_parent(error)}) + "\n")
        sys.exit(1)

    signal.signal(signal.SIGTERM, lambda *_: stop())
    threading.Thread(target=_stop_with_parent, args=(stop,), daemon=True).start()
    answer.write(json.dumps({"ready": True}) + "\n")
    work()


def _stop_with_parent(stop: Callable[[], None]) -> None:
    sys.stdin.read()
    stop()
    time.sleep(GRACE)
    os._exit(1)


class ChildProcess:
    """A process of the setup, seen from its parent.

    Args:
        name: What to call it.
        module: What it runs, `python -m module`.
        settings: What it is told.
        log: Where its error output goes.
    """

    def __init__(self, name: str, module: str, settings: Spec, log: Path) -> None:
        self.name = name
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # the terminal's Ctrl-C is for the parent alone
        )
        self._stdin: IO[bytes] = self._process.stdin  # type: ignore[assignment]
        self._stdin.write(settings.model_dump_json().encode() + b"\n")
        self._stdin.flush()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.poll()

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Wait until it is ready; a process always says either that, or why not, or ends.

        Args:
            timeout: Seconds to wait at the most; None for as long as it takes.

        Raises:
            ProcessError: It is not going to be, or not in time.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise ProcessError(f"the {self.name} process was not ready within {timeout:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise ProcessError(f"{self.how_it_ended()} before it was ready")
        answer = json.loads(line)
        if "error" in answer:
            raise ProcessError(f"{self.name}: {answer['error']}")

    def how_it_ended(self) -> str:
        """Wait for its end; return a sentence that tells how it ended and where its log is."""
        return f"the {self.name} process (its log is {self._log.name}) {how_it_ended(self._process.wait())}"

    def begin_stop(self) -> None:
        """Ask it to end."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()

    def finish_stop(self, timeout: float) -> None:
        """Wait for its end; past the timeout it is killed."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()


class ProcessGroup:
    """Processes that are started together, in a context; at its end they are gone, whatever happened.

    Args:
        settings: What each process is told, by name; NAME runs `nncontrol_prune.transport.NAME_process`.
        logs: Directory; the error output of each goes to `NAME.log` there.
    """

    def __init__(self, settings: Mapping[str, Spec], logs: Path) -> None:
        self._settings = settings
        self._logs = logs
        self._children: dict[str, ChildProcess] = {}

    def __enter__(self: Group) -> Group:
        """Start them all.

        Raises:
            ProcessError: One cannot start; the message says which and why.
        """
        try:
            for name in self._settings:
                self._children[name] = self._start(name)
            for child in self._children.values():
                child.wait_until_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End them."""
        for child in self._children.values():
            child.begin_stop()
        deadline = time.monotonic() + GRACE  # one for all of them, so that the end does not take as long as their sum
        for child in self._children.values():
            child.finish_stop(max(0.0, deadline - time.monotonic()))
        self._children.clear()

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by name."""
        return {name: child.pid for name, child in self._children.items()}

    def dead(self) -> list[str]:
        """Return the processes that have ended."""
        return [name for name, child in self._children.items() if child.exit_code is not None]

    def how_it_ended(self, name: str) -> str:
        """Wait for a process's end; return a sentence that tells how it ended and where its log is."""
        return self._children[name].how_it_ended()

    def restart(self, name: str) -> None:
        """Start a process again that has ended.

        Raises:
            ProcessError: It cannot start; the others go on without it.
        """
        self._children.pop(name).finish_stop(0.0)
        child = self._start(name)
        try:
            child.wait_until_ready(PATIENCE)
        except BaseException:
            child.finish_stop(0.0)
            raise
        self._children[name] = child

    def _start(self, name: str) -> ChildProcess:
        module = f"nncontrol_prune.transport.{name}_process"
        try:
            self._logs.mkdir(parents=True, exist_ok=True)  # somebody may have cleared it away since the first start
            return ChildProcess(name, module, self._settings[name], self._logs / f"{name}.log")
        except OSError as error:
            raise ProcessError(f"the {name} process cannot be started: {error}") from error
