"""The three processes of a setup on one machine: plant, controller and pruning service."""

from __future__ import annotations

from pathlib import Path

from nncontrol_prune.config import Config
from nncontrol_prune.plants.environments import check_controller, environment_specs
from nncontrol_prune.runtime.finding import first_controller
from nncontrol_prune.runtime.store import BundleStore
from nncontrol_prune.transport.controller_process import SLOT
from nncontrol_prune.transport.live_loop import LiveLoop
from nncontrol_prune.transport.network import Network
from nncontrol_prune.transport.plant_process import PlantProcessSettings
from nncontrol_prune.transport.requests import Client


class Simulation(LiveLoop):
    """Starts the processes, in a context; at its end they are gone, whatever happened.

    Args:
        config: The setup.
        network: Where the processes find each other.
        out: Directory for logs, and for the report.
        store: The bundle store.
        bag: Where to record; None to record nothing.

    Raises:
        ConfigError: The rate that is asked for is not the controller's.
        ControllerError, PlantError: The controller does not exist, or does not fit the environment.
        ProcessError: A process cannot start; the message says which and why.
    """

    def __init__(self, config: Config, network: Network, *, out: Path, store: BundleStore, bag: Path | None) -> None:
        environment = config.mujoco_sim.env
        specs = environment_specs(environment)
        controller = config.nn_controller
        bundle = first_controller(store, SLOT, asked=controller.controller, default=controller.default_controller)
        check_controller(bundle.manifest, specs)
        plant = PlantProcessSettings(network=network, config=config.mujoco_sim)
        super().__init__(config, network, bundle, out=out, store=store, bag=bag, environment=environment, plant=plant)
        self.plant = Client(network, "plant")

    def close(self) -> None:
        """End the processes."""
        self.plant.close()
        super().close()
