from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.policy import load_policy
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.conditions import Conditions
from nncontrol_prune.plants.environments import PlantError
from nncontrol_prune.plants.tasks import Signal, Task
from nncontrol_prune.progress import Cancelled, Progress
from nncontrol_prune.pruning.pipeline import prune_bundle
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.rollouts.reader import read_rollouts
from nncontrol_prune.service.rollouts import record_episodes
from nncontrol_prune.validation import evaluation, gate
from nncontrol_prune.validation.episode_cache import EpisodeCache
from nncontrol_prune.validation.gate import GateError, judge
from nncontrol_prune.validation.settings import GateSettings, RobustnessSettings
from nncontrol_prune.validation.stability import local_stability
from tests.validation.changes import Change, amplify, changed, last_layer

WITHOUT = RobustnessSettings(enabled=False)


def gate_settings(**values: Any) -> GateSettings:
    """Return settings without the last and longest part, unless it is asked for."""
    return GateSettings(**{"robustness": WITHOUT, "attraction_starts": 0, **values})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> EpisodeCache:
    """The dense controller's episodes, which all these tests share."""
    return EpisodeCache(tmp_path_factory.mktemp("episodes"))


def outcomes(verdict) -> dict[str, str]:
    return {criterion.name: criterion.outcome for criterion in verdict.criteria}


def test_identical_controller_is_accepted_after_the_least_number_of_pairs_that_shows_it(
    shipped_bundle: Bundle, cache: EpisodeCache
) -> None:
    verdict = judge(shipped_bundle, shipped_bundle, CARTPOLE, gate_settings(), cache=cache)
    assert verdict.accepted
    assert verdict.pruned == verdict.dense
    assert verdict.pruned.episodes == 75
    assert set(outcomes(verdict)) == {"health", "success", "return", "action rate", "latency"}


def test_candidate_that_passes_is_put_through_other_conditions(shipped_bundle: Bundle, cache: EpisodeCache) -> None:
    levels = RobustnessSettings(more_delay=1, friction=0.0, mass=0.0, margin=0.2, return_ratio=0.8)
    verdict = judge(shipped_bundle, shipped_bundle, CARTPOLE, gate_settings(robustness=levels), cache=cache)
    assert verdict.accepted
    assert outcomes(verdict)["robustness"] == outcomes(verdict)["robustness of the return"] == "passed"
    assert [found.condition for found in verdict.robustness] == [
        "pushes of 0.3 m/s",
        "noise of 2%",
        "1 more tick of delay",
    ]
    assert all(found.regressions == 0 and found.pairs == 20 for found in verdict.robustness)


