"""Reading rollouts: any number of bags become arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.rollouts.bags import Bag, Channels, find_bags, read_channels
from nncontrol_prune.rollouts.errors import RolloutError
from nncontrol_prune.rollouts.joining import Timeline, match_steps, number_episodes, stretches, usual_period
from nncontrol_prune.rollouts.schema import (
    ARRAY,
    STEP_LABELS,
    STRING,
    TRANSITION_LABELS,
    deserialize_array,
    deserialize_arrays,
    deserialize_string,
    parts,
)

TRANSITION, STEP, BUNDLE = "/transition", "/step", "/bundle"
"""How the topics end."""

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
        columns = {name: getattr(self, name)[chosen] for name in self.columns()}
        return replace(self, **columns)

    @classmethod
    def columns(cls) -> list[str]:
        """Return the names of the fields that have a value for each row."""
        return [field.name for field in fields(cls) if field.name not in {"controllers", "warnings", "bags"}]

    @cached_property
    def digest(self) -> str:
        """sha256 of all rows and of the controllers: the identity of what was read."""
        digest = hashlib.sha256("\n".join(self.controllers).encode())
        for name in self.columns():
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
) -> Rollouts:
    """Read bags, ours or those of `ros2 bag record`, up to the cut where one was cut short.

    Args:
        paths: One or several; each is a bag's directory, an MCAP file, or a folder of bags.
        observation_size: Length of the observation vector that the bags must have; None for any.
        action_size: Length of the action vector, likewise.

    Raises:
        RolloutError: A path does not exist or is no bag, a bag has no transitions, its vectors have other lengths than
            asked for or than another bag's, or it has several controllers.
    """
    asked = {"observation": observation_size, "action": action_size}
    sizes: dict[str, tuple[int, object]] = {name: (n, "the controller") for name, n in asked.items() if n is not None}
    found: list[Rollouts] = []
    warnings: list[str] = []
    for bag in find_bags(paths):
        rollouts = _read_bag(bag)
        warnings += rollouts.warnings
        if not len(rollouts):
            if not bag.found:  # in a folder of bags, one whose recorder was killed at once must not stop the others
                raise RolloutError(warnings[-1])
            continue
        for name in asked:
            size = getattr(rollouts, name).shape[1]
            wanted, whose = sizes.setdefault(name, (size, bag.path))
            if size != wanted:
                raise RolloutError(f"{bag.path} holds {name}s of {size} values, and {whose} has {wanted}")
        found.append(rollouts)
    if not found:
        raise RolloutError("; ".join(warnings))
    return _joined(found, warnings)


def _joined(bags: list[Rollouts], warnings: list[str]) -> Rollouts:
    """Return the rows of all bags, in one numbering of controllers and episodes."""
    controllers = list(dict.fromkeys(name for bag in bags for name in bag.controllers))
    numbered, first_episode = list[Rollouts](), 0
    for bag in bags:
        indices = np.array([controllers.index(name) for name in bag.controllers] + [UNKNOWN])
        bundle = indices[bag.bundle]  # -1, for unknown, picks the last
        numbered.append(replace(bag, bundle=bundle, episode=bag.episode + first_episode))
        first_episode += int(bag.episode[-1]) + 1
    columns = {name: np.concatenate([getattr(bag, name) for bag in numbered]) for name in Rollouts.columns()}
    identities = [identity for bag in bags for identity in bag.bags]
    return Rollouts(**columns, controllers=controllers, warnings=warnings, bags=identities)


@dataclass(frozen=True)
class _Messages:
    """The messages of one topic as columns by label, those without a finite stamp left out."""

    columns: dict[str, NDArray[np.float64]]
    time: Timeline
    left_out: int = 0

    def column(self, label: str) -> NDArray[np.float64]:
        return self.columns[label][:, 0]


def _read_bag(bag: Bag) -> Rollouts:
    """Read one bag; without transitions its columns are empty."""
    channels = read_channels(bag, (TRANSITION, STEP, BUNDLE))
    topic = _transition_topic(bag, channels)
    transitions = _messages(bag, channels, topic, TRANSITION_LABELS)
    step_topic = _step_topic(channels, topic) if topic else None
    steps = _messages(bag, channels, step_topic, STEP_LABELS)

    rows = len(transitions.time.stamp)
    match = match_steps(transitions.time, steps.time) if rows else np.empty(0, dtype=np.int64)
    known = match >= 0

    def joined(label: str, missing: float) -> NDArray[np.float64]:
        return np.append(steps.column(label), missing)[match]  # -1 picks the last

    terminated, truncated = joined("terminated", 0) != 0, joined("truncated", 0) != 0
    bundle, controllers = _controllers(transitions, _references(bag, channels, topic))
    warnings = _warnings(bag, channels, transitions, bundle)
    recorded = len(steps.time.stamp)
    if 2 * known.sum() < min(rows, recorded):
        warnings.append(f"{bag.path}: only {known.sum():,} of {recorded:,} steps have a transition's stamp")
    stamp, observation, action = (transitions.columns[name] for name in ("stamp", "observation", "action"))
    first = b"".join(column[:IDENTIFYING_ROWS].tobytes() for column in (stamp, observation, action))
    return Rollouts(
        stamp=transitions.time.stamp,
        bundle=bundle,
        observation=observation,
        action=action,
        reward=joined("reward", np.nan),
        episode=number_episodes(transitions.time, _integers(joined("episode", -1)), known, terminated | truncated),
        step=_integers(joined("step", -1)),
        terminated=terminated,
        truncated=truncated,
        controllers=controllers,
        warnings=warnings,
        bags=[hashlib.sha256(first).hexdigest()],
    )


def _transition_topic(bag: Bag, channels: Channels) -> str | None:
    """Return the topic to read; None if no controller left any transition."""
    topics = _labelled(channels, TRANSITION, TRANSITION_LABELS)
    if len(topics) > 1:
        names = ", ".join(topic.removesuffix(TRANSITION).strip("/") for topic in topics)
        raise RolloutError(
            f"{bag.path} holds transitions of several controllers: {names}; record each in a bag of its own, as "
            "`ros2 bag record` does with the topics of one"
        )
    return topics[0] if topics else None


def _step_topic(channels: Channels, transition_topic: str) -> str | None:
    """Return the steps of the simulator in the controller's namespace, or of the only one there is."""
    topics = _labelled(channels, STEP, STEP_LABELS)
    namespace = transition_topic.rsplit("/", 2)[0]
    near = [topic for topic in topics if topic.rsplit("/", 2)[0] == namespace] or topics
    return near[0] if len(near) == 1 else None


