from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from nncontrol_prune.config import Config, ConfigError
from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.rollouts.reader import read_rollouts
from nncontrol_prune.runtime.statistics import COLUMNS
from nncontrol_prune.runtime.store import BundleStore, NotAcceptedError
from nncontrol_prune.transport.live_loop import LiveLoop, fetch_ticks, watch
from nncontrol_prune.transport.messages import TICKS_PER_REPLY, Status, Ticks
from nncontrol_prune.transport.network import Network
from nncontrol_prune.transport.process import ProcessError
from nncontrol_prune.transport.requests import Client
from tests.documentation import DOCS, block


@contextmanager
def plant_of_the_documentation(port: int) -> Iterator[None]:
    """Run the program in docs/robot.md, at other ports."""
    program = block(DOCS / "robot.md", "tests/transport/test_live_loop.py runs this block", "python")
    process = subprocess.Popen(
        [sys.executable, "-c", program.replace(":5550", f":{port}").replace(":5551", f":{port + 1}")]
    )
    try:
        yield
        assert process.poll() is None, "it has ended by itself"
    finally:
        process.kill()
        process.wait()


def live_loop(network: Network, tmp_path: Path, bundle: Bundle, **given: Any) -> LiveLoop:
    store = BundleStore(tmp_path / "store")
    given = {"bag": tmp_path / "bag", "pruning": False, **given}
    return LiveLoop(given.pop("config", Config()), network, bundle, out=tmp_path, store=store, **given)


def test_run_controls_and_records_the_plant_of_the_documentation_until_ctrl_c(tmp_path: Path, port: int) -> None:
    command = [sys.executable, "-m", "nncontrol_prune.cli", "run", "cartpole_swingup_sac", "--json"]
    with plant_of_the_documentation(port):
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path), "--port", str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        try:
            while not (tmp_path / "bags").exists() or not any((tmp_path / "bags").iterdir()):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.1)
            time.sleep(3.0)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    status = json.loads(output)
    assert status["ticks"]["ticks"] > 100
    assert (status["unfit_states"], status["unsound"], status["dropped"], status["notes"]) == (0, 0, 0, [])
    rollouts = read_rollouts(Path(status["bag"]))
    assert len(rollouts.stamp) > 50
    assert not rollouts.has_rewards


def test_a_plant_that_says_nothing_or_something_else_is_told(
    network: Network, tmp_path: Path, shipped_bundle: Bundle
) -> None:
    ending, told = threading.Event(), list[str]()
    context = zmq.Context()
    states = network.bind(context, "state", zmq.PUB)

    def tell(what: str) -> None:
        told.append(what)
        states.send(bytes(8))
        if "do not fit" in what:
            ending.set()

    with live_loop(network, tmp_path, shipped_bundle) as loop:
        status, trace, notes = watch(loop, duration=60.0, tell=tell, ending=ending)
    context.destroy()
    assert told[0].endswith("waiting for the plant's states")
    assert told[-1].endswith("the plant's states do not fit: they have another size than the controller takes")
    assert status["unfit_states"] > 0
    ticks = status["ticks"]["ticks"]  # the loop does some more while the rest is asked for
    assert status["stale"] >= ticks
    assert (len(trace.rows) >= ticks, notes) == (True, [])


def test_loop_that_does_not_answer_for_a_while_is_waited_for(
    network: Network, tmp_path: Path, shipped_bundle: Bundle
) -> None:
    ending, told = threading.Event(), list[str]()
    with live_loop(network, tmp_path, shipped_bundle) as loop:
        loop.controller = Client(network, "controller", timeout=0.3)

        def tell(what: str) -> None:
            told.append(what)
            os.kill(loop.processes["controller"], signal.SIGCONT if "no answer" in what else signal.SIGSTOP)
            if "no answer" in what:
                ending.set()

        status, _, _ = watch(loop, duration=60.0, tell=tell, ending=ending)
        loop.controller.close()
    assert "though somebody listens" in told[1]
    assert status["active"] == shipped_bundle.reference


def test_state_beyond_the_limit_of_the_configuration_is_answered_by_the_safe_command(
    network: Network, tmp_path: Path, shipped_bundle: Bundle
) -> None:
    context = zmq.Context()
    states, commands = network.bind(context, "state", zmq.PUB), network.bind(context, "command", zmq.SUB)
    commands.setsockopt(zmq.SUBSCRIBE, b"")
    config = Config().override("nn_controller", observation_limit=10.0, safe_command=(2.5,))
    with live_loop(network, tmp_path, shipped_bundle, config=config) as loop:
        stamp = 0.0
        while not commands.poll(20):
            stamp += 0.01
            states.send(np.array([stamp, *[np.nan] * 6, 0.0, -1.0, 0.0, 0.0, 11.0]).tobytes())
        _, action = np.frombuffer(commands.recv())
        status = loop.controller.request(Status())
    context.destroy()
    assert action == 2.5
    assert status["unsound"] > 0


