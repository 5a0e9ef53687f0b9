"""The cells: a method, a sparsity and a help; networks are made, run in closed loop, and timed."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comparison.baselines import Importance, from_scratch, torch_pruning_selection
from comparison.intervals import Estimate, Status, clustered_mean, estimate_of, rounds, status_of
from comparison.tasks import Deployed, Made, Subject, Task, dense_of, subject_of
from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.costs import parameter_cost
from nncontrol_prune.pruning.distillation import distill
from nncontrol_prune.pruning.engine import ON_POLICY_ROUNDS, refitted_on_policy
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.problem import coefficient_problem, optimizer_of
from nncontrol_prune.pruning.reconstruction import reconstruct
from nncontrol_prune.pruning.settings import Method as Optimizer
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.pruning.surgery import most_important, remove_channels

BASELINES = ("tp_magnitude_local", "tp_magnitude_global", "tp_taylor_local", "tp_taylor_global", "random", "scratch")
OURS = ("uniform", "grid", "gradient", "tpe")
PIPELINE = "pipeline"
"""What `nncontrol-prune prune` does where there is an environment: `gradient`, on-policy rounds, and all choices in
closed loop."""
METHODS = (*BASELINES, *OURS, PIPELINE)
SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
TOLERANCE = 0.01
LATENCY_TURNS = 20

Key: TypeAlias = tuple[str, float, str]


@dataclass(frozen=True)
class Settings:
    """What all cells of a table have in common.

    Attributes:
        seeds: Calibration seeds; each gives a network of its own.
        max_episodes: Episodes of a cell at the most, over all its networks.
        distill_steps: Gradient steps of distillation.
    """

    seeds: int = 5
    max_episodes: int = 500
    distill_steps: int = 1500

    @classmethod
    def of(cls, task: Task) -> Settings:
        """Return those that a task is measured under where nothing else is asked for."""
        return cls(max_episodes=task.max_evaluations)


@dataclass(frozen=True)
class Dense:
    """The dense network's own figures, which all others are relative to.

    Attributes:
        returns: Its scores, by the number of the evaluation.
        return_mean: Their mean.
        half_width: Of its 95 % interval.
        seconds: What an evaluation took, among many.
        figures: What there is beside the score, by name.
    """

    returns: tuple[float, ...]
    return_mean: float
    half_width: float
    seconds: float
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """What became of one method, sparsity and help.

    Attributes:
        method: Of METHODS.
        sparsity: The share of the parameters that was to be removed.
        help: Of HELPS.
        status: Whether the return is known; `unreachable` if the method cannot remove as much.
        kept: The mean score, a return for a controller, as a share of the dense one.
        half_width: Of its 95 % interval.
        kept_by_seed: The same by calibration seed.
        episodes: How many evaluations there were.
        removed: The share of the parameters that was removed.
        search_seconds: Importance and coefficients, for one network; for the pipeline, all of it.
        latency: Median µs of the deployed network.
        dense_latency: The same of the dense one, measured in turns with it.
        floor_latency: And of a network with two channels in every group.
        figures: What there is beside the score, by name: mean over the networks, and half-width of its 95 % interval.
    """

    method: str
    sparsity: float
    help: str
    status: Status | Literal["unreachable"]
    kept: float = float("nan")
    half_width: float = float("nan")
    kept_by_seed: tuple[float, ...] = ()
    episodes: int = 0
    removed: float = float("nan")
    search_seconds: float = float("nan")
    latency: float = float("nan")
    dense_latency: float = float("nan")
    floor_latency: float = float("nan")
    figures: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What tells the cell from others."""
        return self.method, self.sparsity, self.help


def helps_of(task: Task, method: str) -> Sequence[str]:
    """Return the helps that make sense for a method."""
    if method == "scratch":
        return ("distill",)
    if method == PIPELINE:
        return task.pipeline_helps
    return task.helps


