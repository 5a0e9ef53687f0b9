"""A controller and its pruning service for a robot under ros2_control: `ros2 launch nncontrol_prune robot.launch.py`.

The robot runs `joint_state_broadcaster` and a command controller such as `forward_command_controller`; their topics are
named by the arguments. Only launch, launch_ros and the standard library are imported.
"""

from __future__ import annotations

from pathlib import Path

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription

SHARE = Path(__file__).resolve().parents[1]
PACKAGE = "nncontrol_prune"

ARGUMENTS = [
    ("config", str(SHARE / "config" / "robot_arm.yaml"), "Parameter file that the nodes read."),
    ("controller", "", "Directory or name@digest; empty for what the store has as current."),
    ("command_controller", "", "ros2_control's command controller; empty for the configuration's topic `commands`."),
    ("joint_states", "/joint_states", "Topic of the joint states."),
    ("imu", "/imu/data", "Topic of the IMU, where the controller observes one."),
    ("cmd_vel", "/cmd_vel", "Topic of the wanted velocity, where the controller observes one."),
    ("namespace", "", "Namespace of the nodes."),
    ("autostart", "true", "true to configure and activate the controller at once; false for a lifecycle manager."),
    ("record", "true", "true to record rollouts, which is what is pruned from."),
    ("auto_deploy", "false", "true to swap an accepted controller in at once; false to leave it to ~/deploy."),
    ("store", "", "Directory of the bundle store; empty for $NNCONTROL_PRUNE_STORE or ~/.ros/nncontrol_prune."),
    ("parts", "both", "What to start on this machine: both, controller or pruning."),
    ("respawn", "true", "true to start a node again that has ended."),
]
PARTS = ("both", "controller", "pruning")


def switch(name: str, text: str) -> bool:
    """Return an argument that is true or false.

    Raises:
        ValueError: It is neither.
    """
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{name}:={text}: allowed are true and false")
    return text.lower() == "true"


def nodes(context: LaunchContext) -> list[Node]:
    """Return the nodes, as the arguments say."""
    given = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    if not Path(given["config"]).is_file():  # launch only warns, and the nodes would run with their defaults
        raise ValueError(f"config:={given['config']}: there is no such file")
    if given["parts"] not in PARTS:
        raise ValueError(f"parts:={given['parts']}: allowed are {', '.join(PARTS)}")
    given["command_controller"] = given["command_controller"].rstrip("/")
    texts = {key: given[key] for key in ("controller", "command_controller", "store") if given[key]}
    switches = {key: switch(key, given[key]) for key in ("autostart", "record", "auto_deploy", "respawn")}
    remappings = [(topic, given[topic]) for topic in ("joint_states", "imu", "cmd_vel")]
    if given["command_controller"]:
        remappings.append(("commands", f"{given['command_controller']}/commands"))

    def node(executable: str, name: str, parameters: dict[str, object]) -> Node:
        enclave = "/" + f"{given['namespace'].strip('/')}/{name}".lstrip("/")
        return Node(
            package=PACKAGE,
            executable=executable,
            name=name,
            namespace=given["namespace"],
            ros_arguments=["--enclave", enclave],  # of no weight without ROS_SECURITY_ENABLE
            parameters=[given["config"], parameters],
            remappings=remappings,
            output="screen",
            respawn=switches["respawn"],
            respawn_delay=1.0,
        )

    store = {"store": texts["store"]} if "store" in texts else {}
    found = []
    if given["parts"] in ("both", "controller"):
        started = {"autostart": switches["autostart"], "record": switches["record"]}
        found.append(node("controller_node", "nn_controller", {**texts, **started}))
    if given["parts"] in ("both", "pruning"):
        found.append(node("pruning_node", "pruning_service", {**store, "auto_deploy": switches["auto_deploy"]}))
    return found


def generate_launch_description() -> LaunchDescription:
    """Describe what is launched."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=nodes)])
