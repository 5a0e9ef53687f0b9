from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncontrol_prune.config import Config, ConfigError
from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.plants.environments import PlantError
from nncontrol_prune.rollouts.reader import read_rollouts
from nncontrol_prune.runtime.statistics import COLUMNS
from nncontrol_prune.runtime.store import BundleStore, NotAcceptedError
from nncontrol_prune.service.pruning_service import JobStatus
from nncontrol_prune.transport.live_loop import fetch_ticks
from nncontrol_prune.transport.messages import (
    TICKS_PER_REPLY,
    Cancel,
    Deploy,
    Pause,
    Prune,
    Reset,
    Rollback,
    Stage,
    Status,
    Ticks,
)
from nncontrol_prune.transport.network import PORT_OFFSETS, Network
from nncontrol_prune.transport.plant_process import PlantProcessSettings
from nncontrol_prune.transport.process import ChildProcess, ProcessError
from nncontrol_prune.transport.requests import Client, RequestFailedError
from nncontrol_prune.transport.session import run_session
from nncontrol_prune.transport.simulation import Simulation

CONFIG = Config().override("nn_controller", controller="cartpole_swingup_sac")
QUICK: dict[str, Any] = {
    "sparsity": 0.7, "method": "uniform", "max_rows": 1000, "on_policy_rounds": 0, "variations": 0,
    "min_episodes": 20, "max_episodes": 40, "success_margin": 0.3, "return_ratio": 0.7,
    "robustness": {"enabled": False}, "attraction_starts": 0,
}  # fmt: skip
"""As little work as there can be."""


def simulation(network: Network, tmp_path: Path, config: Config = CONFIG) -> Simulation:
    return Simulation(config, network, out=tmp_path, store=BundleStore(tmp_path / "store"), bag=tmp_path / "bag")


def wait_until(condition, timeout: float = 300.0) -> Any:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def job_ended(client: Client) -> dict[str, Any] | None:
    status = client.request(Status())
    return status if status["state"] != "running" else None


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_running_loop_prunes_its_own_controller_and_swaps_it_in(network: Network, tmp_path: Path) -> None:
    with simulation(network, tmp_path) as running:
        with pytest.raises(RequestFailedError, match="nothing accepted to deploy"):
            running.pruning.request(Deploy())
        wait_until(lambda: running.plant.request(Status())["steps"] > 1100, 30)  # a swing-up, and the next one's start
        running.pruning.request(Prune(settings=QUICK))
        with pytest.raises(RequestFailedError, match="busy: job 1"):
            running.pruning.request(Prune())
        job = wait_until(lambda: job_ended(running.pruning))
        assert job["state"] == "accepted", job["message"]
        candidate = job["outcome"]["candidate"]
        running.pruning.request(Deploy())
        wait_until(lambda: running.controller.request(Status())["active"] == candidate)
        wait_until(lambda: not running.controller.request(Status())["on_probation"])
        status = running.controller.request(Status())
        assert (status["swaps"], status["faults"], status["dropped"], status["unfit_states"]) == (1, 0, 0, 0)
        wait_until(lambda: (tmp_path / "store/slots/nn_controller.json").read_text().count(candidate) == 1)
        wait_until(lambda: JobStatus.model_validate(running.pruning.request(Status())).finished)
        running.pruning.request(Prune(settings={**QUICK, "sparsity": 0.5}))
        again = wait_until(lambda: job_ended(running.pruning))
        assert again["outcome"]["verdict"]["against"] == running.dense.reference, "not against the pruned one"
        running.controller.request(Rollback())
        wait_until(lambda: running.controller.request(Status())["active"] == running.dense.reference)
        trace = running.ticks()
        assert trace.first == 0
        assert set(trace.rows[:, 0]) == {0.0, 1.0, 2.0}
        pids = list(running.processes.values())
    assert all(gone(pid) for pid in pids)
    rollouts = read_rollouts(tmp_path / "bag")
    assert rollouts.controllers == [running.dense.reference, candidate]
    assert set(rollouts.bundle) == {0, 1}
    assert rollouts.has_rewards
    assert not rollouts.warnings


