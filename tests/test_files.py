from __future__ import annotations

import errno
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from nncontrol_prune.files import held_directory, held_file, naming

Hold = Callable[[Path], AbstractContextManager[None]]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("hold", [held_directory, held_file])
def test_what_is_held_is_refused_to_others_until_it_is_let_go_of(hold: Hold, tmp_path: Path) -> None:
    path, message = tmp_path / "not" / "there", " is in use by another process; wait for its end"
    before = open_files()
    with hold(path):
        while_held = open_files()
        with pytest.raises(BlockingIOError, match=f"^{re.escape(str(path) + message)}"), hold(path):
            pass
        assert open_files() == while_held
        with hold(tmp_path / "another"):
            pass
    assert open_files() == before
    assert path.exists()
    with hold(path):
        pass


@pytest.mark.parametrize("hold", [held_directory, held_file])
def test_error_of_who_holds_a_place_is_passed_on_and_the_place_let_go_of(hold: Hold, tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError, match=r"^a pipe is full$"), hold(tmp_path / "place"):
        raise BlockingIOError("a pipe is full")
    with hold(tmp_path / "place"):
        pass


@pytest.mark.parametrize(("given", "told"), [((), "place"), (("another",), "another")])
def test_error_of_writing_names_the_file(given: tuple[str, ...], told: str) -> None:
    with pytest.raises(OSError, match=f"^.Errno 28. full: '{told}'$"), naming(Path("place")):
        raise OSError(errno.ENOSPC, "full", *given)
