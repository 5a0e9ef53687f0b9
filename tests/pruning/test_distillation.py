from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.controllers.specs import MlpArchitecture
from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning import distillation, engine
from nncontrol_prune.pruning.architectures import recipe_for
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.distillation import distill
from nncontrol_prune.pruning.engine import prune_network
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.network import Network
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.pruning.terms import Term
from tests.pruning.networks import WithoutDerivative

TERMS = [Term("action")]


@pytest.fixture
def teacher(module: Mlp) -> Network[Mlp]:
    return recipe_for(module).network


@pytest.fixture
def student(module: Mlp) -> Mlp:
    """A smaller network, with the same range of actions."""
    torch.manual_seed(1)
    small = Mlp(MlpArchitecture(hidden=(6, 6), activation="tanh"), 5, 2)
    small.output.load_state_dict(module.output.state_dict())
    return small.eval()


def error(teacher: Network[Mlp], student: Mlp, observations: Tensor) -> float:
    with torch.no_grad():
        found, wanted = (teacher.run(m, {"observation": observations})["action"] for m in (student, teacher.module))
    return float((found - wanted).square().sum(dim=1).mean())


def test_the_student_learns_what_the_teacher_gives_out(
    teacher: Network[Mlp], student: Mlp, calibration: Calibration
) -> None:
    before = error(teacher, student, calibration.held_out["observation"])
    learned = distill(student, teacher, calibration, TERMS, steps=200, seed=0, progress=Progress())
    assert error(teacher, learned, calibration.held_out["observation"]) < 0.5 * before
    assert error(teacher, student, calibration.held_out["observation"]) == before, "the argument is left as it is"


def test_a_student_whose_parameters_are_frozen_learns_and_stays_frozen(
    teacher: Network[Mlp], student: Mlp, calibration: Calibration
) -> None:
    before = error(teacher, student, calibration.held_out["observation"])
    student.requires_grad_(False)
    with torch.no_grad():
        learned = distill(student, teacher, calibration, TERMS, steps=200, seed=0, progress=Progress())
    assert error(teacher, learned, calibration.held_out["observation"]) < 0.5 * before
    assert not any(parameter.requires_grad for parameter in learned.parameters())


def test_it_ends_with_the_state_of_least_held_out_error(
    teacher: Network[Mlp], student: Mlp, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[float] = []
    whole = distillation.weighted_sum

    def watched(*arguments: Any) -> Any:
        loss, means = whole(*arguments)
        if arguments[3] is calibration.held_out:
            judged.append(float(loss))
        return loss, means

    monkeypatch.setattr(distillation, "weighted_sum", watched)
    monkeypatch.setattr(distillation, "JUDGED_EVERY", 1)
    start = distill(student, teacher, calibration, TERMS, steps=300, seed=0, progress=Progress())
    judged.clear()
    learned = distill(  # so large steps that it gets worse
        start, teacher, calibration, TERMS, steps=10, seed=0, progress=Progress(), learning_rate=0.3
    )
    assert len(judged) == 11
    assert min(judged) < judged[-1]
    assert error(teacher, learned, calibration.held_out["observation"]) == pytest.approx(min(judged), rel=1e-4)


def test_states_that_it_meets_on_the_way_are_learned_too(
    teacher: Network[Mlp], student: Mlp, calibration: Calibration
) -> None:
    far = 4.0 + torch.randn(500, 5, generator=torch.Generator().manual_seed(4))
    met_by: list[Tensor] = []

    def meets(module: Mlp) -> dict[str, Tensor]:
        met_by.append(module.state_dict()["layers.0.weight"].clone())
        return {"observation": far}

    def distilled(rounds: int) -> Mlp:
        return distill(
            student, teacher, calibration, TERMS, steps=400, seed=0, progress=Progress(), more_data=meets, rounds=rounds
        )

    on_policy, alone = distilled(3), distilled(0)
    assert len(met_by) == 3
    assert not any(torch.equal(*pair) for pair in ((met_by[0], met_by[1]), (met_by[1], met_by[2])))
    assert error(teacher, on_policy, far) < 0.5 * error(teacher, alone, far)


def test_what_was_best_before_it_met_new_states_does_not_count(
    teacher: Network[Mlp], student: Mlp, calibration: Calibration
) -> None:
    far = 4.0 + torch.randn(4000, 5, generator=torch.Generator().manual_seed(4))
    start = distill(student, teacher, calibration, TERMS, steps=600, seed=0, progress=Progress())

    def at_once(module: Mlp) -> dict[str, Tensor]:
        return {"observation": far}

    # So many other states that those that are held out are never followed as well again.
    learned = distill(
        start, teacher, calibration, TERMS, steps=60, seed=0, progress=Progress(), more_data=at_once, rounds=1
    )
    held_out = calibration.held_out["observation"]
    assert error(teacher, learned, held_out) > error(teacher, start, held_out)
    assert error(teacher, learned, far) < error(teacher, start, far)


def test_it_stops_early_but_not_before_it_met_all_states(
    teacher: Network[Mlp], student: Mlp, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "JUDGED_EVERY", 1)
    monkeypatch.setattr(distillation, "PATIENCE", 3)
    told: list[float] = []
    met: list[float] = []

    def meets(module: Mlp) -> dict[str, Tensor]:
        met.append(told[-1])
        return {"observation": torch.zeros(10, 5)}

    distill(  # with steps of no length, nothing ever gets better
        student, teacher, calibration, TERMS, steps=100, seed=0, progress=Progress(lambda _, share: told.append(share)),
        more_data=meets, rounds=3, learning_rate=0.0,
    )  # fmt: skip
    assert met == pytest.approx([0.24, 0.49, 0.74])
    assert told[-1] == pytest.approx(0.79), "four judgements after the last"


def test_network_without_gradients_is_refused_before_the_search(
    module: Mlp, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[str] = []
    monkeypatch.setattr(engine, "coefficient_problem", lambda *_, **__: searched.append("problem"))
    network = recipe_for(module).network
    without = replace(
        network,
        run=lambda module, rows: {"action": WithoutDerivative.apply(network.run(module, rows)["action"])},
    )
    with pytest.raises(PruningError, match="distillation needs gradients of the network, and they fail with Not"):
        prune_network(without, calibration, TERMS, PruningSettings(sparsity=0.5, distill_steps=10))
    assert not searched
