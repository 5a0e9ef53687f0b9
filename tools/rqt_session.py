"""Drive the real rqt through the session of docs/ros2.md, and take the picture in docs/images.

    source /opt/ros/jazzy/setup.bash; ros2 launch nncontrol_prune sim.launch.py &
    # when the pole swings: rqt lists the nodes that are there when it starts
    xvfb-run -a -s "-screen 0 1920x1080x24" python tools/rqt_session.py docs/images/rqt.png

rqt runs in this process; a timer of its event loop moves the mouse as a person would.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import rclpy
from python_qt_binding.QtCore import QEvent, QPoint, QPointF, Qt, QTimer
from python_qt_binding.QtGui import QMouseEvent
from python_qt_binding.QtTest import QTest
from python_qt_binding.QtWidgets import (
    QApplication,
    QComboBox,
    QMainWindow,
    QPushButton,
    QScrollArea,
    QSlider,
    QStyle,
    QStyleOptionSlider,
)
from rcl_interfaces.srv import GetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from rqt_gui.main import Main
from rqt_reconfigure.param_editors import EditorWidget
from std_msgs.msg import String

PERSPECTIVE = Path(__file__).resolve().parents[1] / "config" / "nncontrol_prune.perspective"
SERVICE = "/pruning_service"
SPARSITY = 0.6
PATIENCE = 300.0
"""Seconds that each step may take."""
TICK = 200
"""Milliseconds between looks at whether the next step can be taken."""


class Session:
    """What a person does, step by step.

    Args:
        picture: Where the picture of the end goes.
    """

    def __init__(self, picture: Path) -> None:
        self._picture = picture
        context = rclpy.Context()
        rclpy.init(context=context)
        self._node = rclpy.create_node("rqt_session", context=context)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self._node)
        self._status: dict[str, Any] = {}
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._node.create_subscription(String, f"{SERVICE}/status", self._take, latched)
        self._parameters = self._node.create_client(GetParameters, f"{SERVICE}/get_parameters")
        self._tell: Callable[[str], object] = self._node.get_logger().info
        self._steps = self._session()
        self._ready = next(self._steps)
        self._since = time.monotonic()

    def look(self) -> None:
        """Take the next step if it can be taken."""
        try:
            self._executor.spin_once(timeout_sec=0)
            if self._ready():
                self._ready, self._since = next(self._steps), time.monotonic()
            elif time.monotonic() - self._since > PATIENCE or self._status.get("state") in ("rejected", "failed"):
                raise TimeoutError(f"the next step cannot be taken: {self._status}")
        except Exception:  # Qt would go on, and take it to be none of its business
            traceback.print_exc()
            QApplication.exit(1)

    def _session(self) -> Iterator[Callable[[], object]]:
        """Take the steps; yield what each has to wait for."""
        yield lambda: editor("sparsity") is not None and services().findText(f"{SERVICE}/prune") >= 0
        yield self._after(15.0)  # the plot needs something to show
        drag(editor("sparsity"), SPARSITY)
        yield self._after(2.0)
        answer = self._parameters.call_async(GetParameters.Request(names=["sparsity"]))
        yield answer.done
        sparsity = answer.result().values[0].double_value
        self._tell(f"sparsity is now {sparsity:g}")
        if abs(sparsity - SPARSITY) > 0.02:
            raise ValueError(f"the slider was dragged to {SPARSITY:g}")
        call(f"{SERVICE}/prune")
        yield lambda: self._status.get("state") == "accepted"
        call(f"{SERVICE}/deploy")
        yield self._after(15.0)
        self._tell(self._status["deployment"])
        window().grab().save(str(self._picture))
        QApplication.quit()
        yield lambda: False

    def _after(self, seconds: float) -> Callable[[], bool]:
        return lambda: time.monotonic() - self._since > seconds

    def _take(self, message: String) -> None:
        self._status = json.loads(message.data)


def window() -> Any:
    """Return rqt's window."""
    return next(widget for widget in QApplication.topLevelWidgets() if isinstance(widget, QMainWindow))


def editor(parameter: str) -> Any:
    """Return the parameter editor's row of a parameter; None before it is there."""
    rows = window().findChildren(EditorWidget)
    return next((row for row in rows if row.parameter.name == parameter), None)


def services() -> Any:
    """Return the service caller's list of services."""
    return window().findChild(QComboBox, "service_combo_box")


def drag(row: Any, value: float) -> None:
    """Drag the handle of a row's slider to a value."""
    slider: Any = row.findChild(QSlider)
    area = slider.parent()
    while not isinstance(area, QScrollArea):
        area = area.parent()
    area.ensureWidgetVisible(slider)
    style, option = slider.style(), QStyleOptionSlider()
    slider.initStyleOption(option)
    groove = style.subControlRect(QStyle.CC_Slider, option, QStyle.SC_SliderGroove, slider)
    handle = style.subControlRect(QStyle.CC_Slider, option, QStyle.SC_SliderHandle, slider)
    way = groove.width() - handle.width()
    wanted = round(value * row.scale)
    x = groove.x() + style.sliderPositionFromValue(slider.minimum(), slider.maximum(), wanted, way)
    start, end = handle.center(), QPoint(x + handle.width() // 2, handle.center().y())
    for kind, place in (
        (QEvent.MouseButtonPress, start),
        (QEvent.MouseMove, (start + end) / 2),
        (QEvent.MouseMove, end),
        (QEvent.MouseButtonRelease, end),
    ):
        button = Qt.NoButton if kind == QEvent.MouseMove else Qt.LeftButton
        held = Qt.NoButton if kind == QEvent.MouseButtonRelease else Qt.LeftButton
        event = QMouseEvent(kind, QPointF(place), QPointF(slider.mapToGlobal(place)), button, held, Qt.NoModifier)
        QApplication.sendEvent(slider, event)


def call(service: str) -> None:
    """Choose a service, and press the service caller's button."""
    services().setCurrentIndex(services().findText(service))
    button = next(button for button in window().findChildren(QPushButton) if button.text() == "Call")
    QTest.mouseClick(button, Qt.LeftButton)


def main() -> None:
    """Run rqt with a person at it."""
    session = Session(Path(sys.argv[1]))
    run = QApplication.exec_

    def run_with_timer(*_: object) -> Any:
        timer = QTimer()
        timer.timeout.connect(session.look)
        timer.start(TICK)
        return run()

    QApplication.exec_ = run_with_timer
    Main().main(["rqt", "--force-discover", "--perspective-file", str(PERSPECTIVE)])


if __name__ == "__main__":
    main()
