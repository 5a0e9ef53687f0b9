from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import glfw
import pytest

from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.environments import PlantError
from nncontrol_prune.plants.live import LivePlant
from tests.plants.test_live import Wire


def test_missing_display_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    glfw.terminate()
    with pytest.raises(PlantError, match=r"no window can be opened \(.*\); without a display, leave headless at true"):
        LivePlant(CARTPOLE, viewer=True)


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bytes]]:
    """Return a function that gives what a display of this test's own shows."""
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed")
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-fbdir", str(tmp_path), "-screen", "0", "640x480x24"]
    display = subprocess.Popen([*command, "-nolisten", "tcp"], pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as number:
        monkeypatch.setenv("DISPLAY", f":{number.readline().strip()}")
    yield (tmp_path / "Xvfb_screen0").read_bytes
    display.terminate()
    display.wait()


def show(connection: Connection) -> None:
    """Run a plant with its window; close the window, and end, when told to, and tell the steps it has done."""
    plant = LivePlant(CARTPOLE, viewer=True)
    thread = threading.Thread(target=plant.run, args=(Wire(),))
    thread.start()
    while (wanted := connection.recv()) != "end":
        if wanted == "close":
            plant._viewer._handle.close()
        connection.send(plant.steps)
    plant.stop()
    thread.join()


@pytest.mark.parametrize("closed", [True, False])
def test_window_follows_the_plant_and_may_be_closed_before_it_ends(
    picture: Callable[[], bytes], *, closed: bool
) -> None:
    empty = picture()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=show, args=(theirs,))
    process.start()

    def wait_for(change: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 60
        while not change():
            assert time.monotonic() < deadline, what
            time.sleep(0.05)

    def steps(order: str = "tell") -> int:
        ours.send(order)
        assert ours.poll(60)
        return int(ours.recv())

    try:
        wait_for(lambda: steps() > 10, "the plant runs")
        wait_for(lambda: picture() != empty, "there is a window")
        first = picture()
        wait_for(lambda: picture() != first, "it follows the plant")
        if closed:
            done = steps("close")
            wait_for(lambda: picture() == empty, "the window is closed")
            wait_for(lambda: steps() > done + 50, "the plant goes on")
        ours.send("end")
        process.join(30)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
