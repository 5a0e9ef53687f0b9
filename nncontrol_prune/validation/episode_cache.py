"""Episodes that were run before, so that a dense controller's need not be run for every candidate."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import mujoco
import onnxruntime
from pydantic import ValidationError

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.files import naming
from nncontrol_prune.plants.conditions import Conditions
from nncontrol_prune.plants.environments import environment_digest
from nncontrol_prune.plants.tasks import Task
from nncontrol_prune.validation.metrics import Episode

VERSION = 3
"""Of what an episode's metrics mean and how plants are stepped: another one finds nothing that was kept before."""


class EpisodeCache:
    """A directory of episodes by controller and environment; any number of processes may use it at once.

    Where an environment's model, its class or its registration changes, nothing is found of what was kept before.

    Args:
        root: The directory; made on the first write.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, bundle: Bundle, environment: str, conditions: Conditions, task: Task) -> dict[int, Episode]:
        """Return the episodes that are kept, by seed."""
        episodes: dict[int, Episode] = {}
        try:
            lines = self._file(bundle, environment, conditions, task).read_bytes().splitlines()
        except FileNotFoundError:
            return episodes
        for line in lines:
            try:
                episode = Episode.model_validate_json(line)
            except ValidationError:
                continue  # cut short by a power cut: that episode is run again
            episodes[episode.seed] = episode
        return episodes

    def add(
        self, bundle: Bundle, environment: str, conditions: Conditions, task: Task, episodes: Sequence[Episode]
    ) -> None:
        """Keep episodes."""
        path = self._file(bundle, environment, conditions, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = b"".join(episode.model_dump_json().encode() + b"\n" for episode in episodes)
        # One append, so that what several processes write is not mixed; the line feed ends one that was cut short.
        with naming(path):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(file, b"\n" + lines)
            finally:
                os.close(file)

    def _file(self, bundle: Bundle, environment: str, conditions: Conditions, task: Task) -> Path:
        # What an episode follows from, the libraries that compute it included.
        settings = (conditions.model_dump(), task.model_dump())
        plant = (environment, environment_digest(environment))
        key = [VERSION, *plant, *settings, mujoco.__version__, onnxruntime.__version__]
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return self._root / bundle.digest / f"{name}.jsonl"
