"""A simulated plant, its controller and the pruning service: `ros2 launch nncontrol_prune sim.launch.py`.

The controller activates itself and the pole swings up. Only launch, launch_ros and the standard library are imported:
launch files run under ROS 2's interpreter, and the nodes under the one that the package was built with.
"""

from __future__ import annotations

from pathlib import Path

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription

SHARE = Path(__file__).resolve().parents[1]
PACKAGE = "nncontrol_prune"
UNSET = ""
"""What an argument is that leaves the matter to the configuration file."""

ARGUMENTS = [
    ("config", str(SHARE / "config" / "sim.yaml"), "Parameter file that the nodes read."),
    ("env", UNSET, "Gymnasium MuJoCo id, such as Hopper-v5, with a controller for it; empty for the configuration's."),
    ("controller", UNSET, "Shipped name, directory or name@digest; empty for what the store has as current."),
    ("rate", UNSET, "Control rate in Hz; it must be the controller's. Empty for the controller's own."),
    ("headless", UNSET, "true for no window, false for MuJoCo's viewer; empty for the configuration's."),
    ("real_time_factor", UNSET, "Plant seconds per second; empty for the configuration's."),
    ("lockstep", UNSET, "true for a plant that waits for each command, so that runs are reproducible."),
    ("seed", UNSET, "Seed of the plant's first episode; empty for the configuration's."),
    ("record", UNSET, "true to record rollouts, which is what is pruned from; empty for the configuration's."),
    ("sparsity", UNSET, "Share of the parameters to remove, in [0, 1); empty for the configuration's."),
    ("auto_deploy", UNSET, "true to swap an accepted controller in at once; false to leave it to ~/deploy."),
    ("autostart", "true", "true to configure and activate the controller at once; false for a lifecycle manager."),
    ("store", UNSET, "Directory of the bundle store; empty for $NNCONTROL_PRUNE_STORE or ~/.ros/nncontrol_prune."),
    ("namespace", UNSET, "Namespace of all three nodes and of their topics."),
    ("use_sim_time", "true", "true for the plant's clock, which runs at the real-time factor."),
    ("respawn", "false", "true to start a node again that has ended."),
]
NUMBERS = {"rate": float, "real_time_factor": float, "seed": int, "sparsity": float}
SWITCHES = {"headless", "lockstep", "record", "auto_deploy", "autostart", "use_sim_time", "respawn"}


def value_of(name: str, text: str) -> bool | float | int | str:
    """Return an argument's value in its type.

    Raises:
        ValueError: It has no such value; the message names the argument and what is allowed.
    """
    if name in SWITCHES:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name}:={text}: allowed are true and false")
        return text.lower() == "true"
    if name in NUMBERS:
        try:
            return NUMBERS[name](text)
        except ValueError as error:
            kind = "a whole number" if NUMBERS[name] is int else "a number"
            raise ValueError(f"{name}:={text}: it has to be {kind}") from error
    return text


def nodes(context: LaunchContext) -> list[Node]:
    """Return the three nodes, as the arguments say."""
    given = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    if not Path(given["config"]).is_file():  # launch only warns, and the nodes would run with their defaults
        raise ValueError(f"config:={given['config']}: there is no such file")
    values = {name: value_of(name, text) for name, text in given.items() if text != UNSET}

    def node(executable: str, name: str, keys: tuple[str, ...]) -> Node:
        parameters = {key: values[key] for key in keys if key in values}
        enclave = "/" + f"{given['namespace'].strip('/')}/{name}".lstrip("/")
        return Node(
            package=PACKAGE,
            executable=executable,
            name=name,
            namespace=given["namespace"],
            ros_arguments=["--enclave", enclave],  # of no weight without ROS_SECURITY_ENABLE
            parameters=[given["config"], parameters],
            output="screen",
            respawn=values["respawn"],
            respawn_delay=1.0,
        )

    # The simulator makes the time; for it, another one's clock would be wrong.
    return [
        node("simulator_node", "mujoco_sim", ("env", "headless", "real_time_factor", "lockstep", "seed")),
        node(
            "controller_node", "nn_controller", ("controller", "rate", "record", "autostart", "store", "use_sim_time")
        ),
        node("pruning_node", "pruning_service", ("env", "sparsity", "auto_deploy", "store", "use_sim_time")),
    ]


def generate_launch_description() -> LaunchDescription:
    """Describe what is launched."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=nodes)])
