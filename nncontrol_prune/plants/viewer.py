"""A window that shows a plant: MuJoCo's own viewer, which has a thread of its own and may be closed at any time."""

from __future__ import annotations

import contextlib
import time
import warnings
from typing import Any

import gymnasium
import mujoco

from nncontrol_prune.plants.environments import PlantError

FRAME = 1 / 60
"""Seconds between pictures."""
PATIENCE = 2.0
"""Seconds that the window has for closing."""
CAMERA = "track"
"""The camera that is looked through at first, where the model has it: gymnasium's models do."""


class Viewer:
    """Shows an environment.

    Args:
        environment: A MuJoCo environment that does not draw itself.

    Raises:
        PlantError: No window can be opened.
    """

    def __init__(self, environment: gymnasium.Env[Any, Any]) -> None:
        import mujoco.viewer

        check_display()
        base: Any = environment.unwrapped
        self._handle = mujoco.viewer.launch_passive(base.model, base.data, show_left_ui=False, show_right_ui=False)
        camera = mujoco.mj_name2id(base.model, mujoco.mjtObj.mjOBJ_CAMERA, CAMERA)
        if camera >= 0:
            with self._handle.lock():
                self._handle.cam.type, self._handle.cam.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        self._due = 0.0

    def show(self) -> None:
        """Show the state that the environment is in now, if a new picture is due and the window is open."""
        now = time.perf_counter()
        if now >= self._due and self._handle.is_running():
            self._due = now + FRAME
            self._handle.sync()

    def close(self) -> None:
        """Close the window, and wait until its thread is done with it: a process that ends before that crashes."""
        self._handle.close()
        deadline = time.monotonic() + PATIENCE
        with contextlib.suppress(mujoco.UnexpectedError):  # how the handle says that the window is gone
            while self._handle.m is not None and time.monotonic() < deadline:
                time.sleep(FRAME)


def check_display() -> None:
    """Check that a window can be opened: MuJoCo's viewer ends the process, or waits forever, where it cannot.

    Raises:
        PlantError: It cannot.
    """
    import glfw

    window = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the last one says it all, and is told below
        if glfw.init():
            glfw.window_hint(glfw.VISIBLE, False)
            window = glfw.create_window(64, 64, "nncontrol_prune", None, None)
            glfw.default_window_hints()
    if window:
        glfw.destroy_window(window)
        return
    reason: Any = glfw.get_error()[1]  # bytes, whatever glfw's annotations say
    raise PlantError(f"no window can be opened ({reason.decode()}); without a display, leave headless at true")