def _labelled(channels: Channels, ending: str, labels: Iterable[str]) -> list[str]:
    """Return the topics that end so and whose first message has these labels: others may use the name too."""
    found = []
    for topic, messages in channels.messages.items():
        if messages and topic.endswith(ending) and channels.types[topic] == ARRAY:
            try:
                layout, _ = deserialize_array(messages[0][1])
            except ValueError:
                continue
            if set(labels) <= parts(layout).keys():
                found.append(topic)
    return sorted(found)


def _messages(bag: Bag, channels: Channels, topic: str | None, labels: Iterable[str]) -> _Messages:
    if topic is None:
        return _Messages({label: np.empty((0, 1)) for label in labels}, Timeline(np.empty(0), np.empty(0, np.int64)))
    log_times, messages = zip(*channels.messages[topic], strict=True)
    try:
        layout, values = deserialize_arrays(list(messages))
    except ValueError as error:
        raise RolloutError(f"{bag.path}: {topic}: {error}") from error
    columns = {label: values[:, part] for label, part in parts(layout).items()}
    good = np.isfinite(columns["stamp"][:, 0])
    columns = {label: np.ascontiguousarray(column[good]) for label, column in columns.items()}
    time = Timeline(columns["stamp"][:, 0], np.array(log_times, dtype=np.int64)[good])
    return _Messages(columns, time, left_out=int((~good).sum()))


def _references(bag: Bag, channels: Channels, transition_topic: str | None) -> list[tuple[int, int, str]]:
    """Return log time, swap count and `name@digest` of each bundle message."""
    if transition_topic is None:
        return []
    topic = transition_topic.removesuffix(TRANSITION) + BUNDLE
    if channels.types.get(topic) != STRING:
        return []
    references = []
    for log_time, message in channels.messages[topic]:
        try:
            swaps, reference = deserialize_string(message).split(" ", 1)
            references.append((log_time, int(swaps), reference))
        except ValueError as error:
            raise RolloutError(f"{bag.path}: {topic}: a message is not a swap count and name@digest") from error
    return references


def _controllers(transitions: _Messages, references: list[tuple[int, int, str]]) -> tuple[NDArray[np.int64], list[str]]:
    """Return which controller acted in each transition, as an index, and the controllers."""
    names = list(dict.fromkeys(reference for _, _, reference in references))
    bundle = np.full(len(transitions.time.stamp), -1, dtype=np.int64)
    swaps = transitions.column("bundle")
    for count in {count for _, count, _ in references}:
        # A loop that was started again counts from 0 again: the latest message before the transition holds. The
        # first holds for what comes before it, too: the two topics may be recorded in either order.
        known = sorted((log_time, names.index(name)) for log_time, swap, name in references if swap == count)
        rows = np.flatnonzero(swaps == count)
        latest = np.searchsorted([log_time for log_time, _ in known], transitions.time.log_time[rows], side="right") - 1
        bundle[rows] = np.array([index for _, index in known])[np.maximum(latest, 0)]
    return bundle, names


def _warnings(bag: Bag, channels: Channels, transitions: _Messages, bundle: NDArray[np.int64]) -> list[str]:
    rows = len(bundle)
    warnings = []
    if channels.cut and rows:
        until = f"{rows:,} transitions up to t={transitions.time.stamp[-1]:.2f} s"
        warnings.append(f"{bag.path} was cut short, or is still being written: read {until}")
    if channels.damaged:
        warnings.append(f"{bag.path} is damaged: {channels.damaged} chunks of messages were left out")
    if transitions.left_out:
        warnings.append(f"{bag.path}: {transitions.left_out:,} transitions without a finite stamp were left out")
    vectors = np.hstack([transitions.columns["observation"], transitions.columns["action"]])
    if bad := int((~np.isfinite(vectors)).any(axis=1).sum()):
        warnings.append(f"{bag.path}: {bad:,} of {rows:,} transitions hold NaN or infinity")
    if unknown := int((bundle < 0).sum()):
        warnings.append(f"{bag.path} does not tell which controller acted in {unknown:,} of {rows:,} transitions")
    if not rows:
        warnings.append(f"{bag.path} holds no transitions{'; it was cut short' if channels.cut else ''}")
    return warnings


def _integers(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.nan_to_num(values, nan=-1.0).astype(np.int64)
