from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import safetensors
import torch
from torch import nn

pytest.importorskip("torch_pruning")

from compare_pruners import TASKS, Results, main, missing_units
from comparison.baselines import equalized, from_scratch, kept_channels, torch_pruning_selection
from comparison.cells import Cell, Dense, Settings, helps_of, make
from comparison.controllers import (
    CALIBRATION_EPISODES,
    CALIBRATION_SEED,
    EVALUATION_SEED,
    ON_POLICY_SEED,
    ControllerTask,
    DeployedController,
)
from comparison.images import DENSE_WEIGHTS, DeployedAutoencoder, ImageTask
from comparison.intervals import Estimate, Status, estimate_of, rounds, status_of
from comparison.recording import record
from comparison.report import write_report, write_summary
from comparison.tasks import Made, Subject, Task, subject_of
from nncontrol_prune.controllers.autoencoder import Autoencoder
from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.controllers.specs import MlpArchitecture
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.pruning.architectures import recipe_for
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.network import Network
from nncontrol_prune.pruning.settings import PruningSettings
from nncontrol_prune.pruning.terms import Term
from nncontrol_prune.service.mnist import made_from
from nncontrol_prune.service.mnist_report import MnistSettings
from nncontrol_prune.validation.evaluation import run_episodes
from nncontrol_prune.validation.selection import (
    OBSERVATION_EPISODES,
    OBSERVATION_SEED,
    SELECTION_EPISODES,
    SELECTION_SEED,
)
from tests.pruning.networks import WorldModel


def calibration_of(**batch: torch.Tensor) -> Calibration:
    weights = torch.ones(len(next(iter(batch.values()))))
    return Calibration(batch, weights, batch, weights)


def actor_selection(
    importance: str, everywhere: bool, sparsity: float, tolerance: float = 0.02
) -> tuple[list[int], float]:
    torch.manual_seed(0)
    recipe = recipe_for(Mlp(MlpArchitecture(hidden=(64, 48)), 5, 2))
    calibration = calibration_of(observation=torch.randn(300, 5))
    groups = recipe.network.groups(calibration.fit)
    keep = torch_pruning_selection(
        recipe.network,
        groups,
        calibration,
        recipe.terms[:1],
        importance,
        everywhere=everywhere,
        sparsity=sparsity,
        tolerance=tolerance,
    )
    first, second = (len(channels) for channels in keep)
    parameters = 6 * first + first * second + second + 2 * second + 2
    return [first, second], 1 - parameters / (6 * 64 + 64 * 48 + 48 + 2 * 48 + 2)


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_torch_pruning_removes_the_share_of_parameters_asked_for(importance: str) -> None:
    kept, removed = actor_selection(importance, False, 0.8)
    assert abs(removed - 0.8) <= 0.02
    assert kept[0] / 64 == pytest.approx(kept[1] / 48, abs=0.02)  # local: the same share everywhere
    other, removed = actor_selection(importance, True, 0.8)
    assert abs(removed - 0.8) <= 0.02
    assert other != kept


def test_torch_pruning_says_what_it_cannot_reach() -> None:
    with pytest.raises(PruningError, match=r"no ratio of channels comes within 0\.001 of sparsity 0\.999"):
        actor_selection("magnitude", False, 0.999, tolerance=0.001)


def run_world(module: Any, batch: Any) -> dict[str, torch.Tensor]:
    return module(batch["observation"], batch["action"])


def test_torch_pruning_leaves_latents_alone_and_members_keep_as_many() -> None:
    torch.manual_seed(0)
    ties = [["q.0.0", "q.1.0", "q.2.0"]]
    network = Network(WorldModel().eval(), WorldModel.components, run_world, ties)
    calibration = calibration_of(observation=torch.randn(64, 5), action=torch.randn(64, 2, 2))
    groups = network.groups(calibration.fit)
    terms = [Term("action0"), Term("reward0"), Term("value1")]
    keep = torch_pruning_selection(
        network, groups, calibration, terms, "taylor", everywhere=True, sparsity=0.4, tolerance=0.05
    )
    kept = {group.name: (len(channels), group) for channels, group in zip(keep, groups, strict=True)}
    for count, group in kept.values():
        assert (count == group.channels) == (group.kind == "inter-component")
    assert len({kept[name][0] for name in ties[0]}) == 1


