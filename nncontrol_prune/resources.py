"""Where the files that ship with the package lie: MJCF models, controllers, configuration."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGE = "nncontrol_prune"


def share_directory() -> Path:
    """Return the directory that holds `sim/`, `config/` and `launch/`.

    That is the repository in a source tree, `share/nncontrol_prune` of an ament prefix, or of the Python
    environment the package was installed into.

    Raises:
        FileNotFoundError: No such directory exists; the installation is incomplete.
    """
    candidates = [Path(__file__).resolve().parents[1]]
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    # An ament install puts the package at <prefix>/lib/pythonX.Y/site-packages/nncontrol_prune.
    prefixes += [str(parent) for parent in Path(__file__).resolve().parents[3:6]]
    candidates += [Path(prefix) / "share" / PACKAGE for prefix in prefixes if prefix]
    for candidate in candidates:
        if (candidate / "sim" / "assets").is_dir():
            return candidate
    raise FileNotFoundError(
        f"the files of {PACKAGE} (sim/assets) are in none of {', '.join(map(str, candidates))}; reinstall the package"
    )


def shipped_controllers() -> dict[str, Path]:
    """Return the controllers that ship with the package, by name."""
    directory = share_directory() / "sim" / "controllers"
    return {path.parent.name: path.parent for path in sorted(directory.glob("*/manifest.json"))}
