"""The command line, `nncontrol-prune`.

Exit codes: 0 done, 1 failed, 2 usage (an argument or configuration is wrong), 3 rejected by the gate; 130 when
interrupted. With `--json`, standard output is exactly one JSON object.
"""

from __future__ import annotations

import os
import sys

import typer

from nncontrol_prune.cli.calls import call, make_keys, status
from nncontrol_prune.cli.common import INTERRUPTED
from nncontrol_prune.cli.importing import importer
from nncontrol_prune.cli.inspect import inspect
from nncontrol_prune.cli.mnist import mnist
from nncontrol_prune.cli.prune import prune
from nncontrol_prune.cli.rollout import rollout
from nncontrol_prune.cli.run import run
from nncontrol_prune.cli.sim import sim
from nncontrol_prune.cli.validate import validate

app = typer.Typer(
    help="Prune neural-network controllers from a live loop's rollouts, and swap them in without missing a tick.\n\n"
    "Exit codes: 0 done, 1 failed, 2 usage, 3 rejected by the gate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (sim, run, rollout, prune, validate, inspect, status, call, mnist):
    app.command()(command)
app.command("keys")(make_keys)
app.add_typer(importer, name="import")


def main() -> None:
    """Run the command line."""
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            # All is cleaned up by now; taking down the interpreter with all its libraries can take another second.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise
