"""The pruning service: one job at a time, in a process of its own. Knows no transport."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError, computed_field

from nncontrol_prune.files import held_file, remove_unfinished, write_atomically
from nncontrol_prune.runtime.scheduling import ProcessorWait
from nncontrol_prune.runtime.store import BundleStore
from nncontrol_prune.service.jobs import Job, Outcome

JobState = Literal["idle", "running", "accepted", "rejected", "failed", "cancelled"]

STAGES = {
    "starting": (0.0, 0.05),
    "rollouts": (0.05, 0.1),
    "groups": (0.1, 0.11),
    "importance": (0.11, 0.13),
    "coefficients": (0.13, 0.3),
    "reconstruction": (0.3, 0.31),
    "choice": (0.31, 0.32),
    "on-policy rounds": (0.32, 0.38),
    "distillation": (0.38, 0.45),
    "closed-loop search": (0.45, 0.6),
    "validation": (0.6, 0.8),
    "robustness": (0.8, 0.95),
    "off-line check": (0.6, 0.95),
    "report": (0.95, 0.99),
}
"""Where each stage begins and ends in the progress of a whole job; it does not go back where a stage comes again."""

CANCELLED = "cancelled"
"""How a job ended that was cancelled."""
HAMPERED = 0.5
"""Share of its time that a job waits for a processor from which on it is told."""


_log = logging.getLogger(__name__)


class ServiceError(Exception):
    """A request cannot be carried out now; the message says why."""


class JobStatus(BaseModel):
    """How far the service's last job is."""

    job: int = 0
    """Its number; 0 before the first."""
    state: JobState = "idle"
    stage: str = ""
    progress: float = 0.0
    """Share of the whole job that is done, 0..1; an accepted controller may be deployed before the report is done."""
    waiting: float = 0.0
    """Share of the last seconds, to a tenth, that it waited for a processor: jobs let all other work go first."""
    message: str = ""
    """Why it was decided, or ended, as it was."""
    outcome: Outcome | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: what is decided may still be reported on."""
        return self.state != "running" and (self.outcome is None or self.progress >= 1.0)

    @computed_field  # type: ignore[prop-decorator]  # so that whoever asks for the status is told
    @property
    def hampered(self) -> str:
        """What keeps it from getting on, as a sentence; empty if nothing does."""
        if self.waiting < HAMPERED:
            return ""
        return f"other work has the processors: job {self.job} waits for one {self.waiting:.0%} of the time"


class PruningService:
    """Runs jobs, and tells how they go.

    Args:
        store: The bundle store; candidates and verdicts end there.
        journal: File that keeps the last job's status, so that a service that is started again knows it; None to
            forget it. While another service keeps it, this one begins as if there were none.
    """

    def __init__(self, store: BundleStore, journal: Path | None = None) -> None:
        self._store = store
        self._journal = None if journal is None else _Journal(journal)
        self._lock = threading.Lock()
        self._status = JobStatus()
        self._take_journal()
        self._process: subprocess.Popen[str] | None = None
        self._wait: ProcessorWait | None = None
        self._follower: threading.Thread | None = None
        self._busy = self._cancelled = False

    @property
    def status(self) -> JobStatus:
        """The last job's status, as a copy."""
        with self._lock:
            waiting = 0.0 if self._wait is None else round(self._wait.share(), 1)
            return self._status.model_copy(update={"waiting": waiting})

    def check_idle(self) -> None:
        """Check that a job could start.

        Raises:
            ServiceError: One is running.
        """
        with self._lock:
            self._check_idle()

    def start(self, job: Job) -> int:
        """Start a job and return its number at once.

        Raises:
            ServiceError: Another one is running, or no process can be started.
        """
        with self._lock:
            self._check_idle()
            self._take_journal()
            self._store.remove_unfinished()  # what a job that was killed had half written
            try:
                # A session of its own, so that a Ctrl-C in the terminal does not reach it behind the service's back.
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "nncontrol_prune.service.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
            except OSError as error:  # as for want of memory
                raise ServiceError(f"no process can be started to do the work: {error}") from error
            self._busy, self._cancelled = True, False
            self._wait = ProcessorWait(self._process.pid)
            self._status = JobStatus(job=self._status.job + 1, state="running", stage="starting")
            self._follower = threading.Thread(target=self._follow, args=(self._process, job), daemon=True)
            self._follower.start()
            self._remember()
            return self._status.job

    def cancel(self) -> int:
        """Cancel the running job and return its number; when this returns, its process is gone.

        What is decided stays decided: then it is the report alone that is not written.

        Raises:
            ServiceError: None is running.
        """
        with self._lock:
            if not self._busy or self._process is None or self._follower is None:
                raise ServiceError("there is no running job to cancel")
            self._cancelled = True
            process, follower, number = self._process, self._follower, self._status.job
        _kill(process)
        follower.join()
        return number

    def close(self) -> None:
        """Stop whatever is running, and let another service have the journal."""
        with contextlib.suppress(ServiceError):  # nothing is running
            self.cancel()
        if self._journal is not None:
            self._journal.close()

    def _follow(self, process: subprocess.Popen[str], job: Job) -> None:
        """Read what the worker says until it ends; runs in a thread of its own."""
        assert process.stdin is not None
        assert process.stdout is not None
        problem, done = "", False
        try:
            process.stdin.write(job.model_dump_json() + "\n")
            process.stdin.flush()
            for line in process.stdout:
                message = json.loads(line)
                if "stage" in message:
                    begin, end = STAGES.get(message["stage"], (0.0, 0.0))
                    self._update(stage=message["stage"], progress=begin + (end - begin) * message["share"])
                elif "error" in message:
                    problem = message["error"]
                elif "done" in message:
                    done = True
                else:
                    self._decide(Outcome.model_validate(message["outcome"]))
        except BrokenPipeError:
            pass  # it has ended; its exit code tells more
        except Exception as error:  # whatever it is, the service must not stay busy for ever
            problem = f"the worker said something unreadable: {error}"
        finally:
            _kill(process)
            code = process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        with self._lock:
            self._wait, self._busy = None, False
            if self._cancelled:
                problem = CANCELLED
            _end(self._status, "" if done else problem or f"the worker process ended with status {code} and no result")
            self._remember()
            self._store.remove_unfinished()
            if job.report is not None:
                remove_unfinished(job.report.parent)

    def _decide(self, outcome: Outcome) -> None:
        with self._lock:
            self._status.state = "accepted" if outcome.verdict.accepted else "rejected"
            self._status.message = "; ".join(outcome.verdict.reasons)
            self._status.outcome = outcome
            self._remember()

    def _check_idle(self) -> None:
        if self._busy:
            raise ServiceError(f"busy: job {self._status.job} is in stage {self._status.stage}; cancel it or wait")

    def _take_journal(self) -> None:
        """Go on from an earlier service's last job, if its journal was not ours until now and is free."""
        found = None if self._journal is None else self._journal.take()
        if found is not None:
            self._status = found

    def _remember(self) -> None:
        if self._journal is not None:
            self._journal.write(self._status)

    def _update(self, stage: str, progress: float) -> None:
        with self._lock:
            self._status.stage = stage
            self._status.progress = max(self._status.progress, progress)


