"""Files and directories that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".writing-"
"""Names that start so are unfinished, and nobody reads them. The id of the writing process follows."""


def _prefix() -> str:
    return f"{TEMPORARY_PREFIX}{os.getpid()}-"


def remove_unfinished(directory: Path) -> None:
    """Remove what processes that are no more had half written in a directory."""
    for path in directory.glob(f"{TEMPORARY_PREFIX}*"):
        owner = path.name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]
        if owner.isdigit() and _alive(int(owner)):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def fsync_directory(path: Path) -> None:
    """Make renames within a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the operating system name a file; one that comes of writing, as of a full disk, names none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk; for files nobody reads before a later rename."""
    with naming(path), path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file: a reader, or the next boot after a power cut, finds the old contents or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=_prefix(), dir=path.parent)
    temporary = Path(name)
    try:
        os.close(descriptor)
        write_synced(temporary, data)
        temporary.chmod(0o644)
        temporary.replace(path)
        fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def held_directory(path: Path) -> Iterator[None]:
    """Hold a directory, made where there is none, against all who would hold it too; whoever dies lets go of it.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: It cannot be made or read.
    """
    path.mkdir(parents=True, exist_ok=True)
    with _held(os.open(path, os.O_RDONLY), path):
        yield


@contextmanager
def held_file(path: Path) -> Iterator[None]:
    """Hold what an empty file stands for, as `held_directory` holds a directory. The file stays.

    Raises:
        BlockingIOError: It is held already.
        OSError: The file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _held(os.open(path, os.O_RDONLY | os.O_CREAT, 0o644), path):
        yield


@contextmanager
def _held(descriptor: int, path: Path) -> Iterator[None]:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"{path} is in use by another process; wait for its end, or name another") from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path` that becomes `path` when the block ends without an error.

    Raises:
        FileExistsError: `path` exists already.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    with _unfinished_directory(path) as temporary:
        yield temporary
        temporary.chmod(0o755)
        fsync_directory(temporary)
        try:
            temporary.rename(path)
        except OSError as error:
            raise FileExistsError(f"{path} exists already") from error
        fsync_directory(path.parent)


@contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that takes the place of the one at `path` when the block ends without an error.

    For an instant between two renames there is neither; if the second one fails, the old directory is put back.
    """
    with _unfinished_directory(path) as old:
        with new_directory(old / "new") as temporary:
            yield temporary
        path.rename(old / "old")
        try:
            (old / "new").rename(path)
        except OSError:
            (old / "old").rename(path)
            raise
        fsync_directory(path.parent)


@contextmanager
def _unfinished_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; what is left of it in the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_prefix(), dir=path.parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
