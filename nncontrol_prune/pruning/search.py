"""Pruning coefficients by search: one threshold on the importance, a grid, or a tree-structured Parzen estimator.

Grid and estimator ask the true objective: each choice is built, reconstructed and judged on the held-out part.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import joblib
import numpy as np

from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.coefficients import CoefficientProblem, uniform
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.surgery import Module

GRID_STEPS = ((0.5, 0.7, 1.4, 2.0), (0.85, 1.18), (0.94, 1.06))
"""Factors on the share that a group keeps, coarse to fine."""
GRID_ROUNDS = 3
"""Rounds at one fineness at the most."""
TRIALS = 60
"""Choices that the Parzen estimator tries."""


def threshold(problem: CoefficientProblem[Module], progress: Progress) -> list[int]:
    """Keep, in all groups, the channels above one threshold on the normalized importance (global pruning)."""
    progress("coefficients", 0.0)
    # The channels of tied groups have nothing in common but their rank.
    scores = [
        np.mean([np.sort(problem.scores[member].double().numpy()) for member in members], axis=0)
        for members in problem.ties
    ]
    everything = np.unique(np.concatenate(scores))

    def kept_above(limit: float) -> list[int]:
        above = (int((score > limit).sum()) for score in scores)
        return [max(fewest, count) for fewest, count in zip(problem.fewest, above, strict=True)]

    low, high = -1, len(everything) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if problem.sparsity_of(kept_above(float(everything[middle]))) < problem.sparsity:
            low = middle
        else:
            high = middle
    return problem.land(problem.coefficients_of(kept_above(float(everything[high]))))


def grid(problem: CoefficientProblem[Module], progress: Progress, *, jobs: int = 1) -> list[int]:
    """From uniform coefficients, change one at a time by the factors of a grid, coarse to fine, and keep the best.

    Args:
        problem: What to solve.
        progress: Told of every step, and asked whether to stop.
        jobs: Choices judged at the same time.
    """
    best = uniform(problem, progress)
    known = {tuple(best): problem.score(best)}
    steps = [factors for factors in GRID_STEPS for _ in range(GRID_ROUNDS)]
    number = 0
    while number < len(steps):
        before = best
        choices = []
        for variable in range(len(problem.ties)):
            for factor in steps[number]:
                with contextlib.suppress(PruningError):  # some choices meet the budget at no whole number of channels
                    choice = _landed(problem, best, variable, factor)
                    if tuple(choice) not in known and choice not in choices:
                        choices.append(choice)
        for first in range(0, len(choices), 4 * jobs):
            progress("coefficients", (number + first / len(choices)) / len(steps))
            part = choices[first : first + 4 * jobs]
            scores = joblib.Parallel(n_jobs=jobs, prefer="threads")(joblib.delayed(problem.score)(c) for c in part)
            known.update({tuple(choice): float(score) for choice, score in zip(part, scores, strict=True)})
        best = _least(known)
        # Where nothing was better, a finer step is next.
        number += 1 if best != before else GRID_ROUNDS - number % GRID_ROUNDS
    return best


def _least(known: Mapping[tuple[int, ...], float]) -> list[int]:
    choice, _ = min(known.items(), key=lambda item: item[1])
    return list(choice)


def _landed(problem: CoefficientProblem[Module], kept: Sequence[int], variable: int, factor: float) -> list[int]:
    coefficients = problem.coefficients_of(kept)
    coefficients[variable] = min(max(1.0 - (1.0 - coefficients[variable]) * factor, 0.0), 1.0)
    return problem.land(coefficients)


def tpe(problem: CoefficientProblem[Module], progress: Progress, *, trials: int = TRIALS) -> list[int]:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) over the coefficients, from uniform ones.

    Raises:
        PruningError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise PruningError("the method tpe needs Optuna: pip install 'nncontrol_prune[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a search that is cancelled is no trial that failed
    start = uniform(problem, progress)
    names = [problem.groups[members[0]].name for members in problem.ties]
    known = {tuple(start): problem.score(start)}

    def judged(trial: Any) -> float:
        progress("coefficients", trial.number / trials)
        shares = [trial.suggest_float(name, 0.005, 1.0, log=True) for name in names]
        try:
            kept = problem.land([1.0 - share for share in shares])
        except PruningError as error:  # near these coefficients no whole number of channels meets the budget
            raise optuna.TrialPruned from error
        if tuple(kept) not in known:
            known[tuple(kept)] = problem.score(kept)
        return math.log(known[tuple(kept)] + 1e-12)

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=problem.seed % 2**32))
    study.enqueue_trial(
        {
            name: max(0.005, 1.0 - coefficient)
            for name, coefficient in zip(names, problem.coefficients_of(start), strict=True)
        }
    )
    study.optimize(judged, n_trials=trials)
    return _least(known)