class _Journal:
    """Keeps the last job's status on disk; one service at a time has it, until it ends.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = contextlib.ExitStack()
        self._ours = False

    def take(self) -> JobStatus | None:
        """Return what an earlier service's last job came to; None if the journal was ours before, or is another's."""
        if self._ours:
            return None
        try:
            self._held.enter_context(held_file(self._path.with_suffix(".lock")))
        except BlockingIOError:
            return None
        except OSError as error:  # as on a full disk; without a journal, too, there is work to do
            _log.warning("jobs will not be known to the next service: %s", error)
            return None
        self._ours = True
        return self._read()

    def write(self, status: JobStatus) -> None:
        """Replace what is kept, if the journal is ours."""
        if not self._ours:
            return
        try:
            write_atomically(self._path, status.model_dump_json(indent=1).encode())
        except OSError as error:  # as on a full disk; the job goes on
            _log.warning("job %d will not be known to the next service: %s", status.job, error)

    def close(self) -> None:
        """Let another service have it."""
        self._held.close()
        self._ours = False

    def _read(self) -> JobStatus:
        """What cannot be read is as good as forgotten."""
        try:
            status = JobStatus.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return JobStatus()
        except ValidationError:
            return JobStatus(message=f"{self._path} is not a job's status; what was done before is forgotten")
        if not status.finished:
            _end(status, "the pruning service ended during this job")
        return status


def _end(status: JobStatus, problem: str) -> None:
    """Say how a job ended; `problem` is empty if it was done to its end."""
    if status.outcome is None:
        status.state, status.message = "cancelled" if problem == CANCELLED else "failed", problem
        return
    status.progress = 1.0
    if problem:
        status.outcome.report, status.outcome.no_report = None, problem
        status.message += f"; there is no report: {problem}"


def _kill(process: subprocess.Popen[str]) -> None:
    """End a worker with all that it started: it leads a session, and so a process group, of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
