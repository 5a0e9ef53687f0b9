"""The README's commands are run as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documentation import DOCS, README, commands

COMMANDS = commands(README, "tests/test_readme.py runs this block")


def test_commands_for_your_own_controller_work_in_their_order(tmp_path: Path, port: int) -> None:
    assert len(COMMANDS) >= 5
    environment = {key: value for key, value in os.environ.items() if key != "NNCONTROL_PRUNE_STORE"}
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert program == "nncontrol-prune"
        if arguments[0] == "sim":
            arguments += ["--port", str(port)]
        done = subprocess.run(
            [sys.executable, "-m", "nncontrol_prune.cli", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("path", [README, *sorted(DOCS.glob("*.md"))], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target
