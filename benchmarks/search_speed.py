"""How fast each optimizer finds coefficients: the held-out objective of its best choice, over time.

    python benchmarks/search_speed.py --rollouts out/tdmpc_rollouts                   # TD-MPC, 80 % removed; a while
    python benchmarks/search_speed.py hopper.bundle --rollouts out/hopper --sparsity 0.9

All start from the same problem: groups, importance and what the dense network gives out are computed before the clock
starts. The grid is coordinate-wise, and the estimator gets as many trials as fit into the time that the grid took.
Choices are judged one after the other, each optimizer alone on the machine, as far as the machine is.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from nncontrol_prune.controllers.bundle import load_bundle
from nncontrol_prune.progress import Cancelled, Progress
from nncontrol_prune.pruning.architectures import recipe_for
from nncontrol_prune.pruning.coefficients import CoefficientProblem, Optimizer, uniform
from nncontrol_prune.pruning.gradient import gradient
from nncontrol_prune.pruning.pipeline import controller_calibration
from nncontrol_prune.pruning.problem import coefficient_problem
from nncontrol_prune.pruning.search import grid, tpe
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.pruning.terms import chosen_terms, scaled_terms
from nncontrol_prune.resources import shipped_controllers
from nncontrol_prune.rollouts.reader import read_rollouts


@dataclass(frozen=True)
class Watched(CoefficientProblem[Any]):
    """A problem that writes down when which objective was found."""

    found: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since `begin`, and the objective of the choice judged then."""
    begin: float = 0.0

    def score(self, kept: Any) -> float:
        score = super().score(kept)
        self.found.append((time.perf_counter() - self.begin, score))
        return score

    def draft(self) -> Watched:
        return replace(super().draft(), found=[])  # a draft's objective is another one

    @property
    def least(self) -> float:
        return min(score for _, score in self.found)

    def reached(self, objective: float) -> str:
        """Return the seconds after which the objective was this low, or that it never was."""
        return next((f"{seconds:.1f}" for seconds, score in self.found if score <= objective), "never")


def watch(problem: CoefficientProblem[Any], optimizer: Optimizer[Any], seconds: float = 1e9) -> tuple[Watched, float]:
    """Return what an optimizer found, and the seconds it took."""
    parts = {part.name: getattr(problem, part.name) for part in fields(problem)}
    watched = Watched(**parts, begin=time.perf_counter())
    # What all of them need once, and the first would pay for.
    for name in ("targets", "sensitivity", "dense_held_out"):
        vars(watched)[name] = getattr(problem, name)
    end = watched.begin + seconds
    with contextlib.suppress(Cancelled):
        optimizer(watched, Progress(cancelled=lambda: time.perf_counter() > end))
    return watched, time.perf_counter() - watched.begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("controller", nargs="?", default="cartpole_swingup_tdmpc", help="bundle, or one that ships")
    parser.add_argument("--rollouts", type=Path, required=True)
    parser.add_argument("--sparsity", type=float, action="append", help="may be repeated; 0.8 by default")
    arguments = parser.parse_args()
    bundle = load_bundle(shipped_controllers().get(arguments.controller, Path(arguments.controller)))
    rollouts = read_rollouts(arguments.rollouts)
    recipe = recipe_for(bundle.module())
    print(
        "| removed | | held-out objective | choices judged | s in all | s until its best | s until gradient's best "
        "| s that gradient takes to its best |"
    )
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    for sparsity in arguments.sparsity or [0.8]:
        settings = PruningSettings(sparsity=sparsity)
        terms = chosen_terms(recipe.terms, settings.terms, settings.limits)
        calibration = controller_calibration(bundle, rollouts, recipe, terms, settings)
        with torch.no_grad():
            outputs = recipe.network.run(recipe.network.module, calibration.fit)
        terms = scaled_terms(terms, outputs, calibration.fit_weights)
        problem = coefficient_problem(recipe.network, calibration, terms, settings, Progress())
        ours, took = watch(problem, gradient)
        found = {"uniform": watch(problem, uniform_judged), "gradient": (ours, took), "grid": watch(problem, grid)}
        # More trials than the time is enough for, so that the time decides.
        found["tpe"] = watch(problem, functools.partial(tpe, trials=10_000), found["grid"][1])
        for name, (watched, seconds) in found.items():
            print(
                f"| {sparsity:.0%} | `{name}` | {watched.least:.3g} | {len(watched.found)} | {seconds:.1f} "
                f"| {watched.reached(watched.least)} | {watched.reached(ours.least)} | {ours.reached(watched.least)} |",
                flush=True,
            )


def uniform_judged(problem: CoefficientProblem[Any], progress: Progress) -> list[int]:
    """Uniform coefficients, judged as the others are."""
    kept = uniform(problem, progress)
    problem.score(kept)
    return kept


if __name__ == "__main__":
    main()
