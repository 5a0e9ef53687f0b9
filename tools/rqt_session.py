"""Drive the real rqt through the session of docs/ros2.md, and take the pictures in docs/images.

    source /opt/ros/jazzy/setup.bash; ros2 launch nncontrol_prune sim.launch.py auto_deploy:=true &
    xvfb-run -a -s "-screen 0 1500x950x24" python tools/rqt_session.py docs/images

rqt runs in this process; a timer of its event loop presses the buttons that a person would press.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from python_qt_binding.QtCore import Qt, QTimer
from python_qt_binding.QtWidgets import QApplication, QDockWidget, QMainWindow, QPushButton
from rqt_gui.main import Main

PERSPECTIVE = Path(__file__).resolve().parents[1] / "config" / "nncontrol_prune.perspective"
SIZE = (1900, 950)
WIDTHS = [640, 820, 440]
STEPS = {"open": 20, "call": 22, "called": 25, "later": 85, "end": 88}
"""What is done after how many seconds."""


def window() -> Any:
    """Return rqt's window."""
    return next(widget for widget in QApplication.topLevelWidgets() if isinstance(widget, QMainWindow))


def arrange() -> None:
    """Make room for the plot and the sliders."""
    main_window = window()
    main_window.resize(*SIZE)
    docks = [dock for dock in main_window.findChildren(QDockWidget) if dock.isVisible()]
    docks.sort(key=lambda dock: dock.x())
    main_window.resizeDocks(docks, WIDTHS[: len(docks)], Qt.Horizontal)


def press_call() -> None:
    """Press the service caller's button."""
    button = next(button for button in window().findChildren(QPushButton) if button.text() == "Call")
    button.click()


def save(directory: Path, name: str) -> None:
    """Save a picture of the window."""
    window().grab().save(str(directory / f"rqt_{name}.png"))


def main() -> None:
    """Run rqt with the timers set."""
    directory = Path(sys.argv[1])
    actions: dict[str, Callable[[], object]] = {
        "open": arrange,
        "call": press_call,
        "called": lambda: save(directory, "prune"),
        "later": lambda: save(directory, "later"),
        "end": QApplication.quit,
    }
    run = QApplication.exec_

    def run_with_timers(*_: object) -> Any:
        for name, seconds in STEPS.items():
            QTimer.singleShot(1000 * seconds, actions[name])
        return run()

    QApplication.exec_ = run_with_timers
    Main().main(["rqt", "--force-discover", "--perspective-file", str(PERSPECTIVE)])


if __name__ == "__main__":
    main()
