from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import Reader

from nncontrol_prune.rollouts.errors import RolloutError
from nncontrol_prune.rollouts.reader import read_rollouts
from nncontrol_prune.rollouts.recorder import Recorder

MakeRecorder = Callable[..., Recorder]
FileSizeLimit = Callable[[int], AbstractContextManager[None]]
DENSE = f"dense@{'a' * 64}"


@pytest.fixture
def make_recorder(tmp_path: Path) -> Iterator[MakeRecorder]:
    """Return a function that starts a recorder of `tmp_path / "bag"`; however the test ends, its process does too."""
    recorders: list[Recorder] = []

    def make(path: Path = tmp_path / "bag", *, observation_size: int = 5, rate: float = 100.0) -> Recorder:
        recorders.append(Recorder(path, observation_size=observation_size, action_size=1, rate=rate))
        return recorders[-1]

    yield make
    for recorder in recorders:
        recorder._process.kill()
        recorder.close()


def record(recorder: Recorder, rows: int, first: int = 0) -> int:
    """Record ticks; return how many messages were accepted."""
    accepted = 0
    for row in range(first, first + rows):
        accepted += recorder.transition(row * 0.01, 0, np.full(recorder._observation_size, row), [-row])
        accepted += recorder.step(row * 0.01, 0, row, float(row), False, False)
    return accepted


def wait_until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_what_is_recorded_is_read(make_recorder: MakeRecorder, tmp_path: Path) -> None:
    recorder = make_recorder()
    before = time.time_ns()
    assert recorder.bundle(0, DENSE)
    assert record(recorder, 200) == 400
    summary = recorder.close()
    assert (summary.written, summary.dropped, summary.reason) == (401, 0, None)
    assert (recorder.accepted, recorder.written, recorder.dropped) == (401, 401, 0)
    assert summary.directory == tmp_path / "bag"
    rollouts = read_rollouts(tmp_path / "bag")
    np.testing.assert_array_equal(rollouts.observation, np.arange(200.0)[:, None] * np.ones(5))
    np.testing.assert_array_equal(rollouts.action[:, 0], -np.arange(200))
    np.testing.assert_array_equal(rollouts.reward, np.arange(200))
    assert rollouts.controllers == [DENSE]
    assert rollouts.warnings == []
    with Reader(tmp_path / "bag") as reader:
        assert reader.message_count == 401
        assert before < reader.start_time < reader.end_time < time.time_ns()


def test_closing_twice_gives_the_same_summary(make_recorder: MakeRecorder) -> None:
    with make_recorder() as recorder:
        record(recorder, 3)
        assert recorder.close() == recorder.close()


def test_after_closing_everything_is_dropped(make_recorder: MakeRecorder) -> None:
    recorder = make_recorder()
    recorder.close()
    assert record(recorder, 2) == 0
    assert not recorder.bundle(0, DENSE)


def test_loop_leaves_no_thread_and_no_process_behind(make_recorder: MakeRecorder) -> None:
    threads = len(list(Path("/proc/self/task").iterdir()))
    recorder = make_recorder()
    assert len(list(Path("/proc/self/task").iterdir())) == threads
    process = recorder._process.pid
    recorder.close()
    assert not Path(f"/proc/{process}").exists()


def test_recorder_stands_back(make_recorder: MakeRecorder) -> None:
    with make_recorder() as recorder:
        process = recorder._process.pid
        assert os.getpriority(os.PRIO_PROCESS, process) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5)
        assert os.getsid(process) == process  # Ctrl-C in the loop's terminal does not reach it


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_recorder_outlives_what_ends_the_loop(make_recorder: MakeRecorder, ending: signal.Signals) -> None:
    recorder = make_recorder()
    recorder._process.send_signal(ending)
    record(recorder, 5)
    assert recorder.close().written == 10