def test_killed_pruning_process_leaves_the_loop_undisturbed(network: Network, tmp_path: Path) -> None:
    with simulation(network, tmp_path) as running:
        wait_until(lambda: running.plant.request(Status())["steps"] > 200, 30)
        running.pruning.request(Prune(settings={"method": "gradient", "min_episodes": 50_000, "max_episodes": 50_000}))
        wait_until(lambda: running.pruning.request(Status())["stage"] == "coefficients")
        os.kill(running.processes["pruning"], signal.SIGKILL)
        before = running.controller.request(Status())["ticks"]["ticks"]
        time.sleep(1.0)
        after = running.controller.request(Status())
        assert after["ticks"]["ticks"] > before + 50
        assert after["swaps"] == 0
        running.check_alive()
        assert running.dead() == ["pruning"]
        assert [path.name for path in (tmp_path / "store/bundles").iterdir()] == [running.dense.digest]
        assert running.revive_pruning() == "the pruning process ended; it was started again, and its job is lost"
        running.pruning.request(Prune(settings={**QUICK, "sparsity": 0.3}))
        assert wait_until(lambda: job_ended(running.pruning))["state"] == "accepted"


def test_session_goes_on_without_a_pruning_process_that_cannot_be_started_again(
    network: Network, tmp_path: Path
) -> None:
    with simulation(network, tmp_path) as running:
        shutil.rmtree(tmp_path / "logs")
        (tmp_path / "logs").touch()  # also root cannot write there
        os.kill(running.processes["pruning"], signal.SIGKILL)
        wait_until(lambda: running.dead() == ["pruning"])
        result, _ = run_session(running, duration=1.0, prune_after=None, tell=lambda *_: None)
    assert "the pruning process ended, and cannot be started again" in result.notes[0]
    assert "logs" in result.notes[0]
    assert result.ticks > 50


