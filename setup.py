"""The package for pip and for colcon (ament_python)."""

from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "nncontrol_prune"
SHARED_DIRECTORIES = ("config", "launch", "sim")
"""Installed to share/nncontrol_prune with everything in them."""

# The least versions are ones that were seen to work, and some older ones seen to fail. To have just these:
#   uv pip compile setup.py --extra test --extra train --extra compare --resolution lowest-direct
RUNTIME = [
    # What the robot's computer needs to run a controller: requirements-robot.txt lists the same.
    "mcap>=1.5",
    "numpy>=1.24",
    "onnxruntime>=1.18",
    "pydantic>=2.5",
    "pyyaml>=6.0",
    "pyzmq>=26.0",
    "rich>=13.7",
    "rosbags>=0.10.8",
    "safetensors>=0.4",
    "typer>=0.19",
]
DESKTOP = [
    "bokeh>=3.4",
    "gymnasium[mujoco]>=1.1",
    "jinja2>=3.0",
    "joblib>=1.4",
    "matplotlib>=3.7",
    "mujoco>=3.3",
    "onnx>=1.17",
    "scipy>=1.15",
    "torch>=2.4",
]


def shared_files() -> list[tuple[str, list[str]]]:
    """Return (directory, files) of everything that goes to share/."""
    entries = [
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
    ]
    for root in SHARED_DIRECTORIES:
        for directory in sorted(path for path in [Path(root), *Path(root).rglob("*")] if path.is_dir()):
            files = [str(path) for path in sorted(directory.iterdir()) if path.is_file() and path.suffix != ".pyc"]
            if files:
                entries.append((f"share/{PACKAGE}/{directory.as_posix()}", files))
    return entries


setup(
    name=PACKAGE,
    version="0.1.0",
    description="Prune neural-network controllers from the rollouts of a live loop, and swap them in.",
    license="Apache-2.0",
    maintainer="nncontrol_prune maintainers",
    maintainer_email="maintainers@nncontrol-prune.example",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={f"{PACKAGE}.service": ["*.html"]},
    data_files=shared_files(),
    python_requires=">=3.10",
    install_requires=RUNTIME + DESKTOP,
    extras_require={
        "test": ["pytest>=7.2"],  # without this extra, `colcon test` finds no tests
        "train": ["stable-baselines3>=2.6"],
        "search": ["optuna>=3.5"],
        "compare": ["optuna>=3.5", "torch-pruning>=1.6"],
    },
    entry_points={
        "console_scripts": [
            "nncontrol-prune = nncontrol_prune.cli:main",
            # `ros2 run nncontrol_prune controller_node`, and so on
            "controller_node = nncontrol_prune.ros.entry_points:controller_node",
            "pruning_node = nncontrol_prune.ros.entry_points:pruning_node",
            "simulator_node = nncontrol_prune.ros.entry_points:simulator_node",
        ]
    },
    zip_safe=False,
)
