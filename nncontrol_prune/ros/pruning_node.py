"""The node `pruning_service`: prunes what a controller node runs, validates it, and deploys what was accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.executors import Executor, MultiThreadedExecutor
from rclpy.parameter import Parameter
from std_msgs.msg import Float64, String
from std_srvs.srv import Trigger

from nncontrol_prune.config import PruningServiceConfig
from nncontrol_prune.ros.callbacks import EXPECTED, answering, setting, steady_timer
from nncontrol_prune.ros.claim import Claim
from nncontrol_prune.ros.diagnostics import Problem, tell_diagnostics
from nncontrol_prune.ros.parameters import NodeParameters, ParameterNode
from nncontrol_prune.ros.remote_loop import LoopError, RemoteLoop
from nncontrol_prune.ros.running import spin
from nncontrol_prune.ros.state_publisher import StatePublisher
from nncontrol_prune.runtime.store import BundleStore, default_root
from nncontrol_prune.service.coordinator import Coordinator
from nncontrol_prune.service.pruning_service import JobStatus, ServiceError

REFUSALS: tuple[type[Exception], ...] = (ServiceError, LoopError)
DEPLOYMENT_ERRORS: tuple[type[Exception], ...] = (*EXPECTED, *REFUSALS)
TELL = 0.1
"""Seconds between looks at how far the job is."""
FIXED = {"controller_node", "store", "env"}
"""Parameters that can be set only when the node is started."""
THREADS = 4


class PruningNode(ParameterNode):
    """Takes requests, which are answered at once; the work is done by another process and told on topics.

    Raises:
        ConfigError: A parameter does not exist, or its value is not allowed.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__("pruning_service", automatically_declare_parameters_from_overrides=True, **arguments)
        self._settings = NodeParameters(self, PruningServiceConfig, FIXED)
        config = self._settings.config
        store = BundleStore(default_root(config.store))
        name = self.get_fully_qualified_name().strip("/").replace("/", ".")
        self._loop = RemoteLoop(self, config.controller_node)
        self._claim = Claim(self, config.controller_node)
        self._coordinator = Coordinator(
            store,
            self._loop,
            config,
            environment=config.env or None,
            journal=store.root / "jobs" / f"{name}.json",
        )
        self._logged = result_of(self._coordinator.status)
        self._progress = StatePublisher(self, Float64, "~/progress")
        self._status = StatePublisher(self, String, "~/status")
        # Deploying waits for the controller node; meanwhile a job can be cancelled and progress is told.
        services, deploying = ReentrantCallbackGroup(), MutuallyExclusiveCallbackGroup()
        for service, function, group in (
            ("prune", self._prune, services),
            ("validate", self._validate, services),
            ("cancel", self._cancel, services),
            ("deploy", self._deploy, deploying),
        ):
            answer = answering(self, service, function, REFUSALS)
            self.create_service(Trigger, f"~/{service}", answer, callback_group=group)
        telling = MutuallyExclusiveCallbackGroup()
        steady_timer(self, TELL, "status", self._tell, telling)
        steady_timer(self, TELL, "deployment", self._deploy_if_wanted, deploying)
        tell_diagnostics(self, self._diagnose, group=telling)
        self.add_on_set_parameters_callback(setting(self, self._set))

    def close(self) -> None:
        """Stop whatever is running."""
        self._coordinator.close()

    def _prune(self, _: Trigger.Request) -> str:
        self._claim.check()
        job = self._coordinator.prune(self._settings.config, self._named_rollouts())
        return f"job {job} has started"

    def _named_rollouts(self) -> tuple[Path, ...] | None:
        """Return the bags that a parameter names; None for what the loop records."""
        return tuple(Path(path).expanduser() for path in self._settings.config.rollouts.split(":") if path) or None

    def _validate(self, _: Trigger.Request) -> str:
        self._claim.check()
        job = self._coordinator.validate(self._settings.config.candidate or None, self._named_rollouts())
        return f"job {job} has started"

    def _cancel(self, _: Trigger.Request) -> str:
        number = self._coordinator.cancel()
        status = self._coordinator.status
        if status.job == number and status.outcome is not None:  # what is decided stays so
            return f"job {number} was {status.state} already; its report is not written"
        return f"job {number} is cancelled"

    def _deploy(self, _: Trigger.Request) -> str:
        self._claim.check()
        return f"deployed {self._coordinator.deploy()}"

    def _deploy_if_wanted(self) -> None:
        try:
            reference = self._coordinator.deploy_if_wanted()
        except DEPLOYMENT_ERRORS as error:
            self.get_logger().error(f"not deployed: {error}")
        else:
            if reference is not None:
                self.get_logger().info(f"deployed {reference}")

    def _set(self, parameters: list[Parameter]) -> None:
        self._settings.accept(parameters)
        self._coordinator.config = self._settings.config

    def _tell(self) -> None:
        status = self._coordinator.status
        self._log_result(status)
        text = json.dumps(
            {
                **status.model_dump(mode="json", exclude={"outcome"}),
                "candidate": "" if status.outcome is None else status.outcome.candidate,
                "report": "" if status.outcome is None else str(status.outcome.report or ""),
                "deployment": self._coordinator.deployment,
            }
        )
        self._status.tell(String(data=text))
        self._progress.tell(Float64(data=status.progress))

    def _log_result(self, status: JobStatus) -> None:
        """Log how a job ended, once; of what was decided before, only what is new."""
        result, (job, state, message) = result_of(status), self._logged
        if result == self._logged:
            return
        self._logged = result
        text = f"job {status.job} {status.state}: {status.message}"
        if (job, state) == result[:2] and status.message.startswith(f"{message}; "):
            text = f"job {status.job}: {status.message.removeprefix(f'{message}; ')}"
        if status.state == "accepted":
            self.get_logger().info(text)
        elif status.state == "rejected":
            self.get_logger().warning(text)
        elif status.state == "failed":
            self.get_logger().error(text)

    def _diagnose(self) -> tuple[list[Problem], dict[str, object]]:
        status = self._coordinator.status
        problems: list[Problem] = []
        try:
            self._claim.check()
        except ServiceError as error:
            problems.append((DiagnosticStatus.ERROR, str(error)))
        if self._loop.status is None:
            problems.append((DiagnosticStatus.WARN, f"there is no controller node {self._loop.controller}"))
        if status.state == "failed":
            problems.append((DiagnosticStatus.ERROR, f"job {status.job} failed: {status.message}"))
        if status.hampered:
            problems.append((DiagnosticStatus.WARN, status.hampered))
        return problems, {
            "job": status.job,
            "state": status.state,
            "stage": status.stage,
            "progress": f"{status.progress:.2f}",
            "message": status.message,
            "deployment": self._coordinator.deployment,
        }


def result_of(status: JobStatus) -> tuple[int, str, str]:
    """Return what is new where a job has ended, or was decided, or has no report after that."""
    return status.job, status.state, status.message


def main() -> None:
    """Run the node."""

    def executor() -> Executor:
        return MultiThreadedExecutor(num_threads=THREADS)

    spin(PruningNode, executor, REFUSALS)
