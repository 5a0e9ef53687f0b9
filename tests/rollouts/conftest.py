"""Small bags that tests share."""

from __future__ import annotations

import resource
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

from nncontrol_prune.rollouts.writer import BagWriter

DENSE, PRUNED = f"dense@{'a' * 64}", f"pruned@{'b' * 64}"

WriteBag = Callable[..., Path]


@pytest.fixture
def write_bag(tmp_path: Path) -> WriteBag:
    """Return a function that writes a bag: two episodes at 100 Hz, a swap at the second's start.

    Observation i of row k is k + i / 10, action -k, reward k.
    """

    def write(
        name: str = "bag",
        *,
        rows: int = 20,
        observation_size: int = 3,
        action_size: int = 1,
        robot: bool = False,
        lost_steps: Collection[int] = (),
        lost_transitions: Collection[int] = (),
        jitter: float = 0.0,
        **names: str,
    ) -> Path:
        length = rows // 2
        with BagWriter(
            tmp_path / name, observation_size=observation_size, action_size=action_size, rate=100.0, **names
        ) as writer:
            for row in range(rows):
                stamp, episode = row * 0.01, row // length
                if row % length == 0:
                    writer.bundle(episode, (DENSE, PRUNED)[episode])
                if row not in lost_transitions:
                    observation = row + np.arange(observation_size) / 10
                    writer.transition(stamp, episode, observation, np.full(action_size, -row))
                if not robot and row not in lost_steps:
                    last = row % length == length - 1
                    writer.step(
                        stamp + jitter, episode, row % length, row, last and episode == 0, last and episode == 1
                    )
        return tmp_path / name

    return write


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """Return a context manager that stands for a full disk: no file may become larger, in child processes neither."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))

    return limit