def measure_dense(task: Task, settings: Settings) -> Dense:
    """Score the dense network, in as many evaluations as a cell has at the most."""
    torch.set_num_threads(1)  # as in every run that goes on from here: an autoencoder is trained to the same weights
    dense = dense_of(task)
    started = time.monotonic()
    scores = dense.scores(range(settings.max_episodes))
    seconds = (time.monotonic() - started) / len(scores)
    mean, half_width = clustered_mean(np.array([scores]))
    return Dense(tuple(scores), mean, half_width, seconds, dense.figures())


def measure_cells(
    task: Task, settings: Settings, dense: Dense, method: str, sparsity: float, helps: Sequence[str]
) -> Iterator[Cell]:
    """Make the networks of one method at one sparsity, and yield a cell for each help."""
    torch.set_num_threads(1)
    subjects = [subject_of(task, seed) for seed in range(settings.seeds)]
    found: dict[tuple[int, bool], Selection] = {}
    for name in helps:
        try:
            made = [make(task, subject, method, sparsity, name, settings, found) for subject in subjects]
        except PruningError:
            yield Cell(method, sparsity, name, "unreachable")
            continue
        networks = [network.deployed for network in made]
        returns, estimate, status = evaluate(networks, dense)
        latency, dense_latency, floor_latency = latencies([networks[0], dense_of(task), floor(task)])
        figures = [network.figures() for network in networks]
        yield Cell(
            method=method,
            sparsity=sparsity,
            help=name,
            status=status,
            kept=estimate.kept,
            half_width=estimate.half_width,
            kept_by_seed=tuple(float(mean) for mean in returns.mean(axis=1) / dense.return_mean),
            episodes=returns.size,
            removed=statistics.mean(network.removed for network in made),
            search_seconds=statistics.mean(network.seconds for network in made),
            latency=latency,
            dense_latency=dense_latency,
            floor_latency=floor_latency,
            figures={key: clustered_mean(np.array([[f[key] for f in figures]])) for key in figures[0]},
        )


@dataclass(frozen=True)
class Selection:
    """The channels that a method keeps, by group; the share of the parameters that is gone; the time it took."""

    keep: Sequence[Tensor]
    removed: float
    seconds: float


def make(
    task: Task,
    subject: Subject,
    method: str,
    sparsity: float,
    help_kind: str,
    settings: Settings,
    found: dict[tuple[int, bool], Selection],
) -> Made:
    """Make a network.

    Args:
        task: The task.
        subject: What to start from.
        method: Of METHODS.
        sparsity: Share of the parameters to remove.
        help_kind: Of HELPS.
        settings: The settings.
        found: What was selected before, by calibration seed and whether with reconstruction; added to.

    Raises:
        PruningError: The method cannot remove as much.
    """
    if method == PIPELINE:
        steps = settings.distill_steps if help_kind == "both" else 0
        wanted = PruningSettings(sparsity=sparsity, tolerance=TOLERANCE, distill_steps=steps, seed=subject.seed)
        return task.pipeline(subject, wanted)
    # The coefficients of ours are found for what comes after: with reconstruction, or honestly without.
    key = subject.seed, method in OURS and help_kind in ("ls", "on_policy", "both")
    if key not in found:
        found[key] = select(subject, method, sparsity, refitted=key[1])
    selection = found[key]
    module = build(task, subject, selection.keep, method, help_kind, settings)
    return Made(task.deploy(subject, module), selection.removed, selection.seconds)


