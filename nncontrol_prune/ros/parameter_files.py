"""What parameter files say to every node, and not to one: keys there may be another node's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml


def unaddressed_keys(node: str, arguments: Sequence[str] | None = None) -> set[str]:
    """Return the keys that a command line's parameter files give to all nodes and not to this one by its name.

    Args:
        node: Name of the node.
        arguments: The command line; by default the process's.
    """
    arguments = sys.argv if arguments is None else arguments
    everybodys: set[str] = set()
    addressed: set[str] = set()
    for option, value in pairwise(arguments):
        if option != "--params-file":
            continue
        sections = yaml.safe_load(Path(value).read_bytes())
        for name, section in (sections or {}).items():
            keys = set(_flattened(section.get("ros__parameters") or {}))
            addressee = str(name).rpartition("/")[2]
            if addressee == node:
                addressed |= keys
            elif "*" in addressee and not _written_by_launch(value):
                everybodys |= keys
    return everybodys - addressed


def _written_by_launch(file: str) -> bool:
    """Return whether a file is one that launch wrote for this node alone, from what a launch file says."""
    return Path(file).name.startswith("launch_params_")


def _flattened(values: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for name, value in values.items():
        if isinstance(value, dict):
            keys += _flattened(value, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys
