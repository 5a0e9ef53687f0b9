from __future__ import annotations

import re

import numpy as np
import pytest

from nncontrol_prune.controllers.bundle import Bundle, load_bundle, make_bundle
from nncontrol_prune.controllers.errors import BundleError
from nncontrol_prune.progress import Cancelled, Progress
from nncontrol_prune.pruning import pipeline
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.pipeline import prune_bundle
from nncontrol_prune.pruning.problem import LATENCY_TURNS
from nncontrol_prune.pruning.settings import PruningSettings


@pytest.fixture
def rollouts(make_rollouts, small_bundle: Bundle):
    return make_rollouts(np.random.default_rng(0).normal(size=(500, small_bundle.manifest.observation.size)))


def test_pruned_bundle_knows_where_it_comes_from(small_bundle: Bundle, rollouts, tmp_path) -> None:
    settings = PruningSettings(sparsity=0.5, tolerance=0.03, method="uniform")
    pruned, report = prune_bundle(small_bundle, rollouts, settings)
    pruned.write(tmp_path / "pruned")
    manifest = load_bundle(tmp_path / "pruned").manifest
    assert manifest.parent == small_bundle.reference
    assert manifest.provenance is not None
    assert manifest.provenance.rollouts == rollouts.digest
    assert manifest.provenance.sparsity == pytest.approx(1 - manifest.parameters / small_bundle.manifest.parameters)
    assert manifest.architecture.hidden == tuple(group.kept for group in report.groups)
    assert (manifest.observation, manifest.action) == (small_bundle.manifest.observation, small_bundle.manifest.action)


def test_sparsity_and_name_of_a_bundle_go_by_its_parameters_whatever_the_budget_is_of(
    make_cartpole_bundle, rollouts
) -> None:
    dense = make_cartpole_bundle(hidden=(64, 64), name="a" * 100)
    settings = PruningSettings(sparsity=0.5, cost="multiplications", tolerance=0.02, method="uniform")
    pruned, report = prune_bundle(dense, rollouts, settings)
    assert pruned.manifest.provenance is not None
    sparsity = 1 - pruned.manifest.parameters / dense.manifest.parameters
    assert pruned.manifest.provenance.sparsity == pytest.approx(sparsity)
    assert report.sparsity != pytest.approx(sparsity, abs=1e-4)
    assert pruned.manifest.name == f"{'a' * 97}_{round(100 * sparsity)}"


def test_a_controller_is_exported_once_for_all_turns_in_which_its_latency_is_measured(
    make_cartpole_bundle, rollouts, monkeypatch
) -> None:
    exported, measured = list[int](), list[int]()

    def make(module, **how) -> Bundle:
        bundle = make_bundle(module, **how)
        exported.append(bundle.manifest.parameters)
        return bundle

    def seconds(bundle: Bundle) -> float:
        measured.append(bundle.manifest.parameters)
        return 1e-8 * measured[-1]

    monkeypatch.setattr(pipeline, "make_bundle", make)
    monkeypatch.setattr(pipeline, "latency_of", seconds)
    settings = PruningSettings(sparsity=0.5, cost="latency", tolerance=0.05, method="uniform")
    pruned, report = prune_bundle(make_cartpole_bundle(hidden=(64, 64)), rollouts, settings)
    result = [report.dense_parameters, pruned.manifest.parameters]
    assert exported == [*measured[:6], *result, pruned.manifest.parameters]
    assert measured == measured[:6] * LATENCY_TURNS + result * LATENCY_TURNS
    assert report.cost == "latency"
    assert report.pruned_parameters == pytest.approx(0.5 * report.dense_parameters, rel=0.15)


@pytest.mark.parametrize("returned", [2, -1, None])
def test_what_a_closed_loop_chooses_has_to_be_the_index_of_a_controller(
    small_bundle: Bundle, rollouts, returned
) -> None:
    settings = PruningSettings(sparsity=0.5, tolerance=0.03, method="threshold")
    with pytest.raises(PruningError, match=rf"^choose returned {returned} for 2 candidates; .* 0 to 1$"):
        prune_bundle(small_bundle, rollouts, settings, choose=lambda candidates: returned)


