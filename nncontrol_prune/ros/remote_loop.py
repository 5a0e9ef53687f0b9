"""The pruning service's way to its loop: the controller node's status, bundles, and the parameter that deploys."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from rcl_interfaces.srv import SetParameters
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import String, UInt8MultiArray

from nncontrol_prune.controllers.bundle import Bundle, check_bundle, short
from nncontrol_prune.controllers.errors import BundleError
from nncontrol_prune.controllers.specs import problem_of
from nncontrol_prune.controllers.verdict import Verdict
from nncontrol_prune.ros.callbacks import guarded
from nncontrol_prune.ros.messages import LATCHED, MessageError, contents_of, parcel_of
from nncontrol_prune.service.coordinator import LoopState

PATIENCE = 10.0
"""Seconds that the controller node has for an answer."""


class LoopError(Exception):
    """The controller node does not answer, or refuses; the message says why."""


class Received(BaseModel):
    """What became of the last bundle that was sent."""

    count: int = 0
    """Of the bundles that have come since the node started: the same one may be sent again."""
    digest: str = ""
    error: str = ""


class ControllerStatus(BaseModel):
    """What the controller node says on ~/status."""

    state: str
    active: str
    dense: str
    swaps: int
    on_probation: bool
    bag: str
    received: Received


class RemoteLoop:
    """Reaches the loop of a controller node; see `service.coordinator.LoopConnection`.

    Its methods wait for answers that other threads of the node's executor take, so the executor has to have several.

    Args:
        node: The pruning service's node.
        controller: Name of the controller node, in the node's namespace unless it begins with a slash.
    """

    def __init__(self, node: Node, controller: str) -> None:
        self._node = node
        self.controller = controller
        self._changed = threading.Condition()
        self._status: ControllerStatus | None = None
        self._dense: Bundle | None = None
        group = ReentrantCallbackGroup()
        self._candidates = node.create_publisher(UInt8MultiArray, "~/candidate", LATCHED)
        self._parameters = node.create_client(SetParameters, f"{controller}/set_parameters", callback_group=group)

        def listen(message_type: type, topic: str, callback: Callable[..., None]) -> None:
            wrapped = guarded(node, topic, callback)
            node.create_subscription(message_type, f"{controller}/{topic}", wrapped, LATCHED, callback_group=group)

        listen(String, "status", self._take_status)
        listen(UInt8MultiArray, "dense", self._take_dense)

    @property
    def status(self) -> ControllerStatus | None:
        """What the controller node said last; None if it said nothing, or is gone."""
        if not self._node.count_publishers(self._node.resolve_topic_name(f"{self.controller}/status")):
            return None
        return self._status

    def state(self) -> LoopState:
        """Ask what runs.

        Raises:
            LoopError: The controller node is not there, or has no controller.
        """
        status = self._wait_for(lambda: self.status, f"there is no controller node {self.controller}")
        if not status.active:
            raise LoopError(f"the controller node {self.controller} is {status.state}: it runs no controller")
        return LoopState(active=status.active, bag=Path(status.bag) if status.bag else None)

    def fetch(self, reference: str) -> Bundle:
        """Return the dense controller that the controller node offers.

        Raises:
            LoopError: It offers another one, or none that passes the checks.
        """
        bundle: Bundle = self._wait_for(lambda: self._dense, f"{self.controller} offers no bundle on its topic dense")
        if bundle.reference != reference:
            raise LoopError(
                f"{short(reference)} is not in this machine's store, and {self.controller} offers "
                f"{short(bundle.reference)}; copy it into the store"
            )
        return bundle

    def deploy(self, bundle: Bundle, verdict: Verdict | None) -> str:
        """Send a bundle, set the controller node's parameter, and return the `name@digest`.

        Raises:
            LoopError: The controller node does not answer, runs nothing, or refuses.
        """
        if not self._parameters.service_is_ready():
            raise LoopError(f"there is no controller node {self.controller} to deploy to")
        self.state()  # one that runs nothing would take the parameter for what to run once it is configured
        before = self._received
        self._candidates.publish(parcel_of(bundle, verdict))
        received = self._wait_for(
            lambda: self._received_since(before, bundle.digest),
            f"{self.controller} has not received {short(bundle.reference)}",
        )
        if received.error:
            raise LoopError(f"{self.controller} refuses the bundle: {received.error}")
        request = SetParameters.Request(parameters=[Parameter("controller", value=bundle.reference).to_parameter_msg()])
        result = self._call(request).results[0]
        if not result.successful:
            raise LoopError(f"{self.controller} refuses: {result.reason}")
        return bundle.reference

    @property
    def _received(self) -> Received:
        return Received() if self._status is None else self._status.received

    def _received_since(self, before: Received, digest: str) -> Received | None:
        received = self._received
        return received if received.digest == digest and received.count != before.count else None

    def _call(self, request: SetParameters.Request) -> Any:
        answered = threading.Event()
        future = self._parameters.call_async(request)
        future.add_done_callback(lambda _: answered.set())
        if not answered.wait(PATIENCE):
            self._parameters.remove_pending_request(future)
            raise LoopError(f"no answer from {self.controller} within {PATIENCE:g} s")
        return future.result()

    def _wait_for(self, value: Callable[[], Any], otherwise: str) -> Any:
        """Wait until a value is there, for a while."""
        deadline = time.monotonic() + PATIENCE / 5
        with self._changed:
            while (found := value()) is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise LoopError(otherwise)
                self._changed.wait(min(left, 0.1))
        return found

    def _take_status(self, message: String) -> None:
        try:
            status = ControllerStatus.model_validate_json(message.data)
        except ValidationError as error:
            raise MessageError(f"{self.controller} says something that is no status: {problem_of(error)}") from error
        with self._changed:
            if not status.active and self._status is not None and self._status.active and self._has_rival():
                return  # another node of this name, which may have been refused the slot; one that runs one counts
            self._status = status
            self._changed.notify_all()

    def _has_rival(self) -> bool:
        return self._node.count_publishers(self._node.resolve_topic_name(f"{self.controller}/status")) > 1

    def _take_dense(self, message: UInt8MultiArray) -> None:
        try:
            _, files, _ = contents_of(message)
            bundle = check_bundle(files)
        except BundleError as error:
            raise MessageError(f"{self.controller}/dense holds no bundle: {error}") from error
        with self._changed:
            self._dense = bundle
            self._changed.notify_all()