def select(subject: Subject, method: str, sparsity: float, *, refitted: bool) -> Selection:
    """Choose the channels to keep.

    Args:
        subject: What to start from.
        method: Of METHODS.
        sparsity: Share of the parameters to remove.
        refitted: Whether ours look for coefficients with reconstruction in the objective. Without it, channels are
            ranked by `fisher`, since `obs` is by definition the error after reconstruction.

    Raises:
        PruningError: The method cannot remove as much.
    """
    started = time.monotonic()
    if method.startswith("tp_"):
        _, importance, scope = method.split("_")
        keep = torch_pruning_selection(
            subject.network,
            subject.groups,
            subject.calibration,
            subject.terms,
            cast(Importance, importance),
            everywhere=scope == "global",
            sparsity=sparsity,
            tolerance=TOLERANCE,
        )
    else:
        settings = PruningSettings(
            sparsity=sparsity,
            tolerance=TOLERANCE,
            method=cast(Optimizer, method if method in OURS else "uniform"),
            importance="random" if method not in OURS else "obs" if refitted else "fisher",
            seed=subject.seed,
        )
        network, calibration = subject.network, subject.calibration
        problem = coefficient_problem(network, calibration, subject.terms, settings, Progress())
        problem = replace(problem, reconstructed=refitted)
        kept = optimizer_of(settings)(problem, Progress())
        keep = most_important(problem.scores, problem.by_group(kept))
    seconds = time.monotonic() - started
    shares = [len(channels) / group.channels for channels, group in zip(keep, subject.groups, strict=True)]
    removed = float(parameter_cost(subject.network.module, subject.groups).removed(shares))
    return Selection(keep, removed, seconds)


def build(task: Task, subject: Subject, keep: Sequence[Tensor], method: str, help_kind: str, settings: Settings) -> Any:
    """Return the network that keeps these channels, helped."""
    network, calibration = subject.network, subject.calibration
    module = remove_channels(network.module, subject.groups, keep)
    if method == "scratch":
        module = from_scratch(module, subject.seed)

    def rebuilt(data: Calibration) -> Any:
        smaller = remove_channels(network.module, subject.groups, keep)
        reconstruct(smaller, network, subject.groups, keep, data.fit, data.fit_weights, terms=subject.terms)
        return smaller

    if help_kind in ("ls", "on_policy", "both"):
        module = rebuilt(calibration)
    if help_kind == "on_policy":
        met_by = functools.partial(task.met_by, subject)
        module, _ = refitted_on_policy(module, calibration, rebuilt, met_by, ON_POLICY_ROUNDS, Progress())
    if help_kind in ("distill", "both"):
        module = distill(
            module,
            network,
            calibration,
            subject.terms,
            steps=settings.distill_steps,
            seed=subject.seed,
            progress=Progress(),
        )
    return module


def evaluate(networks: Sequence[Deployed], dense: Dense) -> tuple[NDArray[np.float64], Estimate, Status]:
    """Score networks in rounds, in as many evaluations each, until what they keep is known.

    Args:
        networks: The networks, one for each calibration seed.
        dense: The dense network's figures; there are no more evaluations, over all networks, than it has.

    Returns:
        The scores (networks, evaluations), the share kept, and whether it is known well enough.
    """
    count = len(networks)
    whole = np.array(dense.returns)
    returns = np.zeros((count, 0))
    estimate = Estimate(float("nan"), float("inf"))
    status: Status = "unresolved"
    for episodes in rounds(count, len(whole)):
        # Every network has evaluations of its own, of those that the dense one had.
        new = [
            network.scores([count * episode + number for episode in episodes])
            for number, network in enumerate(networks)
        ]
        returns = np.concatenate([returns, np.array(new)], axis=1)
        estimate = estimate_of(returns, whole[: returns.size].reshape(-1, count).T, whole)
        status = status_of(estimate)
        if status != "unresolved":
            break
    return returns, estimate, status


@functools.lru_cache(maxsize=2)
def floor(task: Task) -> Deployed:
    """Return a network with two channels in every group, or the fewest there may be: what the runtime itself costs."""
    subject = subject_of(task, 0)
    keep = [torch.arange(min(max(2, group.fewest), group.channels)) for group in subject.groups]
    return task.deploy(subject, remove_channels(subject.network.module, subject.groups, keep))


def latencies(networks: Sequence[Deployed]) -> list[float]:
    """Return the median µs of networks, in the quietest of many turns: other work only ever adds to it."""
    measured = [[1e6 * network.latency() for network in networks] for _ in range(LATENCY_TURNS)]
    return [min(turns) for turns in zip(*measured, strict=True)]