def test_loop_whose_log_cannot_be_written_goes_on(network: Network, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/controller.log").symlink_to("/dev/full")
    with simulation(network, tmp_path) as running:
        controller = running.processes["controller"]
        (recorder,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
        os.kill(int(recorder), signal.SIGKILL)
        wait_until(lambda: running.controller.request(Status())["problems"])
        time.sleep(0.5)  # in which it is told, to a disk that is full
        before = running.controller.request(Status())["ticks"]["ticks"]
        wait_until(lambda: running.controller.request(Status())["ticks"]["ticks"] > before)


def test_dead_plant_is_noticed(network: Network, tmp_path: Path) -> None:
    with simulation(network, tmp_path) as running:
        wait_until(lambda: running.controller.request(Status())["ticks"]["ticks"] > 0)
        os.kill(running.processes["plant"], signal.SIGKILL)
        wait_until(lambda: running.dead() == ["plant"])
        with pytest.raises(ProcessError, match=r"plant process .*plant\.log\) was killed by signal 9 \(SIGKILL\)"):
            running.check_alive()
        wait_until(lambda: running.controller.request(Status())["stale"] > 0)


def test_recorder_that_was_killed_and_a_store_that_cannot_be_written_are_told(
    network: Network, tmp_path: Path, make_cartpole_bundle
) -> None:
    other = make_cartpole_bundle(hidden=(8, 8), name="other")
    store = BundleStore(tmp_path / "store")
    store.add(other)
    with simulation(network, tmp_path, CONFIG.override("nn_controller", probation=0.1)) as running:
        wait_until((tmp_path / "store/slots/nn_controller.json").exists)
        running.controller.request(Status())  # its directory is on the disk, too, once this is answered
        (tmp_path / "store/slots").rename(tmp_path / "elsewhere")
        (tmp_path / "store/slots").touch()  # also root cannot write there
        controller = running.processes["controller"]
        (recorder,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
        os.kill(int(recorder), signal.SIGKILL)
        running.controller.request(Stage(reference=other.reference))
        problems = wait_until(lambda: told if len(told := running.controller.request(Status())["problems"]) > 1 else [])
        time.sleep(1.0)
    assert "does not know that slot nn_controller runs other@" in problems[0]
    assert problems[1] == "recording: the recorder's process was killed by signal 9 (SIGKILL)"
    log = (tmp_path / "logs/controller.log").read_text()
    assert [log.count(problem) for problem in problems] == [1, 1]
    assert "Traceback" not in log


def test_process_that_ends_before_it_is_ready_is_told(network: Network, tmp_path: Path) -> None:
    settings = PlantProcessSettings(network=network, config=CONFIG.mujoco_sim)
    child = ChildProcess("plant", "nncontrol_prune.transport.plant_process", settings, tmp_path / "plant.log")
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ProcessError, match=r"plant\.log\) was killed by signal 9 \(SIGKILL\) before it was ready"):
        child.wait_until_ready()
    child.finish_stop(0.0)


def test_process_that_is_not_ready_in_time_is_not_waited_for(network: Network, tmp_path: Path) -> None:
    settings = PlantProcessSettings(network=network, config=CONFIG.mujoco_sim)
    child = ChildProcess("plant", "nncontrol_prune.transport.plant_process", settings, tmp_path / "plant.log")
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(ProcessError, match=r"^the plant process was not ready within 0\.2 s$"):
        child.wait_until_ready(0.2)
    child.finish_stop(0.0)


def test_second_simulation_on_the_same_ports_is_refused_and_the_first_goes_on(network: Network, tmp_path: Path) -> None:
    with simulation(network, tmp_path / "first") as first:
        with pytest.raises(ProcessError, match=r"port \d+ is taken.*--port"), simulation(network, tmp_path / "second"):
            pass
        assert first.dead() == []
        assert not (tmp_path / "second" / "bag").exists()
        assert not (tmp_path / "second" / "store" / "slots").exists()
        assert first.controller.request(Status())["faults"] == 0


def test_second_simulation_with_the_same_store_is_refused_and_the_first_goes_on(
    network: Network, tmp_path: Path
) -> None:
    other = network.model_copy(update={"port": network.port + len(PORT_OFFSETS)})
    with simulation(network, tmp_path) as first:
        with pytest.raises(ProcessError, match=r"another loop has slot nn_controller .*--store"):
            Simulation(
                CONFIG, other, out=tmp_path / "second", store=first.store, bag=tmp_path / "second/bag"
            ).__enter__()
        assert first.dead() == []
        assert not (tmp_path / "second" / "bag").exists()


def test_ticks_of_a_loop_that_is_faster_than_its_requests_are_fetched() -> None:
    class Busy:
        """A loop that does ten ticks between any two requests."""

        ticks = 2 * TICKS_PER_REPLY

        def exchange(self, request: Ticks) -> tuple[dict[str, Any], bytes]:
            self.ticks += 10
            rows = min(TICKS_PER_REPLY, self.ticks - request.start)
            return {"first": request.start, "rows": rows}, np.zeros((rows, len(COLUMNS))).tobytes()

    trace = fetch_ticks(Busy())
    assert (trace.first, len(trace.rows)) == (0, 2 * TICKS_PER_REPLY + 30)


def test_pause_reset_and_cancel(network: Network, tmp_path: Path) -> None:
    with simulation(network, tmp_path) as running:
        wait_until(lambda: running.plant.request(Status())["steps"] > 20, 30)
        running.plant.request(Pause(paused=True))
        time.sleep(0.1)
        steps = running.plant.request(Status())["steps"]
        time.sleep(0.2)
        assert running.plant.request(Status())["steps"] == steps
        running.plant.request(Reset())
        running.plant.request(Pause(paused=False))
        wait_until(lambda: running.plant.request(Status())["steps"] > steps + 5)
        with pytest.raises(RequestFailedError, match="no running job"):
            running.pruning.request(Cancel())
        with pytest.raises(RequestFailedError, match=r"sparsity = 2.*less than 1"):
            running.pruning.request(Prune(settings={"sparsity": 2}))
        running.pruning.request(Prune(settings={"method": "gradient"}))
        assert running.pruning.request(Cancel()) == {"job": 1}
        assert wait_until(lambda: job_ended(running.pruning))["state"] == "cancelled"


def test_no_path_stages_a_pruned_controller_without_a_verdict(
    network: Network, tmp_path: Path, shipped_bundle: Bundle, make_cartpole_bundle
) -> None:
    pruned = make_cartpole_bundle(hidden=(8, 8), parent=shipped_bundle, name="pruned")
    store = BundleStore(tmp_path / "store")
    store.add(pruned)
    pruned.write(tmp_path / "pruned")
    for controller in (pruned.reference, str(tmp_path / "pruned")):
        with pytest.raises(NotAcceptedError, match="never validated"):
            simulation(network, tmp_path, CONFIG.override("nn_controller", controller=controller))
    with simulation(network, tmp_path) as running:
        with pytest.raises(RequestFailedError, match="never validated"):
            running.controller.request(Stage(reference=pruned.reference))
        with pytest.raises(RequestFailedError, match="nothing accepted"):
            running.pruning.request(Deploy())
        assert running.controller.request(Status())["swaps"] == 0


def test_another_rate_than_the_environments_is_refused(network: Network, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rate = 50 Hz: .* runs at 100 Hz"):
        simulation(network, tmp_path, CONFIG.override("nn_controller", rate=50.0))


def test_controller_of_another_environment_is_refused(network: Network, tmp_path: Path) -> None:
    with pytest.raises(PlantError, match="does not fit Hopper-v5"):
        simulation(network, tmp_path, CONFIG.override("mujoco_sim", env="Hopper-v5"))
