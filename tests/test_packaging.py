"""What pip and colcon make of the repository."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import nncontrol_prune

ROOT = Path(__file__).resolve().parents[1]
ROSDEP_NAMES = {"pyyaml": "yaml", "pyzmq": "zmq"}
"""What rosdep's keys call a package where it is not what PyPI calls it."""

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="runs in a source tree only")


@pytest.fixture
def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py tells setuptools."""
    setuptools = pytest.importorskip("setuptools")
    arguments: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **given: arguments.update(given))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return arguments


def package_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", requirement)[0].lower() for requirement in requirements}


def test_package_xml_is_valid() -> None:
    package = pytest.importorskip("catkin_pkg.package", reason="catkin_pkg is not installed")
    warnings: list[str] = []
    package.parse_package(str(ROOT / "package.xml"), warnings=warnings).validate(warnings=warnings)
    assert warnings == []


def test_colcon_takes_the_package_for_ament_python() -> None:
    pytest.importorskip("colcon_ros", reason="colcon-ros is not installed")
    pytest.importorskip("colcon_package_information", reason="colcon-package-information is not installed")
    command = [sys.executable, "-m", "colcon", "--log-base", "/dev/null", "list", "--paths", str(ROOT)]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split("\t")[::2] for line in listed.stdout.splitlines()] == [["nncontrol_prune", "(ros.ament_python)"]]


def test_no_project_table_hides_the_entry_points() -> None:
    assert not re.search(r"^\[project[\].]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_executables_go_where_ros2_run_looks() -> None:
    lines = (ROOT / "setup.cfg").read_text().splitlines()
    assert [line.split(" = ")[1] for line in lines if " = " in line] == ["$base/lib/nncontrol_prune"] * 2


def test_versions_agree(setup_arguments: dict[str, Any]) -> None:
    declared = ElementTree.parse(ROOT / "package.xml").findtext("version")
    assert declared == setup_arguments["version"] == nncontrol_prune.__version__


def test_package_xml_names_every_dependency(setup_arguments: dict[str, Any]) -> None:
    text = (ROOT / "package.xml").read_text()
    keys = {element.text for element in ElementTree.fromstring(text).findall("exec_depend")}
    comments = set(" ".join(re.findall(r"<!--(.*?)-->", text, re.DOTALL)).split())
    for name in package_names(setup_arguments["install_requires"]):
        assert f"python3-{ROSDEP_NAMES.get(name, name)}" in keys or name in comments, name


def test_everything_shared_is_installed(setup_arguments: dict[str, Any]) -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git work tree")
    command = ["git", "ls-files", "-z", "--", "config", "launch", "sim"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    installed = {name: directory for directory, names in setup_arguments["data_files"] for name in names}
    assert tracked <= installed.keys()
    for name in tracked:
        assert installed[name] == f"share/nncontrol_prune/{Path(name).parent.as_posix()}"


def test_ament_finds_the_package(setup_arguments: dict[str, Any]) -> None:
    files = dict(setup_arguments["data_files"])
    assert files["share/ament_index/resource_index/packages"] == ["resource/nncontrol_prune"]
    assert files["share/nncontrol_prune"] == ["package.xml"]
    assert all(not Path(name).is_absolute() and (ROOT / name).is_file() for names in files.values() for name in names)


def robots_packages() -> list[str]:
    lines = (ROOT / "requirements-robot.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_robot_needs_no_torch(setup_arguments: dict[str, Any]) -> None:
    assert set(robots_packages()) <= set(setup_arguments["install_requires"])
    assert not package_names(robots_packages()) & {"torch", "torch-pruning", "mujoco"}


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        (["inspect", "cartpole_swingup_sac"], 0, "to find the groups of channels takes torch"),
        (["keys", "robot-keys"], 0, "to the other machine over a safe channel"),
        (["status", "--port", "PORT"], 1, "no answer from the controller"),
        (["rollout", "cartpole_swingup_sac", "--out", "bag"], 1, "which is not installed here, as on a robot"),
        (["run", "cartpole_swingup_sac", "--duration", "0.5", "--port", "PORT"], 0, "0 at 100 Hz"),
        (["run", "cartpole_swingup_sac", "--pruning"], 2, "--pruning takes torch, which is not installed here"),
        (["mnist"], 1, "needs the package torch, which is not installed here, as on a robot's computer"),
    ],
)
def test_commands_on_a_robot(
    setup_arguments: dict[str, Any], tmp_path: Path, port: int, command: list[str], code: int, told: str
) -> None:
    arguments = [str(port) if argument == "PORT" else argument for argument in command]
    missing = package_names(setup_arguments["install_requires"]) - package_names(robots_packages())
    script = "import sys; sys.modules.update(dict.fromkeys({!r})); from nncontrol_prune.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", script.format(missing), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == code, ran.stderr
    assert told in " ".join((ran.stdout + ran.stderr).split())
    assert "Traceback" not in ran.stderr
