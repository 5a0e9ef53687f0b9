"""The documentation's Python is run as it stands there, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from nncontrol_prune.cli.app import app
from nncontrol_prune.config import load_config
from nncontrol_prune.controllers.bundle import load_bundle
from nncontrol_prune.plants.environments import environment_specs
from tests.documentation import DOCS, block, commands


def test_any_module_is_pruned_as_the_documentation_shows(capsys, tmp_path: Path, monkeypatch) -> None:
    program = block(DOCS / "pruning.md", "tests/test_docs.py runs this block", "python")
    names: dict[str, object] = {}
    exec(compile(program, "pruning.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "0.3: " in printed
    assert "inter-component" in printed
    assert re.search(r"60\.\d% removed|59\.\d% removed", printed)
    monkeypatch.chdir(tmp_path)
    exec(compile(block(DOCS / "pruning.md", "tests/test_docs.py runs this block after the one above", "python"),
                 "pruning.md", "exec"), names)  # fmt: skip
    assert "µs after" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "smaller.onnx")
    rows = np.ones((5, 6), np.float32)
    with torch.no_grad():
        expected = names["smaller"](torch.as_tensor(rows))
    np.testing.assert_allclose(session.run(None, {"x": rows})[0], expected, rtol=1e-4, atol=1e-5)
    exec(compile(block(DOCS / "pruning.md", "tests/test_docs.py runs this block after the first one", "python"),
                 "pruning.md", "exec"), names)  # fmt: skip
    assert re.search(r"error 0\.\d+ by the outgoing weights", capsys.readouterr().out)
    exec(compile(block(DOCS / "pruning.md", "tests/test_docs.py runs this block for the loop", "python"),
                 "pruning.md", "exec"), names)  # fmt: skip
    assert re.search(r"chosen: .*, of gradient, uniform, \w+_on_policy\n", capsys.readouterr().out)


def test_loop_of_ones_own_reads_a_bundle_as_the_documentation_shows(monkeypatch) -> None:
    monkeypatch.chdir(DOCS.parent)
    exec(compile(block(DOCS / "robot.md", "tests/test_docs.py runs this block too", "python"), "robot.md", "exec"), {})


def test_onnx_file_is_imported_as_the_documentation_shows(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sim").symlink_to(DOCS.parent / "sim")
    (command,) = commands(DOCS / "onnx.md", "tests/test_docs.py runs this block")
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    assert load_bundle(tmp_path / "out" / "again").manifest.architecture.hidden == (256, 256)


def test_task_in_the_documentation_fits_the_hopper(tmp_path: Path) -> None:
    path = tmp_path / "setup.yaml"
    path.write_text(block(DOCS / "validation.md", "tests/test_docs.py reads this block", "yaml"))
    task = load_config(path).pruning_service.gate.task
    assert task is not None
    specs = environment_specs("Hopper-v5")
    assert task.mismatch(specs.observation.size, specs.states) is None
    assert task.success == "height within 0.3 m of its reference for the last 1 s"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"
