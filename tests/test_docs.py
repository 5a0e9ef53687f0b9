"""The documentation's Python is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_any_module_is_pruned_as_the_documentation_shows(capsys) -> None:
    text = (DOCS / "pruning.md").read_text()
    block = re.search(r"<!-- tests/test_docs.py runs this block -->\n```python\n(.*?)```", text, re.S)
    assert block is not None
    names: dict[str, object] = {}
    exec(compile(block[1], "pruning.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "0.3: " in printed
    assert "inter-component" in printed
    assert re.search(r"60\.\d% removed|59\.\d% removed", printed)
