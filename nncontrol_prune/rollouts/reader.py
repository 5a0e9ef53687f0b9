"""Reading rollouts: any number of bags become arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.rollouts.bags import Bag, find_bags
from nncontrol_prune.rollouts.errors import RolloutError
from nncontrol_prune.rollouts.joining import stretches, usual_period
from nncontrol_prune.rollouts.tables import BagTable, read_bag

IDENTIFYING_ROWS = 100
"""First transitions of a bag that tell it from others, however long it grows."""
UNKNOWN = -1
"""Stands for the bundle or the step where the bag does not tell."""


@dataclass(frozen=True)
class Rollouts:
    """Transitions as arrays, one row each, bag after bag in the order they were recorded."""

    stamp: NDArray[np.float64]
    """When the plant was as observed, in s of the plant's clock."""
    bundle: NDArray[np.int64]
    """Which controller acted, as an index into `controllers`; -1 if the bag does not tell."""
    observation: NDArray[np.float64]
    """Observations (rows, n)."""
    action: NDArray[np.float64]
    """Actions (rows, m), as commanded."""
    reward: NDArray[np.float64]
    """Reward of the step that started here; NaN where none was recorded, as on a robot."""
    episode: NDArray[np.int64]
    """Number of the episode, from 0 in order over all bags. On a robot, a pause of more than a second starts one."""
    step: NDArray[np.int64]
    """Number of the step in its episode, as the simulator counts; -1 where none was recorded."""
    terminated: NDArray[np.bool_]
    """Whether the episode ended for good with this step."""
    truncated: NDArray[np.bool_]
    """Whether the episode was cut off after this step."""
    controllers: list[str]
    """The controllers that acted, as `name@digest`."""
    warnings: list[str]
    """What the user should know of the bags, as sentences."""
    bags: list[str]
    """The identity of each bag that the rows, or those that they were taken from, were read from."""

    def __len__(self) -> int:
        return len(self.stamp)

    @property
    def has_rewards(self) -> bool:
        """Whether any step was recorded."""
        return not bool(np.isnan(self.reward).all())

    @property
    def episodes(self) -> NDArray[np.int64]:
        """The number of each episode."""
        return np.unique(self.episode)

    def rows(self, chosen: slice | NDArray[np.intp]) -> Rollouts:
        """Return some of the rows, in ascending order."""
        columns = {name: getattr(self, name)[chosen] for name in self._columns()}
        return replace(self, **columns)

    def _columns(self) -> list[str]:
        return [field.name for field in fields(self) if field.name not in {"controllers", "warnings", "bags"}]

    @cached_property
    def digest(self) -> str:
        """sha256 of all rows and of the controllers: the identity of what was read."""
        digest = hashlib.sha256("\n".join(self.controllers).encode())
        for name in self._columns():
            column: NDArray[np.generic] = getattr(self, name)
            digest.update(f"{name}{column.shape}{column.dtype.str}".encode())
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    @cached_property
    def successors(self) -> NDArray[np.intp]:
        """The rows whose next row is the next transition of the same episode: nothing is missing between them.

        Where the simulator's steps were recorded, a row without one is left out: its episode may have ended there.
        """
        follows = np.zeros(len(self), dtype=bool)
        for episode in stretches(self.episode):
            stamp = self.stamp[episode]
            gap, period = np.diff(stamp), usual_period(stamp)
            one_period = (gap > 0.5 * period) & (gap < 1.5 * period)
            known = ~np.isnan(self.reward[episode])
            follows[episode][:-1] = one_period & (known[:-1] | ~known.any())
        return np.flatnonzero(follows)


def read_rollouts(
    paths: Path | Sequence[Path],
    *,
    observation_size: int | None = None,
    action_size: int | None = None,
    controller: str | None = None,
) -> Rollouts:
    """Read bags, ours or those of `ros2 bag record`, up to the cut where one was cut short.

    Args:
        paths: One or several; each is a bag's directory, an MCAP file, or a folder of bags.
        observation_size: Length of the observation vector that the bags must have; None for any.
        action_size: Length of the action vector, likewise.
        controller: Name of the controller node to read, with its namespace if it has one; needed only if a bag has
            transitions of several.

    Raises:
        RolloutError: A path does not exist or is no bag, a bag has no transitions, its vectors have other lengths than
            asked for or than another bag's, or it has several controllers.
    """
    tables: list[BagTable] = []
    warnings: list[str] = []
    for bag in find_bags(paths):
        table = read_bag(bag, controller)
        warnings += table.warnings
        if not len(table.stamp):
            _report_empty(bag, table, warnings)
            continue
        expected = tables[0] if tables else None
        _check_size(table, "observation", observation_size, expected)
        _check_size(table, "action", action_size, expected)
        tables.append(table)
    if not tables:
        raise RolloutError("; ".join(warnings))
    return _concatenate(tables, warnings)


def _report_empty(bag: Bag, table: BagTable, warnings: list[str]) -> None:
    sentence = f"{bag.path} holds no transitions{'; it was cut short' if table.cut else ''}"
    if not bag.found:
        raise RolloutError(sentence)
    warnings.append(sentence)  # in a folder of bags, one whose recorder was killed at once must not stop the others


def _check_size(table: BagTable, name: str, asked: int | None, other: BagTable | None) -> None:
    size = getattr(table, name).shape[1]
    if asked is not None and size != asked:
        raise RolloutError(f"{table.path} holds {name}s of {size} values, and the controller has {asked}")
    if other is not None and size != (expected := getattr(other, name).shape[1]):
        raise RolloutError(f"{table.path} holds {name}s of {size} values, and {other.path} has {expected}")


def _concatenate(tables: list[BagTable], warnings: list[str]) -> Rollouts:
    controllers = list(dict.fromkeys(name for table in tables for name in table.controllers))
    bundles, episodes, first_episode = [], [], 0
    for table in tables:
        indices = np.array([controllers.index(name) for name in table.controllers] + [UNKNOWN])
        bundles.append(indices[table.bundle])  # -1, for unknown, picks the last
        episodes.append(table.episode + first_episode)
        first_episode += int(table.episode[-1]) + 1
    return Rollouts(
        stamp=np.concatenate([table.stamp for table in tables]),
        bundle=np.concatenate(bundles),
        observation=np.concatenate([table.observation for table in tables]),
        action=np.concatenate([table.action for table in tables]),
        reward=np.concatenate([table.reward for table in tables]),
        episode=np.concatenate(episodes),
        step=np.concatenate([table.step for table in tables]),
        terminated=np.concatenate([table.terminated for table in tables]),
        truncated=np.concatenate([table.truncated for table in tables]),
        controllers=controllers,
        warnings=warnings,
        bags=[_identity(table) for table in tables],
    )


def _identity(table: BagTable) -> str:
    columns = (table.stamp, table.observation, table.action)
    first = b"".join(np.ascontiguousarray(column[:IDENTIFYING_ROWS]).tobytes() for column in columns)
    return hashlib.sha256(first).hexdigest()