def test_controller_that_does_well_only_near_the_usual_starts_is_rejected(
    shipped_bundle: Bundle, cache: EpisodeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evaluation._trajectories

    def narrow(model, manifest, environment, seeds, conditions, threads):
        for trajectory in run(model, manifest, environment, seeds, conditions, threads):
            if manifest.name == "changed" and abs(trajectory.observations[0, 4]) > 4:
                trajectory.observations[:, 1] *= -1  # upside down, where the pole was turning fast at first
            yield trajectory

    settings = gate_settings(attraction_starts=100)
    assert judge(shipped_bundle, shipped_bundle, CARTPOLE, settings, cache=cache).accepted
    monkeypatch.setattr(evaluation, "_trajectories", narrow)
    verdict = judge(changed(shipped_bundle, lambda module: None), shipped_bundle, CARTPOLE, settings, cache=cache)
    assert {name for name, outcome in outcomes(verdict).items() if outcome != "passed"} == {"region of attraction"}
    (found,) = verdict.robustness
    assert found.dense_successes == found.pairs
    assert 0.1 < found.pruned_interval[0] < found.pruned_interval[1] < 0.9


def test_candidate_that_does_well_only_as_it_is_is_rejected(
    shipped_bundle: Bundle, cache: EpisodeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evaluation._trajectories

    def fragile(model, manifest, environment, seeds, conditions, threads):
        for trajectory in run(model, manifest, environment, seeds, conditions, threads):
            if manifest.name == "changed" and conditions != Conditions():
                trajectory.observations[:, 1] *= -1  # upside down
            yield trajectory

    monkeypatch.setattr(evaluation, "_trajectories", fragile)
    levels = RobustnessSettings(more_delay=1, friction=0.0, mass=0.0)
    candidate = changed(shipped_bundle, lambda module: None)
    verdict = judge(candidate, shipped_bundle, CARTPOLE, gate_settings(robustness=levels), cache=cache)
    assert verdict.decision == "reject"
    missed = {name for name, outcome in outcomes(verdict).items() if outcome != "passed"}
    assert missed - {"robustness of the return"} == {"robustness"}, "of the return it may not be decided by then"
    assert "most often" in verdict.reasons[0]


@pytest.mark.parametrize("spoiled", ["success", "return"])
def test_condition_that_the_dense_controller_cannot_cope_with_is_noted(
    shipped_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, spoiled: str
) -> None:
    run = evaluation._trajectories

    def heavy(model, manifest, environment, seeds, conditions, threads):
        for trajectory in run(model, manifest, environment, seeds, conditions, threads):
            if conditions.mass > 1.0 and spoiled == "success":
                trajectory.observations[:, 1] *= -1  # upside down
            if conditions.mass > 1.0 and spoiled == "return":
                trajectory.rewards[:] *= 0.4
            yield trajectory

    monkeypatch.setattr(evaluation, "_trajectories", heavy)
    levels = RobustnessSettings(push=0.0, noise=0.0, more_delay=0, friction=0.0, margin=0.2, return_ratio=0.8)
    (note,) = judge(shipped_bundle, shipped_bundle, CARTPOLE, gate_settings(robustness=levels)).notes[-1:]
    assert note.startswith("robustness: with mass +20% the dense controller itself succeeds in less than half")


def test_no_candidate_is_accepted_before_the_least_number_of_pairs(shipped_bundle: Bundle, cache: EpisodeCache) -> None:
    verdict = judge(shipped_bundle, shipped_bundle, CARTPOLE, gate_settings(min_episodes=110), cache=cache)
    assert verdict.accepted
    assert verdict.pruned.episodes == 125


def test_ruined_controller_is_rejected_at_the_first_look_with_reasons(
    shipped_bundle: Bundle, small_bundle: Bundle, cache: EpisodeCache
) -> None:
    verdict = judge(small_bundle, shipped_bundle, CARTPOLE, gate_settings(), cache=cache)
    assert verdict.decision == "reject"
    assert verdict.pruned.episodes == gate.LOOK
    assert "0 of 25 episodes, dense 25" in verdict.reasons[0]
    assert "95% sure that it is missed" in verdict.reasons[0]


def test_what_the_largest_number_of_pairs_does_not_show_is_inconclusive_and_says_how_many_more_might(
    shipped_bundle: Bundle, cache: EpisodeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = gate_settings(max_episodes=75, success_margin=0.06, return_ratio=0.94)
    run = evaluation._trajectories

    def third_fails(model, manifest, environment, seeds, conditions, threads):
        for trajectory in run(model, manifest, environment, seeds, conditions, threads):
            # Every tenth episode of the candidate's, upside down.
            if manifest.name == "changed" and trajectory.seed % 10 == 3:
                trajectory.observations[:, 1] *= -1
            yield trajectory

    monkeypatch.setattr(evaluation, "_trajectories", third_fails)
    candidate = changed(shipped_bundle, lambda module: None)
    verdict = judge(candidate, shipped_bundle, CARTPOLE, settings, cache=cache)
    assert verdict.decision == "inconclusive"
    assert not verdict.accepted
    assert outcomes(verdict)["success"] == "undecided"
    assert "failed 8 times where the dense controller succeeded" in verdict.reasons[0]
    assert "no number of pairs would show it" in verdict.reasons[0]


def test_verdict_does_not_depend_on_the_number_of_workers_or_what_was_run_before(
    shipped_bundle: Bundle, cache: EpisodeCache
) -> None:
    verdicts = [
        judge(shipped_bundle, shipped_bundle, CARTPOLE, gate_settings(jobs=jobs), cache=kept)
        for jobs, kept in ((1, None), (2, cache))
    ]
    first, second = ([c for c in verdict.criteria if c.name != "latency"] for verdict in verdicts)
    assert first == second
    assert verdicts[0].pruned == verdicts[1].pruned


def _flip_sign(module: nn.Module) -> None:
    last_layer(module).weight.neg_()
    last_layer(module).bias.neg_()


@pytest.mark.parametrize(
    ("fault", "criterion"),
    [(_flip_sign, "success"), (amplify(0.05), "success"), (amplify(8.0), "action rate")],
    ids=["sign flip", "gain far too low", "gain far too high: it chatters"],
)
def test_planted_fault_is_rejected(shipped_bundle: Bundle, cache: EpisodeCache, fault: Change, criterion: str) -> None:
    verdict = judge(changed(shipped_bundle, fault), shipped_bundle, CARTPOLE, gate_settings(), cache=cache)
    assert verdict.decision == "reject"
    assert outcomes(verdict)[criterion] == "failed"


def test_delay_that_the_controller_cannot_stand_is_rejected(
    shipped_bundle: Bundle, cache: EpisodeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The candidate's commands take eight ticks longer than the dense controller's.
    run = evaluation._trajectories
    monkeypatch.setattr(
        evaluation,
        "_trajectories",
        lambda model, manifest, environment, seeds, conditions, threads: run(
            model, manifest, environment, seeds, Conditions(delay=8 * (manifest.name == "changed")), threads
        ),
    )
    candidate = changed(shipped_bundle, lambda module: None)
    assert judge(candidate, shipped_bundle, CARTPOLE, gate_settings(), cache=cache).decision == "reject"


@pytest.mark.parametrize(
    ("fault", "criterion"),
    [
        ("one tick more than the delay margin", "success"),
        ("gain too low", "success"),
        # The limits of the action turn the instability into a shaking that does not fall.
        ("gain too high", "action rate"),
    ],
)
def test_what_the_margins_forbid_is_rejected_in_closed_loop_too(
    pendulum: Bundle, cache: EpisodeCache, monkeypatch: pytest.MonkeyPatch, fault: str, criterion: str
) -> None:
    environment = str(pendulum.manifest.environment)
    found = local_stability(pendulum, environment)
    assert found.gain_margins is not None
    low, high = found.gain_margins
    change = {"gain too high": amplify(1.1 * high), "gain too low": amplify(0.9 * low)}
    candidate = changed(pendulum, change.get(fault, lambda module: None))
    run = evaluation._trajectories

    def delayed(model, manifest, environment, seeds, conditions, threads):
        ticks = (found.delay_margin + 1) * (manifest.name == "changed" and fault not in change)
        yield from run(model, manifest, environment, seeds, Conditions(delay=ticks), threads)

    monkeypatch.setattr(evaluation, "_trajectories", delayed)
    verdict = judge(candidate, pendulum, environment, gate_settings(), cache=cache)
    assert verdict.decision == "reject"
    assert outcomes(verdict)[criterion] == "failed"


class _NanNowAndThen:
    """The shipped policy, but that it gives NaN for one state in about ten thousand."""

    def __init__(self, *arguments) -> None:
        self._policy = load_policy(*arguments)

    def batch(self, observations: np.ndarray) -> np.ndarray:
        actions = self._policy.batch(observations)
        digits = np.asarray(observations, dtype=np.float32)[:, 0].view(np.uint32)
        actions[digits % 10_000 == 7] = np.nan
        return actions


def test_one_nan_in_ten_thousand_states_is_rejected(
    shipped_bundle: Bundle, cache: EpisodeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(shipped_bundle, shipped_bundle, CARTPOLE, gate_settings(), cache=cache)  # the dense one's are kept by now
    monkeypatch.setattr(evaluation, "load_policy", _NanNowAndThen)
    candidate = changed(shipped_bundle, lambda module: None)
    verdict = judge(candidate, shipped_bundle, CARTPOLE, gate_settings(), cache=cache)
    assert outcomes(verdict)["health"] == "failed"
    assert "actions held NaN or infinity, and none may" in verdict.reasons[0]
    assert verdict.pruned.successes == gate.LOOK, "nothing else would have told"


def test_controller_too_slow_for_its_rate_is_rejected(shipped_bundle: Bundle, cache: EpisodeCache) -> None:
    verdict = judge(shipped_bundle, shipped_bundle, CARTPOLE, gate_settings(latency_share=1e-5), cache=cache)
    assert outcomes(verdict)["latency"] == "failed"
    assert "0 µs are allowed, 0% of the control period" in verdict.reasons[0]


def test_dense_controller_that_cannot_do_its_task_is_told(
    shipped_bundle: Bundle, small_bundle: Bundle, cache: EpisodeCache
) -> None:
    verdict = judge(small_bundle, small_bundle, CARTPOLE, gate_settings())
    assert verdict.accepted
    (told,) = [note for note in verdict.notes if note.startswith("success")]
    assert (
        "the dense controller itself succeeds in only 0 of 75 episodes, and to be as good as that says little" in told
    )
    able = judge(shipped_bundle, shipped_bundle, CARTPOLE, gate_settings(), cache=cache)
    assert not any(note.startswith("success") for note in able.notes)


def test_environment_that_does_not_fit_is_refused(shipped_bundle: Bundle) -> None:
    with pytest.raises(PlantError, match="observes 5 values, the environment gives 11"):
        judge(shipped_bundle, shipped_bundle, "Hopper-v5", gate_settings())


def test_candidate_is_judged_against_its_parent_only(
    shipped_bundle: Bundle, small_bundle: Bundle, make_cartpole_bundle
) -> None:
    pruned = make_cartpole_bundle(hidden=(4, 4), parent=shipped_bundle)
    with pytest.raises(GateError, match="pruned from cartpole_swingup_sac@.* not against small@"):
        judge(pruned, small_bundle, CARTPOLE, gate_settings())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 50.0}, "its rate is 50 Hz, not 100 Hz"),
        ({"action": {"upper": (5.0,)}}, r"it commands slider in \[-10, 5\] N or N m, not slider in \[-10, 10\]"),
        ({"observation": {"name": "y"}}, r"its observation term 1 is 'y' \(1 position\), not 'x' \(1 position\)"),
    ],
)
def test_candidate_with_another_layout_than_the_dense_controller_is_refused(
    shipped_bundle: Bundle, make_cartpole_bundle, change: dict[str, Any], message: str
) -> None:
    manifest = shipped_bundle.manifest
    if "action" in change:
        change = {"action": manifest.action.model_copy(update=change["action"])}
    if "observation" in change:
        first, *others = manifest.observation.terms
        terms = (first.model_copy(update=change["observation"]), *others)
        change = {"observation": manifest.observation.model_copy(update={"terms": terms})}
    with pytest.raises(GateError, match=message):
        judge(make_cartpole_bundle(**change), shipped_bundle, CARTPOLE, gate_settings())


def test_it_can_be_cancelled(shipped_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(Cancelled, match="validation"):
        judge(shipped_bundle, shipped_bundle, CARTPOLE, gate_settings(), Progress(cancelled=lambda: True))


def test_task_in_the_settings_takes_the_place_of_what_is_known_of_the_environment(
    shipped_bundle: Bundle, cache: EpisodeCache
) -> None:
    task = Task(signals={"cart position": Signal(entry=0, unit="m")}, goal={"cart position": 1e-6}, hold=1.0)
    settings = gate_settings(task=task, max_episodes=75)
    verdict = judge(shipped_bundle, shipped_bundle, CARTPOLE, settings, cache=cache)
    assert verdict.dense.successes == 0
    (success,) = (criterion for criterion in verdict.criteria if criterion.name == "success")
    assert "cart position within 1e-06 m of its reference for the last 1 s" in success.reason


def test_task_that_does_not_fit_the_environment_is_refused(shipped_bundle: Bundle) -> None:
    settings = gate_settings(task=Task(signals={"pole": Signal(entry=5)}))
    with pytest.raises(PlantError, match=r"does not fit .*CartPole.*signal 'pole' is entry 5 of the observation"):
        judge(shipped_bundle, shipped_bundle, CARTPOLE, settings)


def test_taylor_pruned_actor_with_a_smaller_spectral_radius_than_the_dense_one_is_rejected(
    shipped_bundle: Bundle, cache: EpisodeCache, tmp_path: Path
) -> None:
    # Pruned from the second half of episodes, where the pole stands: near there its loop is the more stable one, and
    # it cannot swing up any more.
    record_episodes(shipped_bundle, CARTPOLE, range(4), tmp_path / "bag", lambda _: None)
    rollouts = read_rollouts(tmp_path / "bag")
    standing = rollouts.rows(np.flatnonzero(rollouts.step >= 400))
    settings = PruningSettings(sparsity=0.9, method="uniform", importance="taylor", perturbation=0.0)
    candidate, report = prune_bundle(shipped_bundle, standing, settings)
    assert report.sparsity > 0.89
    radius = [local_stability(bundle, CARTPOLE).spectral_radius for bundle in (candidate, shipped_bundle)]
    assert radius[0] < 1.0 < radius[1]
    verdict = judge(candidate, shipped_bundle, CARTPOLE, gate_settings(), cache=cache)
    assert verdict.decision == "reject"
    assert outcomes(verdict)["success"] == "failed"
