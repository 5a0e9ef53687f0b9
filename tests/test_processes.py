from __future__ import annotations

import pytest

from nncontrol_prune.processes import how_it_ended


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "ended with status 0"),
        (1, "ended with status 1"),
        (-9, "was killed by signal 9 (SIGKILL)"),
        (-40, "was killed by signal 40"),
    ],
)
def test_end_of_a_process_is_told_in_words(status: int, words: str) -> None:
    assert how_it_ended(status) == words