def test_channels_that_leave_in_part_are_an_error() -> None:
    network = Network(WorldModel().eval(), WorldModel.components, run_world)
    groups = network.groups({"observation": torch.randn(4, 5), "action": torch.randn(4, 2, 2)})
    latent = next(group for group in groups if group.kind == "inter-component")
    member = next(member for member in latent.members if member.tensor.endswith("weight"))
    with pytest.raises(ValueError, match="in part"):
        kept_channels([latent], {(member.tensor, member.dim): {0}})


def test_tied_groups_keep_the_mean_by_rank() -> None:
    keep = [torch.arange(6), torch.arange(2), torch.arange(3)]
    ranked = [torch.arange(8).flip(0)] * 3
    found = equalized([[0, 1], [2]], keep, ranked)
    assert [channels.tolist() for channels in found] == [[4, 5, 6, 7], [4, 5, 6, 7], [0, 1, 2]]


def test_from_scratch_has_the_shape_and_none_of_the_weights() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    fresh = from_scratch(module, 0)
    for ours, theirs in zip(module.parameters(), fresh.parameters(), strict=True):
        assert ours.shape == theirs.shape
        assert not torch.equal(ours, theirs)


def test_interval_counts_what_differs_between_networks() -> None:
    rng = np.random.default_rng(0)
    dense = np.ones((5, 40))
    alike = 1 + 0.1 * rng.normal(size=(5, 40))
    different = alike + np.array([-0.2, -0.1, 0.0, 0.1, 0.2])[:, None]
    narrow, wide = (estimate_of(returns, dense, dense.ravel()) for returns in (alike, different))
    assert narrow.half_width < 0.03
    assert wide.half_width == pytest.approx(2.78 * 0.158 / 5**0.5, rel=0.15)


def test_interval_is_narrow_where_both_fail_from_the_same_starts() -> None:
    rng = np.random.default_rng(0)
    everything = np.where(rng.random(500) < 0.1, 300.0, 1000.0)
    dense = everything[:200].reshape(40, 5).T
    paired = estimate_of(0.99 * dense, dense, everything)
    strange = estimate_of(rng.permutation(0.99 * dense.ravel()).reshape(5, 40), dense, everything)
    assert paired.kept == pytest.approx(0.99)
    assert paired.half_width < 0.011
    assert strange.half_width > 2 * paired.half_width


def test_a_few_perfect_episodes_do_not_resolve_a_cell() -> None:
    perfect = np.full((5, 10), 100.0)
    assert status_of(estimate_of(perfect, perfect, perfect.ravel())) == "unresolved"
    many = np.full((5, 40), 100.0)
    assert status_of(estimate_of(many, many, many.ravel())) == "resolved"


@pytest.mark.parametrize(
    ("kept", "half_width", "status"),
    [(0.9, 0.02, "resolved"), (0.3, 0.1, "hopeless"), (0.45, 0.1, "unresolved"), (1.0, 0.03, "unresolved")],
)
def test_status(kept: float, half_width: float, status: str) -> None:
    assert status_of(Estimate(kept, half_width)) == status


