"""The command line, `nncontrol-prune`; its commands are put together in app.py."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line; a Ctrl-C that comes while libraries are imported ends it without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the commands handle it, once there is something to end
    from nncontrol_prune.cli import app

    app.main()
