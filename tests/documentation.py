"""Blocks of the documentation that tests run as they stand there; a comment above each says which test that is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"


def block(page: Path, comment: str, language: str) -> str:
    """Return the block that stands below `<!-- comment -->`."""
    found = re.search(rf"<!-- {re.escape(comment)} -->\n```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    assert found is not None, f"{page.name} has no block of {language} below {comment!r}"
    return found[1]


def commands(page: Path, comment: str) -> list[str]:
    """Return the commands of such a block."""
    lines = block(page, comment, "sh").replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]