def test_uniform_coefficients_distillation_and_another_ranking_are_candidates_and_the_choice_is_asked(
    small_bundle: Bundle, rollouts
) -> None:
    settings = PruningSettings(sparsity=0.5, tolerance=0.03, method="threshold", distill_steps=100)
    asked = []

    def choose(candidates) -> int:
        asked.append([candidate.manifest.provenance for candidate in candidates])
        return 1

    pruned, report = prune_bundle(small_bundle, rollouts, settings, choose=choose)
    assert [[(made.method, made.importance, made.distill_steps) for made in candidates] for candidates in asked] == [
        [("threshold", "obs", 0), ("uniform", "obs", 0)],
        [("uniform", "obs", 0), ("uniform", "obs", 100)],
        [("uniform", "obs", 100), ("uniform", "fisher", 100)],
    ]
    assert report.chosen == "uniform_fisher_distilled"
    assert pruned.manifest.provenance == asked[2][1]
    assert asked[2][1].coefficients == asked[2][0].coefficients
    assert pruned.manifest.architecture.hidden == tuple(group.kept for group in report.groups)
    assert list(report.errors) == ["threshold", "uniform", "uniform_distilled", "uniform_fisher_distilled"]
    assert report.errors["uniform_distilled"] <= report.errors["uniform"]


@pytest.mark.parametrize("on_policy", [True, False])
def test_another_ranking_is_what_asking_for_it_makes(small_bundle: Bundle, rollouts, on_policy: bool) -> None:
    settings = PruningSettings(sparsity=0.5, tolerance=0.03, method="uniform", distill_steps=30, on_policy_rounds=1)
    far = np.random.default_rng(1).normal(size=(400, small_bundle.manifest.observation.size))
    tried: list[Bundle] = []

    def choose(candidates) -> int:
        tried.append(candidates[1])
        return int(on_policy or len(tried) > 1)

    prune_bundle(small_bundle, rollouts, settings, choose=choose, observe=lambda bundle: far)
    *_, reranked = tried
    assert [bundle.manifest.provenance.importance for bundle in tried] == ["obs", "obs", "fisher"]
    tried.clear()
    wanted = settings.model_copy(update={"importance": "fisher"})
    asked_for, _ = prune_bundle(small_bundle, rollouts, wanted, choose=choose, observe=lambda bundle: far)
    assert len(tried) == 2, "on policy and distilled; it has that ranking already"
    assert reranked.digest == asked_for.digest


def test_what_has_the_least_objective_is_distilled_whatever_was_better_before(small_bundle: Bundle, rollouts) -> None:
    settings = PruningSettings(sparsity=0.5, tolerance=0.03, method="threshold", distill_steps=20, on_policy_rounds=1)
    far = np.random.default_rng(1).normal(size=(400, small_bundle.manifest.observation.size))
    asked: list[list[str]] = []

    def choose(candidates) -> int:
        asked.append([candidate.manifest.provenance.method for candidate in candidates])
        return asked[0].index(worse) if len(asked) == 1 else 1

    worse = "uniform"
    _, report = prune_bundle(small_bundle, rollouts, settings, choose=choose, observe=lambda bundle: far)
    lowest, worse = sorted(("threshold", "uniform"), key=report.errors.__getitem__)
    asked.clear()
    _, report = prune_bundle(small_bundle, rollouts, settings, choose=choose, observe=lambda bundle: far)
    assert asked[1:] == [[worse, worse], [worse, worse], [worse, lowest], [lowest, lowest]]
    assert list(report.errors)[2:] == [
        f"{worse}_on_policy",
        f"{worse}_on_policy_distilled",
        f"{lowest}_on_policy_distilled",
        f"{lowest}_fisher_on_policy_distilled",
    ]


@pytest.mark.parametrize("first", [0, 1])
def test_nothing_more_is_distilled_where_the_closed_loop_has_enough(small_bundle: Bundle, rollouts, first: int) -> None:
    settings = PruningSettings(sparsity=0.5, tolerance=0.03, method="threshold", distill_steps=20)
    choices = iter([first, 1])
    _, report = prune_bundle(
        small_bundle, rollouts, settings, choose=lambda candidates: next(choices), enough=lambda candidate: True
    )
    assert list(report.errors)[2:] == [f"{['threshold', 'uniform'][first]}_distilled"]


def test_coefficients_are_varied_until_the_closed_loop_has_enough(make_cartpole_bundle, rollouts) -> None:
    settings = PruningSettings(sparsity=0.5, tolerance=0.03, method="uniform")
    dense = make_cartpole_bundle(hidden=(24, 24, 24))
    tried: list[Bundle] = []

    def choose(candidates) -> int:
        tried.append(candidates[1])
        return int(len(tried) > 1)  # the first variation is for the worse

    def enough(candidate: Bundle) -> bool:
        return len(tried) >= 2

    pruned, report = prune_bundle(dense, rollouts, settings, choose=choose, enough=enough)
    worse, better = (bundle.manifest.architecture.hidden for bundle in tried)
    assert worse != better == tuple(group.kept for group in report.groups)
    assert all(bundle.manifest.provenance.sparsity == pytest.approx(0.5, abs=0.03) for bundle in tried)
    assert list(report.errors) == ["uniform", report.chosen]
    assert re.fullmatch(r"uniform_varied_\d+", report.chosen)
    tried.clear()
    again, _ = prune_bundle(dense, rollouts, settings, choose=choose, enough=enough)
    assert again.digest == pruned.digest
    tried.clear()
    prune_bundle(dense, rollouts, settings.model_copy(update={"variations": 1}), choose=choose, enough=enough)
    assert len(tried) == 1


@pytest.mark.parametrize(
    ("on_policy", "steps", "name"),
    [
        (True, 0, r"uniform_varied_\d+_on_policy"),
        (False, 0, r"uniform_varied_\d+"),
        (True, 20, r"uniform_varied_\d+_on_policy_distilled"),
        (False, 20, r"uniform_varied_\d+_on_policy_distilled"),
    ],
)
def test_what_follows_the_choice_of_coefficients_follows_their_variations_too(
    make_cartpole_bundle, rollouts, on_policy: bool, steps: int, name: str
) -> None:
    settings = PruningSettings(
        sparsity=0.5, tolerance=0.03, method="uniform", importance="fisher", on_policy_rounds=2,
        distill_steps=steps, variations=6,
    )  # fmt: skip
    dense = make_cartpole_bundle(hidden=(24, 24, 24))
    far = 3.0 + np.random.default_rng(1).normal(size=(400, dense.manifest.observation.size))
    made: list[str] = []

    def choose(candidates) -> int:
        provenance = candidates[1].manifest.provenance
        made.append(f"{provenance.on_policy_rounds} {provenance.distill_steps}")
        return int(on_policy or len(made) > 1)

    _, report = prune_bundle(dense, rollouts, settings, choose=choose, observe=lambda bundle: far)
    assert re.fullmatch(name, report.chosen)
    finished = [f"2 {steps}"] if on_policy or steps else ["0 0"]
    before = ["2 0", *(["2 20"] if steps else [])]
    assert made[: len(before)] == before
    assert len(made) > len(before)
    assert set(made[len(before) :]) == set(finished)


def test_the_search_is_one_stage_whatever_it_does_to_a_variation(make_cartpole_bundle, rollouts) -> None:
    settings = PruningSettings(
        sparsity=0.5, tolerance=0.03, method="uniform", importance="fisher", distill_steps=100, variations=3
    )
    told: list[tuple[str, float]] = []
    dense = make_cartpole_bundle(hidden=(24, 24, 24))
    progress = Progress(lambda stage, share: told.append((stage, share)))
    prune_bundle(dense, rollouts, settings, choose=lambda candidates: 1, progress=progress)
    search = told[[stage for stage, _ in told].index("closed-loop search") :]
    assert {stage for stage, _ in search} == {"closed-loop search"}
    shares = [share for _, share in search]
    assert shares == sorted(shares)
    assert len(set(shares)) == 3 * 2 + 1, "each is distilled, and judged twice on the way"
    assert shares[-1] == 1.0


def test_a_variation_that_was_refitted_with_what_was_met_follows_it_better(make_cartpole_bundle, rollouts) -> None:
    settings = PruningSettings(sparsity=0.5, tolerance=0.03, method="uniform", on_policy_rounds=1, variations=6)
    dense = make_cartpole_bundle(hidden=(24, 24, 24))
    far = 3.0 + np.random.default_rng(1).normal(size=(400, dense.manifest.observation.size))
    wanted = dense.policy.batch(far.astype(np.float32))

    def errors_of_variations(on_policy: bool) -> dict[tuple[int, ...], float]:
        errors: dict[tuple[int, ...], float] = {}

        def choose(candidates) -> int:
            other = candidates[1]
            found = np.square(other.policy.batch(far.astype(np.float32)) - wanted).mean()
            errors[other.manifest.architecture.hidden] = found
            return int(len(errors) == 1 and on_policy)  # variations of one choice, so that they are the same ones

        prune_bundle(dense, rollouts, settings, choose=choose, observe=lambda bundle: far)
        return errors

    refitted, not_refitted = errors_of_variations(True), errors_of_variations(False)
    common = [hidden for hidden in list(refitted)[1:] if hidden in not_refitted]
    assert common
    assert all(refitted[hidden] < 0.7 * not_refitted[hidden] for hidden in common)


def test_channels_that_left_in_rounds_are_not_ranked_anew(small_bundle: Bundle, rollouts) -> None:
    settings = PruningSettings(sparsity=0.5, tolerance=0.03, method="uniform", rounds=2, distill_steps=20)
    _, report = prune_bundle(small_bundle, rollouts, settings, choose=lambda candidates: 1)
    assert list(report.errors) == ["uniform", "uniform_distilled"]


def test_no_candidate_is_chosen_that_exceeds_a_limit_which_another_keeps(small_bundle: Bundle, rollouts) -> None:
    settings = PruningSettings(sparsity=0.7, tolerance=0.03, method="uniform", distill_steps=20)
    last = lambda candidates: len(candidates) - 1  # noqa: E731
    _, free = prune_bundle(small_bundle, rollouts, settings, choose=last)
    assert free.chosen == "uniform_fisher_distilled"
    best, second, _ = sorted(free.terms, key=lambda name: free.terms[name]["action"])
    assert best != free.chosen, "or this would show nothing"
    limit = (free.terms[best]["action"] + free.terms[second]["action"]) / 2
    limited = settings.model_copy(update={"limits": {"action": limit}})
    _, report = prune_bundle(small_bundle, rollouts, limited, choose=last)
    assert report.terms == free.terms
    assert report.chosen == best
    assert not any("limit" in warning for warning in report.warnings)
    hopeless = settings.model_copy(update={"limits": {"action": 1e-12}})
    _, report = prune_bundle(small_bundle, rollouts, hopeless, choose=last)
    assert report.chosen == free.chosen
    assert "the limit on action is exceeded by every choice that was tried" in report.warnings


def test_variations_that_exceed_a_limit_are_not_asked_about(make_cartpole_bundle, rollouts) -> None:
    dense = make_cartpole_bundle(hidden=(24, 24, 24))
    settings = PruningSettings(sparsity=0.5, tolerance=0.03, method="uniform", variations=3, on_policy_rounds=0)
    _, free = prune_bundle(dense, rollouts, settings, choose=lambda candidates: 1)
    assert free.chosen != "uniform"
    limited = settings.model_copy(update={"limits": {"action": 1e-12}})
    _, report = prune_bundle(dense, rollouts, limited, choose=lambda candidates: 1)
    assert list(report.errors) == ["uniform"]


def test_no_choice_of_channels_is_asked_about_twice(make_cartpole_bundle, rollouts) -> None:
    dense = make_cartpole_bundle(hidden=(6, 6))
    settings = PruningSettings(sparsity=0.5, tolerance=0.05, method="uniform", variations=40, on_policy_rounds=0)
    asked: list[tuple[int, ...]] = []

    def choose(candidates) -> int:
        asked.append(candidates[1].manifest.architecture.hidden)
        return 0

    _, report = prune_bundle(dense, rollouts, settings, choose=choose)
    assert 1 < len(asked) < 40
    assert len(set(asked)) == len(asked)
    assert tuple(group.kept for group in report.groups) not in asked


def test_a_variation_that_keeps_a_limit_is_taken_for_one_that_does_not(make_cartpole_bundle, rollouts) -> None:
    dense = make_cartpole_bundle(hidden=(8, 40, 24))
    settings = PruningSettings(sparsity=0.5, tolerance=0.03, method="uniform", variations=8, on_policy_rounds=0)
    first = lambda candidates: 0  # noqa: E731
    _, free = prune_bundle(dense, rollouts, settings, choose=first, enough=lambda candidate: True)
    assert free.chosen == "uniform"
    limited = settings.model_copy(update={"limits": {"action": 0.5 * free.terms["uniform"]["action"]}})
    _, report = prune_bundle(dense, rollouts, limited, choose=first, enough=lambda candidate: True)
    assert report.chosen != "uniform"
    assert report.terms[report.chosen]["action"] <= limited.limits["action"]
    assert not any("limit" in warning for warning in report.warnings)


def test_variations_need_a_closed_loop(small_bundle: Bundle, rollouts) -> None:
    with pytest.raises(PruningError, match="variations of the coefficients need an environment"):
        prune_bundle(small_bundle, rollouts, PruningSettings(variations=2))


def test_without_a_closed_loop_the_held_out_error_chooses(small_bundle: Bundle, rollouts) -> None:
    settings = PruningSettings(sparsity=0.5, tolerance=0.03, method="grid", distill_steps=100)
    _, report = prune_bundle(small_bundle, rollouts, settings)
    assert list(report.errors) == ["grid", "grid_distilled"]
    assert report.chosen == min(report.errors, key=report.errors.__getitem__)


def test_a_candidate_that_cannot_be_deployed_is_none(small_bundle: Bundle, rollouts, monkeypatch) -> None:
    made = pipeline.make_bundle

    def fails_for_some(module, *, provenance, **others):
        if provenance is not None and provenance.method in refused:
            raise BundleError("its outputs are not finite")
        return made(module, provenance=provenance, **others)

    monkeypatch.setattr(pipeline, "make_bundle", fails_for_some)
    settings = PruningSettings(sparsity=0.5, tolerance=0.03, method="threshold")
    refused = ["uniform"]
    _, report = prune_bundle(small_bundle, rollouts, settings, choose=lambda candidates: len(candidates) - 1)
    assert report.chosen == "threshold"
    refused.append("threshold")
    with pytest.raises(PruningError, match="of no use: its outputs are not finite; ask for less sparsity"):
        prune_bundle(small_bundle, rollouts, settings, choose=lambda candidates: len(candidates) - 1)


def test_states_that_the_pruned_controller_meets_are_fitted_too(small_bundle: Bundle, rollouts) -> None:
    far = 3.0 + np.random.default_rng(1).normal(size=(400, small_bundle.manifest.observation.size))
    met = far.copy()
    met[::4] = np.nan
    settings = PruningSettings(sparsity=0.7, tolerance=0.03, method="uniform")
    observed = []

    def observe(bundle: Bundle):
        observed.append(bundle)
        return met

    last = lambda candidates: len(candidates) - 1  # noqa: E731
    pruned, report = prune_bundle(small_bundle, rollouts, settings, choose=last, observe=observe)
    alone, _ = prune_bundle(small_bundle, rollouts, settings, choose=last)
    assert report.chosen == "uniform_on_policy"
    assert len(observed) == pruned.manifest.provenance.on_policy_rounds == pipeline.ON_POLICY_ROUNDS
    wanted = small_bundle.policy.batch(far.astype(np.float32))
    errors = [np.square(bundle.policy.batch(far.astype(np.float32)) - wanted).mean() for bundle in (pruned, alone)]
    assert errors[0] < 0.5 * errors[1]
    _, report = prune_bundle(
        small_bundle, rollouts, settings.model_copy(update={"on_policy_rounds": 0}), choose=last, observe=observe
    )
    assert report.chosen == "uniform"


def test_what_cannot_be_deployed_on_the_way_meets_nothing(small_bundle: Bundle, rollouts, monkeypatch) -> None:
    made = pipeline.make_bundle
    refused: list[bool] = []

    def fails_on_the_way(module, *, provenance, **others):
        if provenance is None and len(refused) < 2:
            refused.append(True)
            raise BundleError("the exported policy and its torch module disagree")
        return made(module, provenance=provenance, **others)

    monkeypatch.setattr(pipeline, "make_bundle", fails_on_the_way)
    settings = PruningSettings(sparsity=0.5, tolerance=0.03, method="uniform", distill_steps=20, on_policy_rounds=2)
    far = np.random.default_rng(1).normal(size=(400, small_bundle.manifest.observation.size))
    observed: list[Bundle] = []

    def observe(bundle: Bundle):
        observed.append(bundle)
        return far

    last = lambda candidates: len(candidates) - 1  # noqa: E731
    _, report = prune_bundle(small_bundle, rollouts, settings, choose=last, observe=observe)
    assert len(refused) == 2, "both rounds of least squares"
    assert len(observed) == 4, "and those of the two that were distilled"
    assert report.chosen == "uniform_fisher_on_policy_distilled"


def test_what_fails_in_the_environment_is_told(small_bundle: Bundle, rollouts) -> None:
    def observe(bundle: Bundle):
        raise PruningError("the environment went away")

    with pytest.raises(PruningError, match="the environment went away"):
        prune_bundle(small_bundle, rollouts, PruningSettings(sparsity=0.5, tolerance=0.03), observe=observe)


def test_on_policy_rounds_need_an_environment(small_bundle: Bundle, rollouts) -> None:
    with pytest.raises(PruningError, match="on-policy rounds need an environment to run in"):
        prune_bundle(small_bundle, rollouts, PruningSettings(on_policy_rounds=2))


def test_same_seed_gives_the_same_bundle(small_bundle: Bundle, rollouts) -> None:
    settings = PruningSettings(sparsity=0.5, tolerance=0.03, distill_steps=60, seed=3)
    digests = {prune_bundle(small_bundle, rollouts, settings)[0].digest for _ in range(2)}
    assert len(digests) == 1


def test_rollouts_of_another_size_are_refused(small_bundle: Bundle, make_rollouts) -> None:
    with pytest.raises(PruningError, match="3 observation values, small observes 5"):
        prune_bundle(small_bundle, make_rollouts(np.zeros((100, 3))), PruningSettings())


@pytest.mark.parametrize("stage", ["groups", "importance", "coefficients", "reconstruction", "distillation", "choice"])
def test_it_can_be_cancelled_in_every_stage(small_bundle: Bundle, rollouts, stage: str) -> None:
    reached = []
    progress = Progress(lambda name, _: reached.append(name), lambda: stage in reached)
    settings = PruningSettings(sparsity=0.5, tolerance=0.03, method="grid", distill_steps=200)
    with pytest.raises(Cancelled, match=f"during {stage}"):
        prune_bundle(small_bundle, rollouts, settings, progress=progress)


@pytest.mark.parametrize("stage", ["on-policy rounds", "closed-loop search"])
def test_it_can_be_cancelled_while_it_works_in_closed_loop(small_bundle: Bundle, rollouts, stage: str) -> None:
    reached = []
    progress = Progress(lambda name, _: reached.append(name), lambda: stage in reached)
    settings = PruningSettings(sparsity=0.5, tolerance=0.03, method="uniform", on_policy_rounds=1, variations=2)
    with pytest.raises(Cancelled, match=f"during {stage}"):
        prune_bundle(
            small_bundle,
            rollouts,
            settings,
            observe=lambda bundle: rollouts.observation[:200],
            choose=lambda bundles: 0,
            enough=lambda bundle: False,
            progress=progress,
        )
