"""Making columns of one bag's messages: the transitions, the steps joined to them, and the controllers by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.rollouts.bags import Bag, Channels, read_channels
from nncontrol_prune.rollouts.errors import RolloutError
from nncontrol_prune.rollouts.joining import Timeline, match_steps, number_episodes
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


@dataclass(frozen=True)
class BagTable:
    """The transitions of one bag, column by column; `Rollouts` says what the columns mean."""

    path: Path
    stamp: NDArray[np.float64]
    bundle: NDArray[np.int64]
    observation: NDArray[np.float64]
    action: NDArray[np.float64]
    reward: NDArray[np.float64]
    episode: NDArray[np.int64]
    step: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    controllers: list[str]
    warnings: list[str]
    cut: bool
    """Whether the bag ends before its end."""


@dataclass(frozen=True)
class _Messages:
    """The messages of one topic as columns by label, those without a finite stamp left out."""

    columns: dict[str, NDArray[np.float64]]
    time: Timeline
    left_out: int = 0

    def column(self, label: str) -> NDArray[np.float64]:
        return self.columns[label][:, 0]


def read_bag(bag: Bag, controller: str | None) -> BagTable:
    """Read one bag; without transitions its columns are empty.

    Args:
        bag: The bag.
        controller: Name of the controller node, with or without its namespace; None if the bag has only one.

    Raises:
        RolloutError: It cannot be read, or it has several controllers and none of them was asked for.
    """
    channels = read_channels(bag, (TRANSITION, STEP, BUNDLE))
    topic = _transition_topic(bag, channels, controller)
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
    return BagTable(
        path=bag.path,
        stamp=transitions.time.stamp,
        bundle=bundle,
        observation=transitions.columns["observation"],
        action=transitions.columns["action"],
        reward=joined("reward", np.nan),
        episode=number_episodes(transitions.time, _integers(joined("episode", -1)), known, terminated | truncated),
        step=_integers(joined("step", -1)),
        terminated=terminated,
        truncated=truncated,
        controllers=controllers,
        warnings=warnings,
        cut=channels.cut,
    )


def _transition_topic(bag: Bag, channels: Channels, controller: str | None) -> str | None:
    """Return the topic to read; None if no controller left any transition."""
    topics = _labelled(channels, TRANSITION, TRANSITION_LABELS)
    names = {topic.removesuffix(TRANSITION).strip("/"): topic for topic in topics}
    if controller is not None:
        wanted = controller.strip("/")
        names = {name: topic for name, topic in names.items() if wanted in {name, name.rpartition("/")[2]}}
        if topics and not names:
            raise RolloutError(f"{bag.path} holds no transitions of {wanted}; it holds {', '.join(topics)}")
    if len(names) > 1:
        raise RolloutError(f"{bag.path} holds transitions of several controllers: {', '.join(names)}; choose one")
    return next(iter(names.values()), None)


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
    return warnings


def _integers(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.nan_to_num(values, nan=-1.0).astype(np.int64)
