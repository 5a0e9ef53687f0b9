"""How well the control loop keeps its deadlines beside a pruning job, against a bare sleep loop in interleaved runs.

    python benchmarks/loop_timing.py                 # 100 Hz and 500 Hz, 60 s each, a few minutes in all
    python benchmarks/loop_timing.py --seconds 10    # a quick look
    python benchmarks/loop_timing.py --realtime 50   # both loops under SCHED_FIFO, as nn_controller runs by default

Both loops run in a process of their own, in turns of a few seconds, while pruning jobs keep another process busy. The
control loop is the real one: the shipped actor in a slot, a recorder, statistics, and a swap in the middle of every
turn; only the plant is replaced by an array of observations, since no plant steps at 500 Hz here. Machines are shared:
compare the two columns, not the figures with those of another day.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.bundle import load_bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.resources import shipped_controllers
from nncontrol_prune.rollouts.recorder import Recorder
from nncontrol_prune.runtime.loop import ControlLoop
from nncontrol_prune.runtime.scheduling import run_in_real_time
from nncontrol_prune.runtime.slot import ControllerSlot
from nncontrol_prune.runtime.statistics import COMPUTE, LATENESS, TickStatistics
from nncontrol_prune.runtime.store import BundleStore

TURN = 5.0
CONTROLLER = "cartpole_swingup_sac"


class Observations:
    """A plant that always has a new observation."""

    def __init__(self, observations: NDArray[np.float32]) -> None:
        self._observations = observations.astype(np.float64)
        self._count = 0

    def wait(self, timeout: float) -> bool:
        return True

    def read(self, observation: NDArray[np.float64]) -> float:
        self._count += 1
        observation[:] = self._observations[self._count % len(self._observations)]
        return float(self._count)

    def write(self, stamp: float, action: NDArray[np.float64]) -> None:
        pass

    def after_tick(self) -> None:
        pass


def bare_loop(period: float, seconds: float, priority: int) -> TickStatistics:
    """Sleep until absolute deadlines and do nothing."""
    run_in_real_time(priority)
    statistics = TickStatistics()
    deadline = time.perf_counter() + period
    end = deadline + seconds
    before = float("nan")
    while deadline < end:
        time.sleep(max(0.0, deadline - time.perf_counter()))
        start = time.perf_counter()
        statistics.record(0, start - before, time.perf_counter() - start, start - deadline, 0.0)
        before = start
        deadline += period
        late = time.perf_counter() - deadline
        if late > period:
            missed = int(late / period)
            statistics.skipped += missed
            deadline += missed * period
    return statistics


def control_loop(period: float, seconds: float, priority: int, twin: Path) -> tuple[TickStatistics, list[float]]:
    """Run the real loop, with a swap to a twin in the middle; give its ticks.

    Also given, for each swap, are the seconds from the deadline of its tick to the command.

    """
    dense = load_bundle(shipped_controllers()[CONTROLLER])
    with tempfile.TemporaryDirectory() as directory:
        store = BundleStore(Path(directory) / "store")
        slot = ControllerSlot(store, store.add(dense))
        other = load_bundle(twin)
        store.add(other)
        recorder = Recorder(
            Path(directory) / "bag", controller="nn_controller", observation_size=5, action_size=1, rate=1 / period
        )
        loop = ControlLoop(
            slot, Observations(dense.reference_observations), recorder, period=period, realtime_priority=priority
        )
        threading.Timer(seconds / 2, lambda: slot.stage(other.reference)).start()
        threading.Timer(seconds, loop.stop).start()
        loop.run()
        recorder.close()
    rows = loop.statistics.rows()
    return loop.statistics, [float(rows[event.tick, COMPUTE] + rows[event.tick, LATENESS]) for event in slot.events]


def child(kind: str, rate: float, seconds: float, priority: int, twin: Path) -> None:
    """Run one turn and print its figures."""
    swaps: list[float] = []
    if kind == "bare":
        statistics = bare_loop(1 / rate, seconds, priority)
    else:
        statistics, swaps = control_loop(1 / rate, seconds, priority, twin)
    rows = statistics.rows()
    figures = {
        "ticks": statistics.ticks,
        "skipped": statistics.skipped,
        "compute": rows[:, 2].tolist(),
        "lateness": rows[:, 3].tolist(),
        "swaps": swaps,
    }
    print(json.dumps(figures))


def turn(kind: str, rate: float, seconds: float, priority: int, twin: Path) -> dict[str, Any]:
    """Run one turn in a process of its own."""
    command = [sys.executable, __file__, "--child", kind, "--rate", str(rate), "--seconds", str(seconds)]
    command += ["--realtime", str(priority)]
    done = subprocess.run([*command, "--twin", str(twin)], capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


class PruningJobs:
    """Keeps pruning, one job after the other, in a process as the service would run it."""

    def __init__(self, bag: Path, directory: Path) -> None:
        self._bag, self._directory = bag, directory
        self._stop = threading.Event()
        self.jobs = 0

    def __enter__(self) -> PruningJobs:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        from nncontrol_prune.pruning.settings import PruningSettings
        from nncontrol_prune.service.jobs import Job
        from nncontrol_prune.service.pruning_service import PruningService
        from nncontrol_prune.validation.settings import GateSettings

        store = BundleStore(self._directory / "jobs")
        service = PruningService(store)
        job = Job(
            store=store.root,
            controller=store.add(load_bundle(shipped_controllers()[CONTROLLER])),
            environment=CARTPOLE,
            gate=GateSettings(),
            pruning=PruningSettings(),
            rollouts=(self._bag,),
        )
        while not self._stop.is_set():
            service.start(job)
            self.jobs += 1
            while not (service.status.finished or self._stop.is_set()):  # a decided job may still write its report
                time.sleep(0.1)
        service.close()


def report(rate: float, turns: dict[str, list[dict[str, Any]]]) -> None:
    """Print one rate's figures, bare against ours."""
    print(f"\n{rate:g} Hz{'':22}{'bare loop':>12}{'control loop':>14}")
    for label, figure in (
        ("ticks", lambda run: sum(t["ticks"] for t in run)),
        ("skipped", lambda run: sum(t["skipped"] for t in run)),
    ):
        print(f"  {label:26}" + "".join(f"{figure(turns[kind]):>13,}" for kind in ("bare", "loop")))
    for key in ("lateness", "compute"):
        for quantile in (50, 99, 99.9):
            values = [1e6 * np.percentile(np.concatenate([t[key] for t in turns[kind]]), quantile) for kind in turns]
            print(f"  {f'{key} p{quantile:g} [µs]':26}" + "".join(f"{value:>13.0f}" for value in values))
    swaps = [1e6 * swap for t in turns["loop"] for swap in t["swaps"]]
    print(
        f"  swapping ticks, deadline to command [µs]: {[round(swap) for swap in swaps]}, median {np.median(swaps):.0f}"
    )


