"""What the commands share: options, exit codes, and how errors and results are told."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from nncontrol_prune.controllers.specs import NAME_PATTERN, Spec

if TYPE_CHECKING:
    from nncontrol_prune.controllers.bundle import Bundle

FAILED, USAGE, REJECTED, INTERRUPTED = 1, 2, 3, 130
REFUSED = (
    *(None, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EMFILE, errno.ENFILE),
)
"""What the operating system, or we in its words, say where a file cannot be had, and no fault of ours."""


def _from_home(path: Path | None) -> Path | None:
    """Take `~` for the home directory in what an environment variable says; the shell does so in options alone."""
    return None if path is None else path.expanduser()


def _checked_name(name: str | None) -> str | None:
    """Refuse a name that no bundle may have before the work is done, not after."""
    if name is not None and re.fullmatch(NAME_PATTERN, name) is None:
        raise typer.BadParameter(f"{name!r} is no name of a controller: a letter, then up to 99 letters, digits, _ . -")
    return name


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Env = Annotated[str | None, typer.Option(help="Gymnasium MuJoCo id; default: what the controller was made for.")]
Store = Annotated[Path, typer.Option(help="The bundle store.", envvar="NNCONTROL_PRUNE_STORE", callback=_from_home)]
LoopStore = Annotated[
    Path | None,
    typer.Option(help="The bundle store; default OUT/store.", envvar="NNCONTROL_PRUNE_STORE", callback=_from_home),
]
Name = Annotated[
    str | None, typer.Option(help="Name of the new controller; default: after the old one.", callback=_checked_name)
]
Port = Annotated[int, typer.Option(min=1024, max=65530, help="First of five consecutive TCP ports.")]
Host = Annotated[str, typer.Option(help="Address; anything but loopback needs --keys.")]
Keys = Annotated[Path | None, typer.Option(help="Directory with CURVE keys, made by `nncontrol-prune keys`.")]
Sparsity = Annotated[float | None, typer.Option(help="Share of the parameters to remove, in [0, 1).")]
Config = Annotated[
    Path | None, typer.Option(help="Configuration file; its section pruning_service gives what no option does.")
]
DEFAULT_STORE = Path("out/store")

Command = TypeVar("Command", bound=Callable[..., None])


def handled(command: Command) -> Command:
    """Turn every expected error into one sentence and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        from nncontrol_prune.config import ConfigError

        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            _fail("interrupted", INTERRUPTED, kwargs)
        except ConfigError as error:
            _fail(str(error), USAGE, kwargs)
        except ModuleNotFoundError as error:
            if (error.name or "nncontrol_prune").startswith("nncontrol_prune"):
                raise
            _fail(
                f"this needs the package {error.name}, which is not installed here, as on a robot's computer "
                "(requirements-robot.txt); do it where all of nncontrol_prune is",
                FAILED,
                kwargs,
            )
        except Exception as error:
            # Ours are sentences for the user; anything else is a fault that deserves its traceback.
            if type(error).__module__.startswith("nncontrol_prune."):
                _fail(str(error), FAILED, kwargs)
            if isinstance(error, OSError) and error.errno in REFUSED:
                _fail(str(error), FAILED, kwargs)
            raise

    return run  # type: ignore[return-value]


def _fail(message: str, code: int, options: dict[str, Any]) -> NoReturn:
    if options.get("as_json"):
        print_json_error(message, code)
    print(f"nncontrol-prune: {message}", file=sys.stderr)
    raise typer.Exit(code)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on standard output."""
    print(json.dumps(_without_nan(value), default=str, allow_nan=False))


def print_json_error(message: str, code: int) -> None:
    """Print what went wrong as one JSON object; where standard output is what fails, standard error alone says so."""
    with contextlib.suppress(OSError):
        print_json({"error": message, "exit_code": code})


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not know, by null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def environment_of(bundle: Bundle, asked: str | None) -> str:
    """Return the environment asked for, or else the one the controller was made for."""
    from nncontrol_prune.config import ConfigError

    environment = asked or bundle.manifest.environment
    if environment is None:
        raise ConfigError(f"{bundle.manifest.name} does not say which environment it was made for; give one with --env")
    return environment


def setting(defaults: Spec, name: str, text: str, **options: Any) -> Any:
    """Return an option that takes the place of what a configuration, or else the default, says."""
    value = getattr(defaults, name)
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return typer.Option(help=text, show_default=False if value is None else shown, **options)


def with_options(settings: Spec, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of settings, with those of the options that were given in their place."""
    return {**settings.model_dump(), **{name: value for name, value in options.items() if value is not None}}


def check_new(path: Path) -> None:
    """Refuse to overwrite, or to write where nothing can be, before the work is done and not after."""
    if path.exists():
        raise FileExistsError(f"{path} exists already; remove it or name another")
    check_writable(path.parent)


def new_bag(out: Path) -> Path:
    """Return where a loop that begins now records."""
    return out / "bags" / f"{datetime.now(timezone.utc):%Y-%m-%dT%H-%M-%S}"


def check_writable(directory: Path) -> None:
    """Check before the work that its results can be written into a directory, which need not be there yet.

    Raises:
        NotADirectoryError: It, or what it lies in, is a file; or the working directory is gone.
        PermissionError: It may not be written.
    """
    try:
        absolute = directory.absolute()
    except FileNotFoundError as error:
        raise NotADirectoryError(f"nothing can be written into {directory}: the working directory is gone") from error
    nearest = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise NotADirectoryError(f"nothing can be written into {directory}: {nearest} is no directory; name another")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"nothing can be written into {directory}: {nearest} may not be written; name another")
