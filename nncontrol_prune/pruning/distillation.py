"""Distillation: the pruned network learns what the dense one gives out on the rollouts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.copying import copied
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.network import Batch, Network, Outputs, rows_of, take
from nncontrol_prune.pruning.surgery import Module
from nncontrol_prune.pruning.terms import Term, weighted_sum

BATCH_ROWS = 256
LEARNING_RATE = 1e-3
JUDGED_EVERY = 50
PATIENCE = 20
"""Judgements in a row without a better one, after which it stops."""


def distill(
    pruned: Module,
    teacher: Network[Any],
    calibration: Calibration,
    terms: Sequence[Term],
    *,
    steps: int,
    seed: int,
    progress: Progress,
    more_data: Callable[[Any], Batch] | None = None,
    rounds: int = 0,
    learning_rate: float = LEARNING_RATE,
) -> Module:
    """Return a copy of `pruned`, trained by Adam; of its states on all the data, the one with the least held-out error.

    What learned on the teacher's states alone knows nothing of those that its own errors lead to. So on the way it is
    run in rounds, and goes on with what it met as well (Ross et al. 2011).

    Args:
        pruned: The network after surgery and reconstruction.
        teacher: The dense network and how it is run.
        calibration: Rows to learn on and to judge by.
        terms: What matters.
        steps: Gradient steps at the most; it stops early once the held-out error stays where it is.
        seed: Of the minibatches.
        progress: Told after every few steps.
        more_data: Runs a network in its environment and returns the rows it met; needed for rounds.
        rounds: How often the student is run so on the way, at even distances.
        learning_rate: Of the first step; it falls to zero along a cosine.

    Raises:
        PruningError: The network has no gradients.
    """
    student, frozen = _student_of(pruned)
    with torch.no_grad():
        targets = teacher.run(teacher.module, calibration.fit)
        judged = teacher.run(teacher.module, calibration.held_out)
    runs_at = [number * steps // (rounds + 1) for number in range(1, rounds + 1)]
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    best, best_loss, stale = copy.deepcopy(student.state_dict()), float("inf"), 0
    for step in range(steps + 1):
        if step in runs_at:
            assert more_data is not None
            calibration = calibration.with_more(more_data(student))
            with torch.no_grad():
                targets = teacher.run(teacher.module, calibration.fit)
            best_loss = float("inf")  # what knows less does not count any more
        if step % JUDGED_EVERY == 0 or step == steps:
            progress("distillation", step / steps)
            with torch.no_grad():
                found = teacher.run(student, calibration.held_out)
            loss, _ = weighted_sum(terms, found, judged, calibration.held_out, calibration.held_out_weights)
            stale += 1
            if float(loss) < best_loss:
                best, best_loss, stale = copy.deepcopy(student.state_dict()), float(loss), 0
            if stale > PATIENCE and step >= max(runs_at, default=0):
                break
        if step < steps:
            rows = torch.randint(rows_of(calibration.fit), (BATCH_ROWS,), generator=generator)
            batch = take(calibration.fit, rows)
            optimizer.zero_grad()
            _add_gradients(student, teacher, batch, take(targets, rows), calibration.fit_weights[rows], terms)
            optimizer.step()
            schedule.step()
    student.load_state_dict(best)
    if frozen:
        student.requires_grad_(False)
    return student


def _student_of(module: Module) -> tuple[Module, bool]:
    """Return a copy that can learn, and whether it was frozen, as one that is only run may be; so it is returned."""
    student = copied(module)
    frozen = not any(parameter.requires_grad for parameter in student.parameters())
    if frozen:
        student.requires_grad_(True)
    return student, frozen


def check_gradients(network: Network[Any], batch: Batch, terms: Sequence[Term]) -> None:
    """Check that a network can be distilled, by one gradient of a copy of it.

    Raises:
        PruningError: It has no gradients.
    """
    student, _ = _student_of(network.module)
    with torch.no_grad():
        wanted = network.run(network.module, batch)
    _add_gradients(student, network, batch, wanted, torch.ones(rows_of(batch)), terms)


def _add_gradients(
    student: Any, teacher: Network[Any], batch: Batch, wanted: Outputs, weights: Tensor, terms: Sequence[Term]
) -> None:
    """Add the error's gradients to those of the student's parameters."""
    try:
        with torch.enable_grad():
            found = teacher.run(student, batch)
            loss, _ = weighted_sum(terms, found, wanted, batch, weights)
        loss.backward()
    except Exception as error:
        raise PruningError(
            f"distillation needs gradients of the network, and they fail with {type(error).__name__}: {error}; leave "
            "it out, or give the operation that has none a derivative"
        ) from error
