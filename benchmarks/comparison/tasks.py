"""What a task of the comparison is, and which there are."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.groups import Group
from nncontrol_prune.pruning.network import Batch, Network
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.pruning.terms import Term

HELPS = ("none", "ls", "on_policy", "distill", "both")


class Deployed(Protocol):
    """A network as it is used, which can be scored and timed."""

    def scores(self, numbers: Sequence[int]) -> list[float]:
        """Return the scores of some evaluations. One number is the same evaluation for every network."""
        ...

    def latency(self) -> float:
        """Return the median seconds for one input, on this machine."""
        ...

    def figures(self) -> Mapping[str, float]:
        """Return figures beside the score, by name with unit."""
        ...


@dataclass(frozen=True)
class Made:
    """A pruned network as it is used, the share of the parameters that is gone, and the seconds that it took."""

    deployed: Deployed
    removed: float
    seconds: float


@dataclass(frozen=True)
class Subject:
    """What all methods start from, for one calibration seed.

    Attributes:
        network: The dense network.
        terms: What matters.
        calibration: The data.
        groups: The groups.
        seed: The calibration seed.
    """

    network: Network[Any]
    terms: Sequence[Term]
    calibration: Calibration
    groups: Sequence[Group]
    seed: int


@dataclass(frozen=True)
class Task(ABC):
    """A dense network, and how it is calibrated, deployed and scored.

    Attributes:
        name: What it is called on the command line and in file names.
        helps: The helps that make sense.
        max_evaluations: Of a cell, over all its networks.
    """

    name: str

    score: ClassVar[str]
    """What is kept of the dense network, in words."""
    evaluations: ClassVar[str]
    """What it is averaged over, in words."""
    helps: Sequence[str] = field(default=HELPS, kw_only=True)
    max_evaluations: int = field(default=500, kw_only=True)

    @property
    def pipeline_helps(self) -> Sequence[str]:
        """The helps that the product's pipeline gives."""
        return ()

    @property
    @abstractmethod
    def setting(self) -> str:
        """Where it takes place, in words."""

    @abstractmethod
    def why_not(self) -> str | None:
        """Return why it cannot be run here, if it cannot."""

    @abstractmethod
    def make_dense(self) -> Deployed:
        """Return the dense network as it is used."""

    @abstractmethod
    def make_subject(self, seed: int) -> Subject:
        """Make the data of a calibration seed.

        Raises:
            PruningError: The network cannot be pruned.
        """

    @abstractmethod
    def deploy(self, subject: Subject, module: Any) -> Deployed:
        """Return a pruned network as it is used."""

    def met_by(self, subject: Subject, module: Any) -> Batch:
        """Return rows with the inputs that a network itself gets into; only where `on_policy` is a help."""
        raise NotImplementedError

    def pipeline(self, subject: Subject, settings: PruningSettings) -> Made:
        """Prune as the product does it; only where there are `pipeline_helps`.

        Raises:
            PruningError: So much cannot be removed.
        """
        raise NotImplementedError


@functools.lru_cache(maxsize=2)
def dense_of(task: Task) -> Deployed:
    """Return a task's dense network as it is used."""
    return task.make_dense()


@functools.lru_cache(maxsize=16)
def subject_of(task: Task, seed: int) -> Subject:
    """Return what all methods start from, for one calibration seed.

    Raises:
        PruningError: The network cannot be pruned.
    """
    return task.make_subject(seed)
