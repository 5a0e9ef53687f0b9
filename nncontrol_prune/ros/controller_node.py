"""The lifecycle node `nn_controller`: the control loop, its slot, and what can be asked of it."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.timer import Timer
from std_msgs.msg import Float64MultiArray, String, UInt8MultiArray
from std_srvs.srv import Trigger

from nncontrol_prune.config import ConfigError, ControllerConfig
from nncontrol_prune.controllers.bundle import short
from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.controllers.limits import ActionLimits
from nncontrol_prune.rollouts.errors import RolloutError
from nncontrol_prune.rollouts.recorder import Recorder
from nncontrol_prune.ros.callbacks import answering, guarded, setting, steady_timer, transition
from nncontrol_prune.ros.command_joints import CommandJoints
from nncontrol_prune.ros.command_log import CommandLog
from nncontrol_prune.ros.controller_health import health
from nncontrol_prune.ros.diagnostics import Problem, Rivals, publishers_of, rival_clocks, tell_diagnostics
from nncontrol_prune.ros.loop_runner import LoopRunner, owner_of
from nncontrol_prune.ros.messages import LATCHED, contents_of, parcel_of, step_of
from nncontrol_prune.ros.parameters import NodeParameters, ParameterNode
from nncontrol_prune.ros.remote_loop import ControllerStatus, Received
from nncontrol_prune.ros.running import fastest_executor, spin
from nncontrol_prune.ros.state_publisher import StatePublisher
from nncontrol_prune.runtime.finding import first_controller, stored_bundle
from nncontrol_prune.runtime.scheduling import run_in_real_time, running_threads
from nncontrol_prune.runtime.slot import ControllerSlot
from nncontrol_prune.runtime.store import BundleStore, StoreError, default_root

START_POLL = 0.01
"""Seconds between looks, at the start, at whether the node may begin to command."""
HOUSEKEEPING = 0.1
"""Seconds between looks at what the loop has done."""
ANYTIME = {"controller", "autostart", "default_controller"}
"""Parameters that may be set while the loop runs."""
FIXED = {"store", "simulator", "pruning_service"}
"""Parameters that can be set only when the node is started."""


class ControllerNode(ParameterNode, LifecycleNode):
    """Hosts a controller: configure loads it, activate begins to command, deactivate sends the safe command.

    Raises:
        ConfigError: A parameter does not exist, or its value is not allowed.
    """

    def __init__(self, **arguments: Any) -> None:
        before = running_threads()
        super().__init__("nn_controller", automatically_declare_parameters_from_overrides=True, **arguments)
        self._settings = NodeParameters(self, ControllerConfig, FIXED)
        # The middleware's threads hand messages to the loop, and must not wait for the processor either.
        run_in_real_time(self._settings.config.realtime_priority, running_threads() - before)
        self._store = BundleStore(default_root(self._settings.config.store))
        self._slot_name = self.get_fully_qualified_name().strip("/").replace("/", ".")
        self._slot: ControllerSlot | None = None
        self._runner: LoopRunner | None = None
        self._recorder: Recorder | None = None
        self._command_log: CommandLog | None = None
        self._told_swaps = -1
        self._told_problem: str | None = None
        self._rivals = Rivals(self)
        self._recording_problem = ""
        self._sent_dense = ""
        self._received = Received()
        self._joints = CommandJoints(self)
        self._starting: Timer | None = None
        self._following = False
        self._active = False
        self._finalized = False
        self._status = StatePublisher(self, String, "~/status")
        self._bundle_publisher = self.create_publisher(String, "~/bundle", LATCHED)
        self._dense_publisher = self.create_publisher(UInt8MultiArray, "~/dense", LATCHED)
        self.create_service(Trigger, "~/rollback", answering(self, "rollback", self._rollback))
        self._listen()
        steady_timer(self, HOUSEKEEPING, "housekeeping", self._keep_house)
        tell_diagnostics(self, self._diagnose)
        self.add_on_set_parameters_callback(setting(self, self._set_parameters_asked))

    def start(self) -> None:
        """Configure, if `autostart` says so, and activate as soon as the command controller has told its joints."""
        if not self._settings.config.autostart:
            return
        if self.trigger_configure() is TransitionCallbackReturn.SUCCESS:
            self._starting = steady_timer(self, START_POLL, "autostart", self._activate_when_ready)

    def _activate_when_ready(self) -> None:
        if self._starting is not None and not self._joints.waiting:  # a timer that is destroyed may fire once more
            self._end_autostart()
            self.trigger_activate()

    def _end_autostart(self) -> None:
        """Activate by itself no more: it is done, or somebody else has decided what state to be in."""
        if self._starting is not None:
            self.destroy_timer(self._starting)
            self._starting = None

    def close(self) -> None:
        """Stop commanding, and end the recording."""
        self._stop()
        self._release()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the controller, and listen to the plant."""
        return transition(self, "configure", self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to command."""
        return transition(self, "activate", self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Send the safe command, and command no more."""
        return transition(self, "deactivate", self._stop)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of the controller and of the plant."""
        return transition(self, "clean up", self._release)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Do the same from any state."""
        return transition(self, "shut down", self._finalize)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Go back to unconfigured, from where it can be tried again."""
        return transition(self, "recover from an error", self.close)

    def _configure(self) -> None:
        config = self._settings.config
        self._store.remove_unfinished()
        first = first_controller(
            self._store, self._slot_name, asked=config.controller, default=config.default_controller
        )
        self._store.add(first)
        slot = self._slot_that_runs(first.reference)
        manifest = slot.active.manifest
        with ExitStack() as undone:
            undone.callback(slot.close)
            config.check_rate(manifest)
            ActionLimits(manifest.action, config.safe_command)  # refuses one that does not fit
            self._runner = LoopRunner(self, config, manifest)
            undone.pop_all()
        self._slot = slot
        self._told_swaps = -1
        self._joints.ask(config.command_controller, manifest.action.joints)

    def _slot_that_runs(self, reference: str) -> ControllerSlot:
        """Return a slot with a controller: on probation, unless it is the store's current one or cannot follow that."""
        record = self._store.slot(self._slot_name)
        if record is not None and record.current != reference:
            try:
                slot = self._slot_with(record.current)
                with ExitStack() as undone:
                    undone.callback(slot.close)
                    slot.stage(reference)
                    undone.pop_all()
            except ControllerError as error:
                slot = self._slot_with(reference)  # which may be refused for the same reason
                self.get_logger().warning(f"{short(reference)} begins without a probation: {error}")
            else:
                slot.swap_if_staged(0)
            return slot
        return self._slot_with(reference)

    def _slot_with(self, reference: str) -> ControllerSlot:
        config = self._settings.config
        return ControllerSlot(
            self._store,
            reference,
            slot=self._slot_name,
            probation=config.probation,
            allow_offline=config.allow_offline,
        )

    def _activate(self) -> None:
        assert self._slot is not None
        assert self._runner is not None
        self._joints.check()
        self._end_autostart()
        config, manifest = self._settings.config, self._slot.active.manifest
        self._recording_problem = ""
        if config.record:
            try:
                self._recorder = self._new_recorder(self._slot)
            except RolloutError as error:  # the loop comes first
                self._tell_recording_problem(str(error))
        self._runner.start(self._slot, self._recorder)
        self._command_log = CommandLog(self._runner, self)
        self._active = True
        self.get_logger().info(
            f"commanding {', '.join(manifest.action.joints)} on {self._runner.link.command_topic} at "
            f"{manifest.rate:g} Hz with {self._slot.active.reference}"
        )
        if self._joints.problem:
            self.get_logger().warning(self._joints.problem)

    def _new_recorder(self, slot: ControllerSlot) -> Recorder:
        config, manifest = self._settings.config, slot.active.manifest
        stamp = f"{datetime.now(timezone.utc):%Y-%m-%dT%H-%M-%S.%f}"
        bags = Path(config.bags) if config.bags else self._store.root / "bags"
        recorder = Recorder(
            bags / f"{self._slot_name}-{stamp}",
            controller=self.get_fully_qualified_name(),
            simulator=self._simulator_name(),
            observation_size=manifest.observation.size,
            action_size=manifest.action.size,
            rate=manifest.rate,
        )
        recorder.bundle(slot.swaps, slot.active.reference)
        return recorder

    def _tell_recording_problem(self, reason: str) -> None:
        if not self._recording_problem:
            self._recording_problem = f"nothing is recorded: {reason}"
            self.get_logger().error(self._recording_problem)

    def _stop(self) -> None:
        self._active = False
        if self._runner is not None:
            self._runner.stop()
        if self._recorder is not None:
            summary = self._recorder.close()
            self._recorder = None
            if summary.reason is not None and not self._recording_problem:
                self.get_logger().error(f"recording: {summary.reason}")

    def _release(self) -> None:
        self._end_autostart()
        self._joints.cease()
        if self._runner is not None:
            self._runner.close()
        if self._slot is not None:
            self._slot.close()
        self._runner = self._slot = None

    def _finalize(self) -> None:
        self.close()
        self._finalized = True

    def _simulator_name(self) -> str:
        return self.resolve_topic_name(f"{self._settings.config.simulator or 'mujoco_sim'}")

    def _listen(self) -> None:
        config = self._settings.config
        if config.simulator:
            step = guarded(self, "steps", self._record_step)
            self.create_subscription(Float64MultiArray, f"{config.simulator}/step", step, 50)
        if config.pruning_service:
            receive = guarded(self, "bundles", self._receive)
            self.create_subscription(UInt8MultiArray, f"{config.pruning_service}/candidate", receive, LATCHED)

    def _record_step(self, message: Float64MultiArray) -> None:
        if self._recorder is None:
            return
        step = step_of(message)
        self._recorder.step(
            step["stamp"],
            step["episode"],
            step["step"],
            step["reward"],
            step["terminated"] > 0,
            step["truncated"] > 0,
        )

    def _receive(self, message: UInt8MultiArray) -> None:
        """Check and store a bundle from a pruning service; its digest is what it is later asked for by."""
        try:
            self._received = Received(count=self._received.count + 1)
            self._received.digest, files, verdict = contents_of(message)
            self._store.receive(files, self._received.digest, verdict)
        except ControllerError as error:
            self._received.error = str(error)
            raise
        finally:
            self._tell_status()

    def _set_parameters_asked(self, parameters: list[Parameter]) -> None:
        """Check parameters, and stage a controller that is set.

        Raises:
            ConfigError: A value is not allowed, or not now.
            ControllerError: The controller cannot be staged.
        """
        names = self._settings.names(parameters)
        config = self._settings.changed(parameters)
        fixed = sorted(names - ANYTIME)
        if self._slot is not None and fixed:
            raise ConfigError(f"{self.get_name()}: {', '.join(fixed)} can be set only before the node is configured")
        if "controller" in names and not self._following:
            if config.controller:
                self._stage(config.controller)
            elif self._slot is not None:
                raise ConfigError(f"{self.get_name()}: controller cannot be empty while one runs; name another")
        self._settings.accept(parameters)

    def _stage(self, text: str) -> None:
        bundle = stored_bundle(self._store, text)
        self._store.check_accepted(bundle, allow_offline=self._settings.config.allow_offline)
        if self._slot is None or self._runner is None:
            return
        if not self._slot.waiting and bundle.digest == self._slot.active.digest:  # in this order: see `stage`
            return  # it runs already: the parameter only says so
        self._slot.stage(bundle.reference)
        if not self._active:
            self._slot.swap_if_staged(0)

    def _rollback(self, _: Trigger.Request) -> str:
        if self._slot is None:
            raise ConfigError("there is no controller to roll back: the node is not configured")
        reference = self._slot.rollback()
        if not self._active:
            self._slot.swap_if_staged(0)
        if reference == self._slot.active.reference:  # no swap will tell the parameter, which may name what is given up
            self._follow_parameter(reference)
        return f"back to {reference}"

    def _keep_house(self) -> None:
        """Stop where joints are others; tell what the loop and the recorder did; let the parameter follow; commit."""
        if self._active and self._joints.different:
            self.get_logger().error(f"no more commands: {self._joints.problem}")
            self.trigger_deactivate()
        if self._active and self._command_log is not None:
            self._command_log.look()
        if self._recorder is not None and self._recorder.failure is not None:
            self._tell_recording_problem(self._recorder.failure)
        slot = self._slot
        if slot is not None:
            slot.commit_if_due()
            if slot.problem != self._told_problem:
                self._told_problem = slot.problem
                if slot.problem is not None:
                    self.get_logger().error(slot.problem)
            if slot.swaps != self._told_swaps:
                self._tell_swaps(slot)
        self._tell_status()

    def _tell_swaps(self, slot: ControllerSlot) -> None:
        first = self._told_swaps < 0
        for event in [] if first else slot.events[self._told_swaps :]:
            self.get_logger().info(f"{event.reason}: {event.reference}")
            if self._recorder is not None:
                self._recorder.bundle(event.swaps, event.reference)
            self._bundle_publisher.publish(String(data=f"{event.swaps} {event.reference}"))
            self._told_swaps = event.swaps
        if first:
            self._told_swaps = slot.swaps
            self._bundle_publisher.publish(String(data=f"{slot.swaps} {slot.active.reference}"))
        self._follow_parameter(slot.active.reference)
        self._send_dense(slot.active.reference)

    def _follow_parameter(self, reference: str) -> None:
        """Let the parameter say what runs, after a swap that it did not ask for, too."""
        self._following = True
        try:
            self._settings.set("controller", reference)
        finally:
            self._following = False

    def _send_dense(self, reference: str) -> None:
        """Offer the dense controller to a pruning service that has another store."""
        try:
            dense = self._store.dense(reference)
        except StoreError as error:
            self.get_logger().warning(f"the dense controller cannot be offered to a pruning service: {error}")
            return
        if dense != self._sent_dense:
            bundle = self._store.load(dense)
            self._dense_publisher.publish(parcel_of(bundle, None))
            self._sent_dense = dense

    def _tell_status(self) -> None:
        slot = self._slot
        status = ControllerStatus(
            state=self._state,
            active="" if slot is None else slot.active.reference,
            dense=self._sent_dense,
            swaps=0 if slot is None else slot.swaps,
            on_probation=slot is not None and slot.on_probation,
            bag=self._bag,
            received=self._received,
        )
        self._status.tell(String(data=status.model_dump_json()))

    @property
    def _state(self) -> str:
        if self._finalized:
            return "finalized"
        return "active" if self._active else "unconfigured" if self._slot is None else "inactive"

    @property
    def _bag(self) -> str:
        """Where is recorded; empty where nothing is, or is any more."""
        recorder = self._recorder
        return "" if recorder is None or recorder.failure is not None else str(recorder.directory.resolve())

    def _diagnose(self) -> tuple[list[Problem], dict[str, object]]:
        problems, values = health(self._slot, self._runner, self._recorder, active=self._active)
        if self._joints.problem:
            level = DiagnosticStatus.ERROR if self._joints.different else DiagnosticStatus.WARN
            problems.append((level, self._joints.problem))
        if self._active and self._recording_problem:
            problems.append((DiagnosticStatus.ERROR, self._recording_problem))
        return problems + self._rivals.problems(self._find_rivals()), values

    def _find_rivals(self) -> list[str]:
        """Return that others may command the plant, or tell the time, as well, as sentences."""
        if self._runner is None or not self._active:
            return []
        topic = self._runner.link.command_topic
        publishers = publishers_of(self, topic)
        if self._runner.node_name in publishers:
            publishers.remove(self._runner.node_name)  # once: another may have the same name
        rivals = ", ".join(owner_of(publisher) for publisher in publishers)
        found = [f"{rivals} may send commands on {topic}, too"] if rivals else []
        return found + (rival_clocks(self) if self.get_parameter("use_sim_time").value else [])


def main() -> None:
    """Run the node."""
    spin(ControllerNode, fastest_executor, started=ControllerNode.start)
