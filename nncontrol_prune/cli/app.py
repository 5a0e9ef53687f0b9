"""The commands of `nncontrol-prune`, put together.

Exit codes: 0 done, 1 failed, 2 usage (an argument or configuration is wrong), 3 rejected by the gate; 130 when
interrupted, by Ctrl-C or another signal that ends a process. With `--json`, standard output is exactly one JSON object.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nncontrol_prune import __version__
from nncontrol_prune.cli.calls import call, make_keys, status
from nncontrol_prune.cli.common import FAILED, INTERRUPTED, REFUSED, USAGE, print_json_error
from nncontrol_prune.cli.importing import importer
from nncontrol_prune.cli.inspect import inspect
from nncontrol_prune.cli.mnist import mnist
from nncontrol_prune.cli.prune import prune
from nncontrol_prune.cli.rollout import rollout
from nncontrol_prune.cli.run import run
from nncontrol_prune.cli.sim import sim
from nncontrol_prune.cli.validate import validate
from nncontrol_prune.processes import end_workers, tell_as_well_as_possible
from nncontrol_prune.transport.signals import interrupt_by_any_signal

UsageError: Any = typer.BadParameter.__mro__[1]
"""What the option parser raises; it is Click's, of which some versions of Typer have a copy of their own."""


class Commands(TyperGroup):
    """Commands that tell an error of the option parser in JSON, too, where that is asked for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Look for `--json` before the arguments are taken apart."""
        ctx.meta["json"] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; what is wrong with its arguments is found out in here."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            if ctx.meta["json"]:
                print_json_error(error.format_message(), USAGE)
            raise


app = typer.Typer(
    cls=Commands,
    help="Prune neural-network controllers from a live loop's rollouts, and swap them in without missing a tick.\n\n"
    "Exit codes: 0 done, 1 failed, 2 usage, 3 rejected by the gate, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (sim, run, rollout, prune, validate, inspect, status, call, mnist):
    app.command()(command)
app.command("keys")(make_keys)
app.add_typer(importer, name="import")


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"nncontrol-prune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    """Options that belong to no command."""


def main() -> None:
    """Run the command line; whatever ends a process interrupts it as Ctrl-C does."""
    interrupt_by_any_signal()
    tell_as_well_as_possible()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a ± that a terminal of ASCII alone cannot show is no failure
    code: Any = FAILED
    try:
        code = _run()
        if sys.stdout is not None:  # as it is where the process began without one
            sys.stdout.flush()
    except OSError as error:  # of --help, --version, and what was held back; commands tell theirs
        if error.errno not in (*REFUSED, errno.EPIPE):
            raise
        _give_output_up(error)
        code = code or FAILED
    if code == INTERRUPTED:
        try:
            end_workers()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            # Taking down the interpreter with all its libraries can take another second, and aborts while threads, such
            # as those of a search, are in them.
            os._exit(INTERRUPTED)
    sys.exit(code)


def _run() -> Any:
    """Run a command and return its exit code, 0 or None where all went well."""
    try:
        app()
    except SystemExit as end:
        return end.code


def _give_output_up(error: OSError) -> None:
    """Tell that standard output cannot be written, and have the rest go nowhere: it would fail at the end once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):  # whoever reads it has read enough
        typer.echo(f"nncontrol-prune: standard output cannot be written: {error.strerror}", err=True)