def main() -> None:
    """Run the benchmark, or one turn of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each loop at each rate")
    parser.add_argument("--rate", type=float, nargs="*", default=[100.0, 500.0])
    parser.add_argument("--realtime", type=int, default=0, metavar="PRIORITY", help="SCHED_FIFO priority of both loops")
    parser.add_argument("--child", choices=("bare", "loop"), help=argparse.SUPPRESS)
    parser.add_argument("--twin", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.rate[0], arguments.seconds, arguments.realtime, arguments.twin)
        return
    from nncontrol_prune.service.rollouts import record_episodes

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        dense = load_bundle(shipped_controllers()[CONTROLLER])
        record_episodes(dense, CARTPOLE, range(5), directory / "bag", lambda _: None)
        twin = directory / "twin"
        make_twin(twin)
        with PruningJobs(directory / "bag", directory) as jobs:
            for rate in arguments.rate:
                turns: dict[str, list[dict[str, Any]]] = {"bare": [], "loop": []}
                for _ in range(max(1, round(arguments.seconds / TURN))):
                    for kind, runs in turns.items():
                        runs.append(turn(kind, rate, min(TURN, arguments.seconds), arguments.realtime, twin))
                report(rate, turns)
        print(f"\n{jobs.jobs} pruning jobs were started beside the loops")


def make_twin(path: Path) -> None:
    """Write a bundle that fits the same loop: the shipped controller under another name."""
    from nncontrol_prune.controllers.bundle import make_bundle

    dense = load_bundle(shipped_controllers()[CONTROLLER])
    manifest = dense.manifest
    make_bundle(
        dense.module(),
        name="twin",
        observation=manifest.observation,
        action=manifest.action,
        rate=manifest.rate,
        reference_observations=dense.reference_observations,
    ).write(path)


if __name__ == "__main__":
    main()
