from __future__ import annotations

import numpy as np
import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.environments import PlantError
from nncontrol_prune.progress import Cancelled, Progress
from nncontrol_prune.validation import gate
from nncontrol_prune.validation.evaluation import Episode
from nncontrol_prune.validation.gate import GateError, allowed_regressions, judge
from nncontrol_prune.validation.settings import GateSettings


def test_identical_controller_is_accepted(shipped_bundle: Bundle) -> None:
    verdict = judge(shipped_bundle, shipped_bundle, CARTPOLE, GateSettings(episodes=30))
    assert verdict.accepted
    assert verdict.pruned == verdict.dense
    assert [criterion.name for criterion in verdict.criteria] == ["success", "return"]


def test_ruined_controller_is_rejected_early_with_reasons(shipped_bundle: Bundle, small_bundle: Bundle) -> None:
    verdict = judge(small_bundle, shipped_bundle, CARTPOLE, GateSettings())
    assert not verdict.accepted
    assert verdict.pruned.episodes == gate.BATCH
    assert "0 of 10 episodes" in verdict.reasons[0]
    assert "stopped early" in verdict.reasons[0]


def test_verdict_does_not_depend_on_the_number_of_workers(shipped_bundle: Bundle) -> None:
    verdicts = [
        judge(shipped_bundle, shipped_bundle, CARTPOLE, GateSettings(episodes=30, jobs=jobs)) for jobs in (1, 2)
    ]
    assert verdicts[0].model_copy(update={"created": ""}) == verdicts[1].model_copy(update={"created": ""})


def test_allowed_regressions_are_those_of_the_exact_bound() -> None:
    # 1 - 0.05 ** (1 / 50) = 5.8 % for none, 9.1 % for one, 12.1 % for two regressions in 50.
    assert [allowed_regressions(50, margin) for margin in (0.05, 0.06, 0.1, 0.125)] == [-1, 0, 1, 2]


def test_controller_at_the_margin_is_accepted_at_most_one_time_in_twenty() -> None:
    rng = np.random.default_rng(0)
    for episodes, margin in ((50, 0.1), (100, 0.05), (200, 0.1)):
        accepted = rng.binomial(episodes, margin, size=20_000) <= allowed_regressions(episodes, margin)
        assert accepted.mean() <= 0.05 + 0.005


@pytest.mark.parametrize(("ratio", "passed"), [(1.0, True), (0.97, True), (0.93, False), (0.5, False)])
@pytest.mark.parametrize("level", [800.0, -50.0])
def test_return_criterion_compares_with_the_allowed_loss(ratio: float, passed: bool, level: float) -> None:
    rng = np.random.default_rng(1)
    returns = level + abs(level) * 0.02 * rng.normal(size=50)
    theirs = [Episode(seed, value, True, 1) for seed, value in enumerate(returns)]
    ours = [Episode(seed, value - (1 - ratio) * abs(level), True, 1) for seed, value in enumerate(returns)]
    assert gate._return_criterion(ours, theirs, GateSettings()).passed is passed


def test_environment_that_does_not_fit_is_refused(shipped_bundle: Bundle) -> None:
    with pytest.raises(PlantError, match="observes 5 values, the environment gives 11"):
        judge(shipped_bundle, shipped_bundle, "Hopper-v5", GateSettings())


def test_margin_that_so_few_episodes_cannot_show_is_refused_before_any_is_run(shipped_bundle: Bundle) -> None:
    with pytest.raises(GateError, match="ask for at least 59"):
        judge(shipped_bundle, shipped_bundle, CARTPOLE, GateSettings(success_margin=0.05))
    assert allowed_regressions(59, 0.05) == 0
    assert allowed_regressions(58, 0.05) == -1


def test_candidate_is_judged_against_its_parent_only(
    shipped_bundle: Bundle, small_bundle: Bundle, make_cartpole_bundle
) -> None:
    pruned = make_cartpole_bundle(hidden=(4, 4), parent=shipped_bundle)
    with pytest.raises(GateError, match="pruned from cartpole_swingup_sac@.* not against small@"):
        judge(pruned, small_bundle, CARTPOLE, GateSettings())


def test_it_can_be_cancelled(shipped_bundle: Bundle) -> None:
    with pytest.raises(Cancelled, match="validation"):
        judge(shipped_bundle, shipped_bundle, CARTPOLE, GateSettings(), Progress(cancelled=lambda: True))