def test_pruning_service_that_dies_is_started_again_and_the_loop_goes_on(
    network: Network, tmp_path: Path, shipped_bundle: Bundle
) -> None:
    with live_loop(network, tmp_path, shipped_bundle, pruning=True) as loop:
        os.kill(loop.processes["pruning"], signal.SIGKILL)
        while "pruning" not in loop.dead():
            time.sleep(0.01)
        _, _, notes = watch(loop, duration=0.0, tell=lambda _: None, ending=threading.Event())
        assert notes == ["the pruning process ended; it was started again, and its job is lost"]
        assert loop.pruning.request(Status())["state"] == "idle"


def test_pruning_service_that_cannot_be_started_again_is_told_and_the_loop_goes_on(
    network: Network, tmp_path: Path, shipped_bundle: Bundle
) -> None:
    with live_loop(network, tmp_path, shipped_bundle, pruning=True) as loop, zmq.Context() as context:
        os.kill(loop.processes["pruning"], signal.SIGKILL)
        while "pruning" not in loop.dead():
            time.sleep(0.01)
        with network.bind(context, "pruning", zmq.REP):
            _, _, notes = watch(loop, duration=0.0, tell=lambda _: None, ending=threading.Event())
        (note,) = notes
        assert "the pruning process ended, and cannot be started again: pruning: port" in note
        assert (list(loop.processes), loop.dead()) == (["controller"], [])
        _, _, notes = watch(loop, duration=0.0, tell=lambda _: None, ending=threading.Event())
        assert notes == []


def test_recording_that_ended_is_told_and_the_loop_goes_on(
    network: Network, tmp_path: Path, shipped_bundle: Bundle
) -> None:
    with live_loop(network, tmp_path, shipped_bundle) as loop:
        controller = loop.processes["controller"]
        (recorder,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
        os.kill(int(recorder), signal.SIGKILL)
        while not loop.controller.request(Status())["problems"]:
            time.sleep(0.05)
        _, _, notes = watch(loop, duration=0.0, tell=lambda _: None, ending=threading.Event())
        log = tmp_path / "logs" / "controller.log"
        while "recording" not in log.read_text():  # as it is for who does not ask, and now
            time.sleep(0.05)
    assert notes == ["recording: the recorder's process was killed by signal 9 (SIGKILL)"]
    assert log.read_text().count(notes[0]) == 1


def test_controller_process_that_dies_ends_it(network: Network, tmp_path: Path, shipped_bundle: Bundle) -> None:
    with live_loop(network, tmp_path, shipped_bundle) as loop:
        os.kill(loop.processes["controller"], signal.SIGKILL)
        with pytest.raises(ProcessError, match=r"the controller process .* was killed by signal 9"):
            watch(loop, duration=60.0, tell=lambda _: time.sleep(0.1), ending=threading.Event())


def test_ticks_that_are_fetched_follow_one_another_though_the_loop_has_gone_round_meanwhile() -> None:
    class Forgetful:
        """A loop that keeps no more than ten ticks once it was asked."""

        def exchange(self, request: Ticks) -> tuple[dict[str, Any], bytes]:
            first, rows = (0, TICKS_PER_REPLY) if request.start == 0 else (10 * TICKS_PER_REPLY, 10)
            return {"first": first, "rows": rows}, np.full((rows, len(COLUMNS)), float(first)).tobytes()

    trace = fetch_ticks(Forgetful())
    assert (trace.first, len(trace.rows)) == (10 * TICKS_PER_REPLY, 10)
    assert np.unique(trace.rows).tolist() == [trace.first]


def test_nothing_is_left_of_a_loop_that_has_ended(network: Network, tmp_path: Path, shipped_bundle: Bundle) -> None:
    with live_loop(network, tmp_path, shipped_bundle) as loop:
        controller = loop.processes["controller"]
        loop.controller.request(Status())
    assert not Path(f"/proc/{controller}").exists()
    assert loop.processes == {}
    assert loop.controller._context.closed
    assert loop.pruning._context.closed


def test_process_that_cannot_start_leaves_none_of_the_others(
    network: Network, tmp_path: Path, shipped_bundle: Bundle
) -> None:
    loop = live_loop(network, tmp_path, shipped_bundle, pruning=True)
    with zmq.Context() as context, network.bind(context, "pruning", zmq.REP):
        with pytest.raises(ProcessError, match="pruning: port"), loop:
            pass
        assert loop.processes == {}


def test_plant_of_ones_own_is_in_real_time_whatever_is_simulated(
    network: Network, tmp_path: Path, shipped_bundle: Bundle
) -> None:
    slow = Config().override("mujoco_sim", real_time_factor=0.5)
    settings = live_loop(network, tmp_path, shipped_bundle, config=slow)._settings["controller"]
    assert settings.model_dump()["real_time_factor"] == 1.0


def test_what_may_not_run_is_refused_before_a_process_starts(
    network: Network, tmp_path: Path, shipped_bundle: Bundle, make_cartpole_bundle: Any
) -> None:
    pruned = make_cartpole_bundle(parent=shipped_bundle, name="pruned")
    with pytest.raises(NotAcceptedError):
        live_loop(network, tmp_path, pruned)
    slower = Config().override("nn_controller", rate=50.0)
    with pytest.raises(ConfigError, match="rate = 50 Hz: controller cartpole_swingup_sac runs at 100 Hz"):
        live_loop(network, tmp_path, shipped_bundle, config=slower)