def test_rounds_add_up_to_the_most_episodes() -> None:
    for networks, most in ((5, 500), (5, 57), (2, 8), (3, 1)):
        episodes = [episode for part in rounds(networks, most) for episode in part]
        assert episodes == list(range(max(2, most // networks)))


def test_recorded_rollouts_are_the_episodes(small_bundle: Bundle) -> None:
    episodes = run_episodes(small_bundle, CARTPOLE, [3, 4])
    rollouts = record(small_bundle, CARTPOLE, [3, 4])
    assert len(rollouts) == sum(episode.steps for episode in episodes)
    assert rollouts.reward[rollouts.episode == 1].sum() == pytest.approx(episodes[1].episode_return)
    assert rollouts.truncated.sum() == 2
    assert not rollouts.terminated.any()


def test_evaluation_seeds_are_used_for_nothing_else() -> None:
    settings = Settings()
    evaluation = set(range(EVALUATION_SEED, EVALUATION_SEED + settings.max_episodes))
    for first, episodes in (
        (CALIBRATION_SEED, CALIBRATION_EPISODES),
        (ON_POLICY_SEED, OBSERVATION_EPISODES),
        (OBSERVATION_SEED, OBSERVATION_EPISODES),
        (SELECTION_SEED, SELECTION_EPISODES),
    ):
        assert not evaluation & set(range(first, first + settings.seeds * episodes))


def test_the_pipeline_is_the_products_own(small_bundle: Bundle, tmp_path: Path) -> None:
    small_bundle.write(tmp_path / "small")
    task = ControllerTask("small", CARTPOLE, tmp_path / "small")
    settings = PruningSettings(sparsity=0.5, variations=0, on_policy_rounds=1, seed=1)
    made = task.pipeline(subject_of(task, 1), settings)
    manifest = cast(DeployedController, made.deployed).bundle.manifest
    assert made.removed == pytest.approx(0.5, abs=0.01)
    assert made.removed == pytest.approx(1 - manifest.parameters / small_bundle.manifest.parameters)
    assert manifest.provenance is not None
    assert manifest.provenance.rollouts == task._rollouts(1).digest != task._rollouts(0).digest


def test_the_pipeline_distils_where_the_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Subject, PruningSettings]] = []

    def pipeline(task: Task, subject: Subject, settings: PruningSettings) -> Made:
        asked.append((subject, settings))
        return Made(DeployedAutoencoder(Autoencoder(28), torch.rand(1, 1, 28, 28)), 0.9, 3.0)

    monkeypatch.setattr(ControllerTask, "pipeline", pipeline)
    task, subject = TASKS["hopper_td3"], cast(Subject, SimpleNamespace(seed=4))
    assert helps_of(task, "pipeline") == ("on_policy", "both")
    assert helps_of(ImageTask("mnist"), "pipeline") == ()
    for name, steps in (("on_policy", 0), ("both", 20)):
        assert make(task, subject, "pipeline", 0.9, name, Settings(distill_steps=20), {}).seconds == 3.0
        assert asked[-1] == (subject, PruningSettings(sparsity=0.9, distill_steps=steps, seed=4))


def test_autoencoder_is_scored_by_image_and_timed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    test = torch.rand(6, 1, 28, 28)
    deployed = DeployedAutoencoder(Autoencoder(28).eval(), test)
    scores = deployed.scores(range(6))
    assert deployed.scores([4, 1]) == pytest.approx([scores[4], scores[1]], abs=1e-6)
    assert all(-1.0 <= score <= 1.0 for score in scores)
    assert deployed.figures()["PSNR [dB]"] > 5.0
    assert 0.0 < deployed.latency() < 0.1


def test_autoencoder_without_images_says_what_is_missing(tmp_path: Path) -> None:
    reason = ImageTask("mnist", data=tmp_path).why_not()
    assert reason is not None
    assert "t10k-images-idx3-ubyte" in reason
    assert "--mnist" in reason


def test_the_dense_autoencoder_that_is_kept_was_trained_as_it_would_be_now() -> None:
    with safetensors.safe_open(DENSE_WEIGHTS, framework="pt") as file:
        kept = file.metadata()
        Autoencoder(28).load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    assert {**made_from(torch.zeros(1), MnistSettings()), "images": kept["images"]} == kept


def test_an_autoencoder_meets_no_states_of_its_own() -> None:
    assert "on_policy" not in helps_of(ImageTask("mnist"), "gradient")
    assert "on_policy" in helps_of(TASKS["hopper_td3"], "gradient")
    assert helps_of(ImageTask("mnist"), "scratch") == ("distill",)


FIGURES = {"PSNR [dB]": (20.0, 0.5)}
CELL = Cell("gradient", 0.9, "ls", "resolved", 0.99, 0.01, (0.98, 1.0), 100, 0.9, 1.0, 9.0, 16.0, 8.0, FIGURES)
DENSE = Dense((99.0, 101.0), 100.0, 2.0, 0.1, {"PSNR [dB]": 21.0})


def test_results_go_on_where_they_were_cut_off(tmp_path: Path) -> None:
    results = Results(tmp_path / "task.jsonl", Settings())
    results.append(DENSE)
    results.append(CELL)
    results.append(Cell("random", 0.9, "ls", "unreachable"))
    with results.path.open("a") as file:
        file.write(json.dumps({"kind": "cell"})[:9])
    dense, cells = results.read()
    assert dense == DENSE
    assert cells[CELL.key] == CELL
    assert cells[CELL.key].figures == FIGURES
    assert missing_units(TASKS["hopper_td3"], cells, ["gradient", "random", "scratch"], [0.9], ["ls", "both"]) == [
        ("gradient", 0.9, ["both"]),
        ("random", 0.9, ["both"]),
    ]
    assert Results(results.path, Settings(seeds=3)).read() == (None, {})


def test_report_tells_where_a_baseline_is_better(tmp_path: Path) -> None:
    better = Cell("random", 0.9, "ls", "resolved", 1.04, 0.01, (1.04,), 100, 0.9, 1.0, 9.0, 16.0, 8.0)
    unknown = Cell("uniform", 0.9, "ls", "unresolved", 0.9, 0.1, (0.9,), 500, 0.9, 1.0, 9.0, 16.0, 8.0)
    pipeline = replace(CELL, method="pipeline", help="both", search_seconds=77.0)
    cells = {cell.key: cell for cell in (CELL, better, unknown, pipeline)}
    page = write_report(tmp_path, TASKS["hopper_td3"], Settings(), DENSE, cells).read_text()
    assert "random 104.0 ± 1.0, gradient 99.0 ± 1.0" in page
    assert "*90.0 ± 10.0*" in page
    assert "| ours: gradient | 20.00 ± 0.50 |" in page
    assert "The whole pipeline is what `nncontrol-prune prune` does" in page
    assert "| ours: the whole pipeline | 77 |" in page
    assert "| ours: gradient | 9 µs, 12 % |" in page
    assert (tmp_path / "images" / "comparison_hopper_td3.png").is_file()


def cell(method: str, sparsity: float, kept: float, status: Status = "resolved", help_kind: str = "both") -> Cell:
    return Cell(method, sparsity, help_kind, status, kept, 0.02, (kept,), 100, sparsity, 1.0, 9.0, 16.0, 8.0)


def test_report_of_what_no_method_reached(tmp_path: Path) -> None:
    cell = Cell("tp_taylor_global", 0.98, "ls", "unreachable")
    page = write_report(tmp_path, TASKS["hopper_td3"], Settings(), DENSE, {cell.key: cell}).read_text()
    assert "| Torch-Pruning Taylor, global | unreachable |" in page
    assert "## Latency" not in page


def test_summary_compares_only_what_all_were_measured_at(tmp_path: Path) -> None:
    others = ("tp_magnitude_local", "tp_magnitude_global", "tp_taylor_local", "tp_taylor_global")
    kept = {0.7: 1.0, 0.8: 0.96, 0.9: 0.94}
    cells = [cell(method, sparsity, kept[sparsity] - 0.02) for method in others for sparsity in kept]
    cells += [cell("random", 0.8, 0.95), cell("random", 0.9, 0.96, "unresolved")]
    cells += [cell("gradient", sparsity, kept[sparsity] + 0.02) for sparsity in kept]
    cells += [cell("gradient", 0.95, 1.0), cell("pipeline", 0.9, 0.98), cell("pipeline", 0.95, 0.98)]
    task = {known.key: known for known in cells}
    elsewhere = {known.key: known for known in [cell("gradient", 0.9, 1.0)]}
    page = write_summary(tmp_path, {"walker": task, "hopper": elsewhere}).read_text()
    assert [line for line in page.splitlines() if line.startswith(("## ", "| ["))] == [
        "## Reconstruction, then distillation",
        "| [walker](walker.md) | 70, 80, 90 | 80 % (none); 90 % undecided†: random | ≥ 90 % (80 %) | ≥ 90 % (90 %)† |",
        "## What was measured",
        "| [walker](walker.md) | 70 (5), 80 (6), 90 (7), 95 (2) |",
        "| [hopper](hopper.md) | 90 (1) |",
    ]
    assert "ours: uniform" not in page


def test_the_summary_is_of_all_tasks_whichever_were_run_and_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(tmp_path / "hopper_td3.jsonl", Settings())
    for known in (DENSE, CELL):
        results.append(known)
    options = ["--tables", "--task", "walker2d_ppo", "--seeds", "3", "--out", str(tmp_path), "--docs", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["compare_pruners.py", *options])
    main()
    assert "| [hopper_td3](hopper_td3.md) | 90 (1) |" in (tmp_path / "comparison" / "summary.md").read_text()
