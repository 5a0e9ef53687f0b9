"""Distillation: the pruned network learns the dense one's actions on the rollouts."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.surgery import Module

BATCH_ROWS = 256
LEARNING_RATE = 1e-3
JUDGED_EVERY = 50


def distill(
    pruned: Module,
    dense: Module,
    calibration: Calibration,
    action_range: Tensor,
    *,
    steps: int,
    seed: int,
    progress: Progress,
) -> Module:
    """Return a copy of `pruned`, trained by Adam; of all its states the one with the least held-out error.

    Args:
        pruned: The network after surgery and reconstruction.
        dense: The teacher.
        calibration: Observations to learn on and to judge by.
        action_range: Width (m,) of each action's limits; errors are measured in it.
        steps: Gradient steps.
        seed: Of the minibatches.
        progress: Told after every few steps.
    """
    student = copy.deepcopy(pruned)
    with torch.no_grad():
        fit_target, judge_target = dense(calibration.fit), dense(calibration.held_out)

    def loss(rows: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        error = (student(rows) - target) / action_range
        return (weights * error.square().sum(dim=1)).mean()

    optimizer = torch.optim.Adam(student.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    best, best_loss = copy.deepcopy(student.state_dict()), float("inf")
    for step in range(steps + 1):
        if step % JUDGED_EVERY == 0 or step == steps:
            progress("distillation", step / steps)
            with torch.no_grad():
                judged = float(loss(calibration.held_out, judge_target, calibration.held_out_weights))
            if judged < best_loss:
                best, best_loss = copy.deepcopy(student.state_dict()), judged
        if step < steps:
            rows = torch.randint(len(calibration.fit), (BATCH_ROWS,), generator=generator)
            optimizer.zero_grad()
            loss(calibration.fit[rows], fit_target[rows], calibration.fit_weights[rows]).backward()
            optimizer.step()
            schedule.step()
    student.load_state_dict(best)
    return student