def test_what_cannot_be_recorded_is_dropped(make_recorder: MakeRecorder) -> None:
    wrong = [([1.0], [1.0]), (1.0, [1.0]), (np.zeros(5), "x"), (None, None), (np.zeros((5, 1)), [0])]
    with make_recorder() as recorder:
        for observation, action in wrong:
            recorder._reason = None  # it is that of the first drop
            assert not recorder.transition(0.0, 0, observation, action)
            assert "a transition could not be recorded" in (recorder.reason or "")
            assert not recorder.step(None, 0, 0, 0.0, False, False)
            assert not recorder.bundle(0, "x" * 10_000)
            assert "a transition could not be recorded" in (recorder.reason or "")
        summary = recorder.close()
    assert summary.dropped_by_loop == 3 * len(wrong)
    assert summary.reason is not None
    assert "a transition could not be recorded" in summary.reason


def test_step_whose_numbers_are_none_is_dropped(make_recorder: MakeRecorder) -> None:
    recorder = make_recorder()
    for dropped, (episode, step) in enumerate([(math.nan, 1.0), (0.0, math.inf), (-math.inf, 1.0)], 1):
        recorder._reason = None  # it is that of the first drop
        assert not recorder.step(0.1, episode, step, 1.0, False, False)
        assert recorder.dropped == dropped
        assert "a step could not be recorded" in (recorder.reason or "")
    assert recorder.step(0.2, 0.0, 1.0, math.nan, False, False), "a reward that nobody knows is NaN"
    assert "a step could not be recorded" in (recorder.close().reason or "")


def test_single_precision_is_recorded(make_recorder: MakeRecorder, tmp_path: Path) -> None:
    with make_recorder() as recorder:
        assert recorder.transition(0.0, 0, np.ones(5, np.float32), np.ones(1, np.float32))
    assert read_rollouts(tmp_path / "bag").observation.tolist() == [[1.0] * 5]


# What the loop must not notice


def test_full_queue_drops_and_never_blocks(make_recorder: MakeRecorder) -> None:
    recorder = make_recorder()
    recorder._process.send_signal(signal.SIGSTOP)
    accepted, calls, lasted = 0, 0, []
    while recorder.dropped < 1000:
        start = time.perf_counter()
        accepted += recorder.transition(calls * 0.01, 0, np.zeros(5), [0])
        lasted.append(time.perf_counter() - start)
        calls += 1
    assert accepted > 100
    assert calls == recorder.accepted + recorder.dropped
    recorder._process.send_signal(signal.SIGCONT)
    summary = recorder.close()
    assert np.percentile(lasted, 99) < 0.003  # not the longest: a machine that tests run on may pause any process
    assert summary.dropped_by_loop == 1000
    assert summary.written + summary.dropped == calls
    assert summary.reason is None


def test_messages_larger_than_the_queue_are_dropped(make_recorder: MakeRecorder) -> None:
    with make_recorder(observation_size=2_000_000) as recorder:
        assert not recorder.transition(0.0, 0, np.zeros(2_000_000), [0])
        assert "Message too long" in str(recorder.close().reason)


def test_full_disk_drops_and_is_reported(
    make_recorder: MakeRecorder, tmp_path: Path, file_size_limit: FileSizeLimit
) -> None:
    with file_size_limit(700_000):
        recorder = make_recorder(observation_size=100)
    noise = np.random.default_rng(0)
    calls = 0
    while recorder.transition(calls * 0.01, 0, noise.normal(size=100), [0]):
        calls += 1
        assert calls < 20_000, "it does not notice"
        time.sleep(0.001)
    for _ in range(100):
        assert not recorder.transition(0.0, 0, np.zeros(100), [0])
    assert recorder.dropped >= 101
    wait_until(lambda: "File too large" in (recorder.reason or ""))
    assert "cannot write the bag" in str(recorder.failure)
    summary = recorder.close()
    assert summary.reason is not None
    assert "cannot write the bag" in summary.reason
    assert "File too large" in summary.reason
    assert summary.written + summary.dropped == calls + 101
    assert 0 < summary.written == len(read_rollouts(tmp_path / "bag"))


def test_existing_directory_is_refused(make_recorder: MakeRecorder, tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match=f"{tmp_path} exists already"):
        make_recorder(tmp_path)


def test_unwritable_place_is_refused(make_recorder: MakeRecorder, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RolloutError, match="cannot write the bag"):
        make_recorder(tmp_path / "file" / "bag")


# Killing


def test_killed_recorder_costs_the_last_second_at_most(make_recorder: MakeRecorder, tmp_path: Path) -> None:
    recorder = make_recorder()
    recorder.bundle(0, DENSE)
    start = time.monotonic()
    rows = 0
    while time.monotonic() - start < 1.5:
        record(recorder, 1, rows)
        rows += 1
        time.sleep(0.01)
    in_time = [rows - 100, rows]
    assert recorder.failure is None
    recorder._process.kill()
    recorder._process.wait()
    assert recorder.failure == "the recorder's process was killed by signal 9 (SIGKILL)"
    assert not recorder.transition(0.0, 0, np.zeros(5), [0])
    assert record(recorder, 50) == 0
    summary = recorder.close()
    assert summary.reason == "the recorder's process was killed by signal 9 (SIGKILL)"
    assert summary.dropped_by_loop == 101
    assert summary.written + summary.dropped_by_recorder == 1 + 2 * rows
    rollouts = read_rollouts(tmp_path / "bag")
    assert in_time[0] <= len(rollouts) <= in_time[1]
    assert "was cut short" in rollouts.warnings[0]
    assert abs(summary.written - (1 + 2 * len(rollouts))) <= 1


LOOP = """
import sys, time
from pathlib import Path
from nncontrol_prune.rollouts.recorder import Recorder
recorder = Recorder(Path(sys.argv[1]), observation_size=5, action_size=1, rate=100.0)
recorder.bundle(0, "dense@01234567")
for row in range(150):
    recorder.transition(row * 0.01, 0, [row] * 5, [-row])
print(recorder._process.pid, flush=True)
time.sleep(60)
"""


def test_killed_recorder_is_told_while_the_loop_runs(make_recorder: MakeRecorder) -> None:
    recorder = make_recorder()
    assert recorder.reason is None
    recorder._process.kill()
    wait_until(lambda: recorder.reason is not None)
    assert recorder.reason == "the recorder's process was killed by signal 9 (SIGKILL)"
    record(recorder, 1)
    assert recorder.close().reason == recorder.reason


def test_killed_recorder_is_told_in_the_end_though_nobody_asked_before(make_recorder: MakeRecorder) -> None:
    recorder = make_recorder()
    recorder._process.kill()
    assert recorder.close().reason == "the recorder's process was killed by signal 9 (SIGKILL)"


def test_killed_loop_leaves_a_complete_bag(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LOOP, str(tmp_path / "bag")], stdout=subprocess.PIPE, text=True
    ) as loop:
        assert loop.stdout is not None
        process = int(loop.stdout.readline())
        loop.kill()
    wait_until(lambda: not Path(f"/proc/{process}").exists() or "Z" in Path(f"/proc/{process}/stat").read_text())
    rollouts = read_rollouts(tmp_path / "bag")
    np.testing.assert_array_equal(rollouts.action[:, 0], -np.arange(150))
    assert rollouts.warnings == []
    with Reader(tmp_path / "bag") as reader:
        assert reader.message_count == 151


def test_recorder_that_does_not_end_is_killed(make_recorder: MakeRecorder) -> None:
    recorder = make_recorder()
    recorder._process.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    summary = recorder.close(timeout=0.3)
    assert time.monotonic() - start < 2.0
    assert summary.reason is not None
    assert "was killed: it had not completed the bag after 0.3 s" in summary.reason
    assert recorder.reason == summary.reason


def test_recorder_process_imports_nothing_heavy() -> None:
    command = "import sys, nncontrol_prune.rollouts.recorder_process; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "mujoco", "gymnasium", "zmq", "onnxruntime", "pydantic", "scipy"} & set(modules)


def test_loop_imports_no_bag_library() -> None:
    command = "import sys, nncontrol_prune.rollouts.recorder; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "mcap", "rosbags"} & set(modules)
