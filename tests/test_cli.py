from __future__ import annotations

import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from nncontrol_prune import __version__
from nncontrol_prune.cli.app import app
from nncontrol_prune.controllers.bundle import Bundle, load_bundle
from nncontrol_prune.controllers.onnx_policies import ImportedPolicy
from nncontrol_prune.files import held_directory
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.resources import shipped_controllers
from nncontrol_prune.rollouts.writer import BagWriter
from nncontrol_prune.runtime import finding
from nncontrol_prune.runtime.statistics import COLUMNS
from nncontrol_prune.runtime.store import BundleStore, SlotRecord
from nncontrol_prune.service import rollouts, work
from nncontrol_prune.service.inspection import inspect_rollouts
from nncontrol_prune.transport import live_loop
from nncontrol_prune.transport.live_loop import TickTrace
from nncontrol_prune.validation.evaluation import trajectories
from nncontrol_prune.validation.settings import GateSettings

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def json_of(result: Result) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bags") / "bag"
    result = run("rollout", "cartpole_swingup_sac", "--episodes", 3, "--out", path, "--json")
    assert json_of(result)["successes"] == 3
    return path


@pytest.mark.parametrize("whole", [0, 2])
def test_interrupted_rollouts_are_whole_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int) -> None:
    def interrupted(*arguments: Any) -> Iterator[Any]:
        for number, trajectory in enumerate(trajectories(*arguments)):
            if number == whole:
                signal.raise_signal(signal.SIGINT)
            yield trajectory

    monkeypatch.setattr(rollouts, "trajectories", interrupted)
    result = run("rollout", "cartpole_swingup_sac", "--episodes", 9, "--out", tmp_path / "bag")
    assert result.exit_code == 130
    assert (tmp_path / "bag").exists() == bool(whole)
    if whole:
        assert "interrupted after 2 of 9 episodes" in result.stderr
        assert inspect_rollouts(tmp_path / "bag")["transitions"] == 2_000
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_after_the_last_episode_interrupts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> Iterator[Any]:
        yield from trajectories(*arguments)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(rollouts, "trajectories", interrupted)
    result = run("rollout", "cartpole_swingup_sac", "--episodes", 2, "--out", tmp_path / "bag")
    assert (result.exit_code, "interrupted" in result.stderr) == (0, False)


@pytest.fixture(scope="module")
def pruned(bag: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "pruned"
    result = run(
        *("prune", "cartpole_swingup_sac", "--rollouts", bag, "--sparsity", 0.9, "--method", "uniform"),
        *("--out", path, "--json"),
    )
    assert json_of(result)["sparsity"] == pytest.approx(0.9, abs=0.01)
    return path


@pytest.mark.parametrize(
    ("arguments", "candidates"), [([], {"uniform", "uniform_on_policy"}), (["--env", "none"], {"uniform"})]
)
def test_candidates_are_compared_where_the_controller_was_made_for(
    bag: Path, tmp_path: Path, arguments: list[str], candidates: set[str]
) -> None:
    result = run(
        *("prune", "cartpole_swingup_sac", "--rollouts", bag, "--sparsity", 0.9, "--method", "uniform"),
        *("--variations", 0, "--out", tmp_path / "out", "--store", tmp_path / "store", "--json", *arguments),
    )
    assert set(json_of(result)["errors"]) == candidates
    assert (tmp_path / "store" / "episodes").exists() == (not arguments), "the dense controller's are kept"


def test_where_its_environment_is_not_installed_rollouts_are_enough(
    bag: Path, tmp_path: Path, make_cartpole_bundle
) -> None:
    make_cartpole_bundle(environment="my_package:MyRobot-v0").write(tmp_path / "mine")
    result = run("prune", tmp_path / "mine", "--rollouts", bag, "--out", tmp_path / "out")
    assert result.exit_code == 1
    message = " ".join(result.stderr.split())
    assert "MyRobot-v0" in message
    assert "--env none prunes by the rollouts alone" in message


def test_a_configuration_gives_what_no_option_does(bag: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    parameters = (
        "sparsity: 0.5, method: uniform, on_policy_rounds: 0, variations: 0, limits: {action: 0.3}, channel_multiple: 4"
    )
    config.write_text(f"/**/pruning_service:\n  ros__parameters: {{{parameters}}}\n")
    arguments = ["prune", "cartpole_swingup_sac", "--rollouts", bag, "--config", config, "--json"]
    result = json_of(run(*arguments, "--out", tmp_path / "a"))
    assert (round(result["sparsity"], 1), result["chosen"]) == (0.5, "uniform")
    assert {width % 4 for width in load_bundle(tmp_path / "a").manifest.architecture.hidden} == {0}
    assert round(json_of(run(*arguments, "--sparsity", 0.6, "--out", tmp_path / "b"))["sparsity"], 1) == 0.6
    limited = run(*arguments, "--limit", "action=1e-9", "--out", tmp_path / "c")
    assert "the limit on action is exceeded" in json_of(limited)["warnings"][0]
    store = tmp_path / "my_store"
    told = run(*arguments[:-1], "--out", tmp_path / "d", "--store", store).stdout
    assert f"--against cartpole_swingup_sac --config {config} --store {store}" in " ".join(told.split())


def test_what_a_configuration_asks_of_the_gate_is_what_candidates_are_compared_by(
    bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[GateSettings] = []

    def prune(*_: Any, gate: GateSettings, **__: Any) -> None:
        asked.append(gate)
        raise PruningError("that is all")

    monkeypatch.setattr(work, "prune", prune)
    config = tmp_path / "config.yaml"
    config.write_text("/**/pruning_service:\n  ros__parameters: {delay: 7}\n")
    run("prune", "cartpole_swingup_sac", "--rollouts", bag, "--config", config, "--out", tmp_path / "a")
    assert asked == [GateSettings(delay=7)]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            "task: {signals: {height: {entry: 99, unit: m}}, goal: {height: 0.1}}",
            f"the task does not fit {CARTPOLE}",
        ),
        ("env: Hopper-v5", "does not fit Hopper-v5"),
    ],
)
@pytest.mark.parametrize("command", ["prune", "validate"])
def test_where_a_configuration_does_not_fit_is_told(
    bag: Path, pruned: Path, tmp_path: Path, command: str, parameters: str, message: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"/**/pruning_service:\n  ros__parameters: {{{parameters}}}\n")
    arguments = ["cartpole_swingup_sac", "--rollouts", bag, "--out", tmp_path / "a"]
    if command == "validate":
        arguments = [pruned, "--against", "cartpole_swingup_sac", "--store", tmp_path / "store"]
    result = run(command, *arguments, "--config", config)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())


def test_pruned_bundle_can_be_run_only_after_validation(
    pruned: Path, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "report_on", lambda *_, **__: None)  # it takes longer than all else
    store = tmp_path / "store"
    refused = run("sim", "--controller", pruned, "--store", store, "--out", tmp_path, "--port", port)
    assert refused.exit_code == 1
    assert "never validated" in refused.stderr
    accepted = run(
        "validate", pruned, "--against", "cartpole_swingup_sac", "--no-robustness", "--store", store, "--json"
    )
    assert (accepted.exit_code, json_of(accepted)["decision"]) == (0, "accept")
    ran = run(
        *("sim", "--controller", pruned, "--store", store, "--out", tmp_path, "--port", port),
        *("--duration", 1, "--prune-after", -1, "--json"),
    )
    assert ran.exit_code == 0, ran.stderr
    assert json_of(ran)["dense"]["reference"] == load_bundle(pruned).reference


def test_rejection_has_its_own_exit_code_and_reasons(
    small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_bundle.write(tmp_path / "small")
    arguments = [
        "validate",
        tmp_path / "small",
        "--against",
        "cartpole_swingup_sac",
        "--no-robustness",
        "--store",
        tmp_path / "store",
    ]
    with monkeypatch.context() as brief:
        brief.setattr(work, "report_on", lambda *_, **__: None)
        assert run(*arguments).exit_code == 3
    result = run(*arguments, "--json")
    assert result.exit_code == 3
    assert json_of(result)["decision"] == "reject"
    assert Path(json_of(result)["report"], "report.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], r"Missing argument 'controller'\."),
        (["status", "--port", "3"], "Invalid value for '--port': "),
        (["import", "sb3", "--nope"], "No such option.*--nope"),
        (["nope"], r"No such command 'nope'\."),
    ],
)
def test_errors_of_the_option_parser_are_json_where_that_is_asked_for(arguments: list[str], message: str) -> None:
    result = run(*arguments, "--json")
    assert result.exit_code == 2
    assert json_of(result)["exit_code"] == 2
    assert re.match(message, json_of(result)["error"], re.IGNORECASE)
    assert run(*arguments).stdout == ""


@pytest.mark.parametrize("as_json", [True, False])
def test_verdict_is_told_though_there_is_no_report(
    pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    def report_on(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "out/report")

    monkeypatch.setattr(work, "report_on", report_on)
    result = run(
        *("validate", pruned, "--against", "cartpole_swingup_sac", "--no-robustness", "--store", tmp_path / "store"),
        *(["--json"] if as_json else []),
    )
    assert result.exit_code == 0
    assert "note: there is no report: [Errno 28] No space left on device: 'out/report'" in result.stderr
    if as_json:
        told = json_of(result)
        assert (told["decision"], told["report"]) == ("accept", None)
        assert "No space left" in told["no_report"]


def test_weights_of_an_mlp_become_a_bundle(tmp_path: Path) -> None:
    torch.manual_seed(0)
    actor = nn.Sequential(nn.Linear(11, 16), nn.ELU(), nn.Linear(16, 3))
    torch.save({"model_state_dict": {f"actor.{n}": t for n, t in actor.state_dict().items()}}, tmp_path / "m.pt")
    arguments = ["import", "mlp", tmp_path / "m.pt", "--env", "Hopper-v5"]
    assert "--activation" in run(*arguments, "--out", tmp_path / "a").stderr
    told = json_of(run(*arguments, "--activation", "elu", "--out", tmp_path / "b", "--json"))
    assert (told["name"], told["parameters"], told["rate"]) == ("m", 11 * 16 + 16 + 16 * 3 + 3, 125.0)
    policy = load_bundle(tmp_path / "b").policy
    observations = np.random.default_rng(0).normal(size=(20, 11)).astype(np.float32)
    wanted = actor(torch.from_numpy(observations)).clamp(-1.0, 1.0).detach().numpy()
    np.testing.assert_allclose(policy.batch(observations), wanted, atol=1e-5)


def test_onnx_file_becomes_a_bundle_and_what_is_outside_of_the_network_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    actor = nn.Sequential(nn.Linear(11, 16), nn.SiLU(), nn.Linear(16, 3)).requires_grad_(False)
    path = tmp_path / "policy.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(actor, (torch.zeros(1, 11),), str(path), dynamo=False, output_names=["actions"])
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"joint_names": "a,b,c"})
    onnx.save(model, path)
    arguments = ["import", "onnx", path, "--env", "Hopper-v5"]
    result = run(*arguments, "--out", tmp_path / "bundle", "--name", "mine", "--json")
    told = json_of(result)
    assert (told["name"], told["architecture"]["activation"], told["rate"]) == ("mine", "silu", 125.0)
    assert "note: the file says what happens outside of its network (joint_names)" in " ".join(result.stderr.split())
    policy = load_bundle(tmp_path / "bundle").policy
    observations = np.random.default_rng(0).normal(size=(20, 11)).astype(np.float32)
    wanted = actor(torch.from_numpy(observations)).clamp(-1.0, 1.0).numpy()
    np.testing.assert_allclose(policy.batch(observations), wanted, atol=1e-5)
    refused = run(*arguments, "--out", tmp_path / "other", "--output", "mean", "--json")
    assert (refused.exit_code, json_of(refused)["exit_code"]) == (1, 1)
    assert "policy.onnx: it has no output 'mean'; --output may name actions" in refused.stderr
    assert not (tmp_path / "other").exists()


def test_onnx_file_is_compared_on_observations_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shipped_controllers()["cartpole_swingup_sac"] / "policy.onnx"
    counts = []
    check = ImportedPolicy.check

    def counted(policy: ImportedPolicy, observations: np.ndarray) -> None:
        counts.append(len(observations))
        if len(counts) == 2:
            policy.module.layers[0].bias.data += 1.0
        check(policy, observations)

    monkeypatch.setattr(ImportedPolicy, "check", counted)
    refused = run("import", "onnx", path, "--env", CARTPOLE, "--out", tmp_path / "bundle")
    assert counts == [600, 2000]
    assert "policy.onnx: the network made of it and the file" in " ".join(refused.stderr.split())
    assert not (tmp_path / "bundle").exists()


def test_bag_that_a_candidate_was_pruned_from_says_nothing_of_others(bag: Path, pruned: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run("rollout", "cartpole_swingup_sac", "--episodes", 1, "--seed", 7, "--out", other)
    arguments = ["validate", pruned, "--against", "cartpole_swingup_sac", "--store", tmp_path / "store"]
    refused = run(*arguments, "--rollouts", other, "--rollouts", bag)
    assert refused.exit_code == 1
    assert "was pruned from some of these bags" in " ".join(refused.stderr.split())
    assert run(*arguments, "--rollouts", other, "--json").exit_code in (0, 3)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_file_that_cannot_be_written_is_told_in_a_sentence(
    bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def prune(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), "out/pruned")

    monkeypatch.setattr(work, "prune", prune)
    result = run("prune", "cartpole_swingup_sac", "--rollouts", bag, "--out", tmp_path / "a")
    assert result.exit_code == 1
    message = f"nncontrol-prune: [Errno {number}] {os.strerror(number)}: 'out/pruned'"
    assert result.stderr.splitlines()[-1] == message


@pytest.mark.parametrize(("module", "fault"), [("nncontrol_prune.lost", True), ("lost", False)])
def test_missing_package_is_told_and_a_missing_part_of_ours_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, module: str, fault: bool
) -> None:
    def find_bundle(*_: Any) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(finding, "find_bundle", find_bundle)
    result = CliRunner().invoke(app, ["inspect", "anything"])
    assert isinstance(result.exception, ModuleNotFoundError) == fault
    assert ("this needs the package lost" in result.stderr) == (not fault)


def test_inspect_shows_bundles_and_bags(bag: Path, pruned: Path) -> None:
    groups = json_of(run("inspect", pruned, "--json"))["groups"]
    assert [group["name"] for group in groups] == ["layers.0", "layers.1"]
    assert "parameters a channel" in run("inspect", "cartpole_swingup_sac").stdout
    contents = json_of(run("inspect", bag, "--json"))
    assert (contents["transitions"], contents["episodes"]) == (3000, 3)
    assert contents["duration [s]"] == pytest.approx(3 * 9.99)  # of 1000 ticks each; what lies between is no part of it


@pytest.mark.parametrize(
    ("file", "name"),
    [("model", "model"), ("1000000", "controller_1000000"), ("x" * 110, "x" * 100), ("my robot", "my_robot")],
)
def test_import_of_a_stable_baselines3_file(tmp_path: Path, file: str, name: str) -> None:
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    model = stable_baselines3.SAC("MlpPolicy", CARTPOLE, policy_kwargs={"net_arch": [16]}, learning_starts=1)
    model.save(tmp_path / f"{file}.zip")
    result = run("import", "sb3", tmp_path / f"{file}.zip", "--env", CARTPOLE, "--out", tmp_path / "bundle", "--json")
    assert result.exit_code == 0, result.stderr
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert (manifest.architecture.hidden, manifest.name) == ((16,), name)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["prune", "cartpole_swingup_sac", "--sparsity", 1.0], 2, "sparsity = 1.0: input should be less than 1"),
        (["prune", "cartpole_swingup_sac", "--sparsity", "most"], 2, "has to be a number or `auto`, not 'most'"),
        (
            ["prune", "cartpole_swingup_sac", "--term", "action"],
            2,
            "--term has to be NAME=NUMBER, such as action=1, not 'action'",
        ),
        (
            ["prune", "cartpole_swingup_sac", "--term", "reward=1"],
            1,
            "no term 'reward' for this network; there are action",
        ),
        (["prune", "cartpole_swingup_sac", "--sparsity", "auto", "--cost", "latency"], 2, "leave --cost out"),
        (
            ["prune", "cartpole_swingup_sac", "--env", "none", "--on-policy-rounds", 1],
            2,
            "--on-policy-rounds run the controller; say where with --env",
        ),
        (["prune", "cartpole_swingup_sac", "--env", "none", "--sparsity", "auto"], 2, "leave --env none out"),
        (["prune", "cartpole_swingup_sac", "--env", "none", "--variations", 3], 2, "say where with --env"),
        (
            ["prune", "cartpole_swingup_sac", "--component-weight", "policy=2"],
            2,
            "the method threshold, and the method is",
        ),
        (["prune", "cartpole_swingup_sac", "--sparsity", -0.1], 2, "sparsity = -0.1"),
        (["prune", "cartpole_swingup_sac", "--sparsity", "nan"], 2, "sparsity = nan"),
        (["prune", "cartpole_swingup_sac", "--channel-multiple", 2000], 2, "channel_multiple = 2000: input should be"),
        (["prune", "cartpole_swingup_sac", "--channel-multiple", 512], 1, "as few channels in multiples of 512 as may"),
        (["prune", "cartpole_swingup_sac", "--sparsity", 0.99999, "--tolerance", 0.00001], 1, "which is the largest"),
        (["prune", "cartpole_swingup_sac", "--env", "Hoper-v5"], 1, "did you mean"),
        (["prune", "cartpole_swingup_sac", "--env", "Hopper-v5"], 1, "does not fit Hopper-v5"),
        (["prune", "nobody"], 1, "no controller 'nobody'"),
        (["prune", "nobody@0123456789"], 1, "no bundle nobody@0123456789"),
        (["prune", "cartpole_swingup_sac", "--method", "magic"], 2, "magic"),
        (["prune", "cartpole_swingup_sac", "--name", "my robot"], 2, "'my robot' is no name of a controller"),
    ],
)
def test_wrong_arguments_of_prune(bag: Path, tmp_path: Path, arguments: list[object], code: int, message: str) -> None:
    result = run(*arguments, "--rollouts", bag, "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.fixture
def mnist_data(tmp_path: Path) -> Path:
    """The test part of MNIST, with noise for images."""
    images = np.random.default_rng(0).integers(0, 256, (160, 28, 28), dtype=np.uint8)
    directory = tmp_path / "mnist"
    directory.mkdir()
    header = bytes([0, 0, 8, 3]) + np.array(images.shape, dtype=">u4").tobytes()
    (directory / "t10k-images-idx3-ubyte").write_bytes(header + images.tobytes())
    return directory


def test_mnist_prunes_and_writes_what_it_found(mnist_data: Path, tmp_path: Path) -> None:
    result = run(
        *("mnist", "--data", mnist_data, "--out", tmp_path / "out", "--sparsity", 0.6, "--method", "uniform"),
        *("--importance", "l2", "--epochs", 1, "--channel-multiple", 4, "--json"),
    )
    report = json_of(result)
    assert result.exit_code == 0, result.stderr
    assert [entry["sparsity"] for entry in report["results"]] == [pytest.approx(0.6, abs=0.01)]
    assert {group["kept"] % 4 for entry in report["results"] for group in entry["groups"]} == {0}
    assert all(Path(path).exists() for path in report["written"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--sparsity", 1.0], 2, "mnist: sparsity.0 = 1.0: input should be less than 1"),
        (["--sparsity", 0.5, "--sparsity", "nan"], 2, "mnist: sparsity.1 = nan"),
        (["--method", "magic"], 2, "mnist: method.0 = 'magic': input should be 'uniform', 'threshold'"),
        (["--epochs", 0], 2, "mnist: epochs = 0: input should be greater than or equal to 1"),
        (["--data", "nowhere"], 2, "mnist: --data nowhere is not a directory"),
        (["--data", "."], 1, "holds no t10k-images-idx3-ubyte"),
        (["--out", "file/below"], 1, "nothing can be written into file/below"),
    ],
)
def test_wrong_arguments_of_mnist_are_told_and_nothing_is_written(
    mnist_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    result = run("mnist", "--data", mnist_data, *arguments)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())
    assert {path.name for path in tmp_path.iterdir()} == {"file", "mnist"}


def test_rollouts_of_another_observation_size_are_refused(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", observation_size=7, action_size=1, rate=100.0) as writer:
        for tick in range(200):
            writer.transition(tick * 0.01, 0, np.zeros(7), np.zeros(1))
    result = run("prune", "cartpole_swingup_sac", "--rollouts", tmp_path / "bag", "--out", tmp_path / "out")
    assert result.exit_code == 1
    message = " ".join(result.stderr.split())
    assert str(tmp_path / "bag") in message
    assert "7" in message
    assert "5" in message


def test_place_without_rollouts_is_named(tmp_path: Path) -> None:
    result = run("prune", "cartpole_swingup_sac", "--rollouts", tmp_path / "nothing", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert str(tmp_path / "nothing") in " ".join(result.stderr.split())


def test_existing_output_is_never_overwritten(bag: Path, pruned: Path) -> None:
    result = run("prune", "cartpole_swingup_sac", "--rollouts", bag, "--out", pruned)
    assert result.exit_code == 1
    assert "exists already" in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("prune", "nobody", "--rollouts", "none", "--out"),
        ("rollout", "nobody", "--out"),
        ("import", "sb3", "none.zip", "--env", "Hopper-v5", "--out"),
        ("import", "onnx", "none.onnx", "--env", "Hopper-v5", "--out"),
        ("import", "tdmpc2", "none.pt", "--env", "Hopper-v5", "--out"),
        ("validate", "nobody", "--against", "nobody", "--report"),
        ("sim", "--controller", "nobody", "--out"),
        ("run", "nobody", "--out"),
        ("mnist", "--data", ".", "--out"),
    ],
    ids=lambda command: command[0],
)
def test_place_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.zip").touch()
    refused = run(*command, "file.zip/new/x")
    assert refused.exit_code == 1
    assert "/file.zip is no directory; name another" in " ".join(refused.stderr.split())
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr("os.access", lambda path, _: Path(path).name != "locked")  # as it would be for all but root
    refused = run(*command, "locked/new/x")
    assert refused.exit_code == 1
    assert "/locked may not be written; name another" in " ".join(refused.stderr.split())
    assert not (tmp_path / "locked" / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--env", "Hoper-v5"], 1, "did you mean"),
        (["--rate", 50], 2, "rate = 50 Hz: controller cartpole_swingup_sac runs at 100 Hz"),
        (["--rate", -1], 2, "rate = -1.0"),
        (["--real-time-factor", 0], 2, "real_time_factor = 0.0"),
        (["--config", "nothing.yaml"], 2, "nothing.yaml cannot be read"),
        (["--controller", "nobody"], 1, "no controller 'nobody'"),
        (["--host", "0.0.0.0"], 1, "needs CURVE keys"),
        (["--port", 80], 2, "1024"),
    ],
)
def test_wrong_arguments_of_sim(tmp_path: Path, port: int, arguments: list[object], code: int, message: str) -> None:
    result = run("sim", "--port", port, "--out", tmp_path, *arguments)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())


def test_sim_neither_shares_its_directory_nor_replaces_what_is_no_report(tmp_path: Path, port: int) -> None:
    with held_directory(tmp_path / "out"):
        refused = run("sim", "--port", port, "--out", tmp_path / "out", "--prune-after", -1)
    assert refused.exit_code == 1
    assert "/out is in use by another process; wait for its end, or name another" in " ".join(refused.stderr.split())
    thesis = tmp_path / "out" / "report" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.touch()
    refused = run("sim", "--port", port, "--out", tmp_path / "out")
    assert refused.exit_code == 1
    assert "is there already and no report (it holds thesis.tex)" in " ".join(refused.stderr.split())
    assert thesis.exists()


def test_run_that_names_no_controller_takes_what_ran_last_and_not_the_simulated_plants(
    tmp_path: Path, port: int
) -> None:
    refused = run("run", "--port", port, "--out", tmp_path)
    assert refused.exit_code == 1
    assert "slot nn_controller of the store" in " ".join(refused.stderr.split())
    assert "has no current controller; name one" in " ".join(refused.stderr.split())


def test_sim_begins_with_its_configurations_controller_and_not_with_what_ran_last(
    tmp_path: Path, port: int, store: BundleStore, small_bundle: Bundle, shipped_bundle: Bundle
) -> None:
    store.write_slot("nn_controller", SlotRecord(current=store.add(small_bundle)))
    ran = run(
        *("sim", "--out", tmp_path / "out", "--store", store.root, "--port", port, "--duration", 1),
        *("--prune-after", -1, "--json"),
    )
    assert json_of(ran)["dense"]["reference"] == shipped_bundle.reference


def test_run_does_not_share_its_directory(tmp_path: Path, port: int) -> None:
    with held_directory(tmp_path / "out"):
        refused = run("run", "cartpole_swingup_sac", "--port", port, "--out", tmp_path / "out")
    assert refused.exit_code == 1
    assert "/out is in use by another process" in " ".join(refused.stderr.split())


def test_run_records_nothing_if_told_so_and_keeps_its_bundles_where_it_is_told(tmp_path: Path, port: int) -> None:
    ran = run(
        *("run", "cartpole_swingup_sac", "--port", port, "--out", tmp_path / "out", "--store", tmp_path / "store"),
        *("--no-record", "--duration", 0.1, "--json"),
    )
    assert ran.exit_code == 0, ran.stderr
    assert (json_of(ran)["bag"], json_of(ran)["notes"]) == (None, [])
    assert not (tmp_path / "out" / "bags").exists()
    assert not (tmp_path / "out" / "store").exists()
    assert (tmp_path / "store" / "bundles").exists()


def test_run_that_the_user_should_know_something_of_fails(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = "recording: the disk is full"
    monkeypatch.setattr(live_loop, "watch", lambda *_, **__: ({}, TickTrace(0, np.zeros((0, len(COLUMNS)))), [problem]))
    ran = run("run", "cartpole_swingup_sac", "--port", port, "--out", tmp_path, "--json")
    assert ran.exit_code == 1
    assert json_of(ran) == {"notes": [problem]}


DOUBLE_PENDULUM = ROOT / "benchmarks" / "controllers" / "double_pendulum_sac"


def test_sim_runs_a_controller_where_it_was_made_for(tmp_path: Path, port: int) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("/**/nn_controller: {ros__parameters: {probation: 1.0}}\n")
    ran = run(
        *("sim", "--controller", DOUBLE_PENDULUM, "--config", config, "--out", tmp_path, "--port", port),
        *("--duration", 1, "--prune-after", -1, "--json"),
    )
    assert ran.exit_code == 0, ran.stderr
    assert json_of(ran)["dense"]["reference"] == load_bundle(DOUBLE_PENDULUM).reference


@pytest.mark.parametrize("by_option", [True, False])
def test_environment_that_is_asked_for_goes_before_the_controllers(tmp_path: Path, port: int, by_option: bool) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("/**/mujoco_sim: {ros__parameters: {env: Hopper-v5}}\n")
    asked = ("--env", "Hopper-v5") if by_option else ("--config", config)
    refused = run("sim", "--controller", DOUBLE_PENDULUM, *asked, "--out", tmp_path / "out", "--port", port)
    assert refused.exit_code == 1
    assert "does not fit Hopper-v5" in " ".join(refused.stderr.split())
    assert not (tmp_path / "out").exists()


def test_errors_are_json_too(tmp_path: Path) -> None:
    result = run("inspect", "nobody", "--json")
    assert result.exit_code == 1
    assert "no controller 'nobody'" in json_of(result)["error"]


@pytest.mark.parametrize("command", [["status"], ["call", "prune"], ["call", "rollback"]])
def test_without_a_simulation_it_says_so(command: list[str], port: int) -> None:
    result = run(*command, "--port", port)
    assert result.exit_code == 1
    assert "is `nncontrol-prune sim` or `run` running" in " ".join((result.stderr + result.stdout).split())


def test_version_is_told() -> None:
    assert run("--version").stdout.strip() == f"nncontrol-prune {__version__}"


def test_ctrl_c_while_libraries_are_imported_leaves_no_traceback(tmp_path: Path) -> None:
    slow = tmp_path / "typer.py"  # in place of the first that the commands import
    slow.write_text("import pathlib, time; pathlib.Path('importing').touch(); time.sleep(60)")
    command = subprocess.Popen(
        [sys.executable, "-m", "nncontrol_prune.cli", "inspect", "cartpole_swingup_sac"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "importing").exists():
        time.sleep(0.01)
    command.send_signal(signal.SIGINT)
    _, told = command.communicate(timeout=30)
    assert (command.returncode, told) == (-signal.SIGINT, "")


def test_loop_whose_standard_error_cannot_be_written_goes_on(tmp_path: Path, port: int) -> None:
    command = [sys.executable, "-m", "nncontrol_prune.cli", "run", "cartpole_swingup_sac", "--duration", "1"]
    with Path("/dev/full").open("wb") as full:
        told = subprocess.check_output(
            [*command, "--no-record", "--port", str(port), "--out", str(tmp_path)], stderr=full, text=True
        )
    assert "cartpole_swingup_sac@" in told


@pytest.mark.parametrize(
    ("arguments", "unbuffered", "code", "told"),
    [
        (["--version"], "", 1, "nncontrol-prune: standard output cannot be written: No space left on device\n"),
        (["inspect", "cartpole_swingup_sac"], "", 1, "No space left on device"),
        (["inspect", "cartpole_swingup_sac", "--json"], "", 1, "cannot be written: No space left on device"),
        (["inspect", "cartpole_swingup_sac", "--json"], "1", 1, "No space left on device"),
        (["inspect", "nothing", "--json"], "", 1, "there is no controller 'nothing'"),
        (["inspect", "--json"], "1", 2, "Missing"),
    ],
)
def test_where_standard_output_is_full_standard_error_says_what_is_wrong(
    arguments: list[str], unbuffered: str, code: int, told: str
) -> None:
    command = [sys.executable, "-m", "nncontrol_prune.cli", *arguments]
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            command,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == code
    assert told in result.stderr
    assert not any(raw in result.stderr for raw in ("Traceback", "Exception ignored"))


def test_whoever_reads_no_further_ends_it_without_a_word() -> None:
    command = [sys.executable, "-m", "nncontrol_prune.cli", "inspect", "cartpole_swingup_sac", "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    result = subprocess.run(command, env=env, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")


def test_results_are_told_where_only_ascii_can_be(tmp_path: Path) -> None:
    command = ["rollout", "cartpole_swingup_sac", "--episodes", "1", "--out", str(tmp_path / "bag")]
    told = subprocess.check_output(
        [sys.executable, "-m", "nncontrol_prune.cli", *command], env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert b"success 1 of 1" in told


def test_store_below_home_is_found_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NNCONTROL_PRUNE_STORE", "~/store")
    bundle = load_bundle(shipped_controllers()["cartpole_swingup_sac"])
    BundleStore(tmp_path / "store").add(bundle)
    assert run("inspect", bundle.reference).exit_code == 0


@pytest.mark.parametrize("kind", ["file", "loop"])
def test_store_that_cannot_be_written_is_refused_before_the_work(bag: Path, tmp_path: Path, kind: str) -> None:
    store = tmp_path / "store"
    store.touch() if kind == "file" else store.symlink_to("store")
    result = run("prune", "cartpole_swingup_sac", "--rollouts", bag, "--out", tmp_path / "a", "--store", store)
    assert result.exit_code == 1
    assert "is no directory; name another" in " ".join(result.stderr.split())
    assert "groups" not in result.stderr


def test_verdict_is_told_though_the_store_cannot_keep_it(pruned: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/verdicts").touch()
    result = run(
        *("validate", pruned, "--against", "cartpole_swingup_sac", "--no-robustness", "--store", tmp_path / "store")
    )
    assert result.exit_code == 1
    assert "ACCEPT" in result.stdout
    assert "cannot be written" in " ".join(result.stderr.split())


def started_sim(tmp_path: Path, port: int) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a simulation without an end, and return it with its processes once it prunes."""
    command = [sys.executable, "-m", "nncontrol_prune.cli", "sim", "--duration", "0", "--prune-after", "1", "--json"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--out", str(tmp_path)],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    end = time.monotonic() + 60
    while json_of(run("status", "--port", port, "--json"))["pruning"].get("state") != "running":
        assert time.monotonic() < end
        time.sleep(0.2)
    children = descendants(process.pid)
    assert len(children) == 5, "plant, controller, recorder, pruning service and its worker"
    return process, children


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_ends_the_session_which_writes_its_results(tmp_path: Path, port: int, number: signal.Signals) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("the tests run under nohup")
    process, children = started_sim(tmp_path, port)
    os.killpg(process.pid, number)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    result = json.loads(told)
    assert result["ticks"] > 50
    assert (result["job"]["state"], result["notes"]) == ("cancelled", [])
    assert {str(tmp_path / "run.png"), str(tmp_path / "bundles" / "dense")} < set(result["written"])
    assert all(Path(path).exists() for path in result["written"])
    assert [pid for pid in children if alive(pid)] == []


@pytest.mark.parametrize(
    ("busy", "number"), [("episodes", signal.SIGINT), ("episodes", signal.SIGTERM), ("grid", signal.SIGTERM)]
)
def test_search_that_a_signal_ends_leaves_no_process_and_nothing_half_written(
    tmp_path: Path, busy: str, number: signal.Signals
) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("the tests run under nohup")
    assert run("rollout", DOUBLE_PENDULUM, "--episodes", 2, "--out", tmp_path / "bag").exit_code == 0
    command = ["-m", "nncontrol_prune.cli", "prune", DOUBLE_PENDULUM, "--rollouts", tmp_path / "bag", "--sparsity", 0.8]
    options = ["--jobs", 2, "--out", tmp_path / "out", "--store", tmp_path / "store"]
    how = ["--method", "grid", "--env", "none"] if busy == "grid" else ["--method", "uniform"]
    process = subprocess.Popen(
        [sys.executable, *map(str, (*command, *options, *how))],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while "coefficients" not in process.stderr.readline():
        assert process.poll() is None
    while busy == "episodes" and len(descendants(process.pid)) < 4:  # two workers, and two that look after them
        assert process.poll() is None
        time.sleep(0.2)
    children = descendants(process.pid)
    os.kill(process.pid, number)
    told, problems = process.communicate(timeout=20)  # which whoever lives on has open
    assert (process.returncode, told) == (130, "")
    assert problems.splitlines()[-1] == "nncontrol-prune: interrupted"
    end = time.monotonic() + 2
    while any(map(alive, children)) and time.monotonic() < end:
        time.sleep(0.05)
    assert [pid for pid in children if alive(pid)] == []
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"bag", "bag/bag_0.mcap", "bag/metadata.yaml"}


def test_session_whose_terminal_goes_away_writes_its_results(tmp_path: Path, port: int) -> None:
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        pytest.skip("the tests run under nohup")
    command = [sys.executable, "-m", "nncontrol_prune.cli", "sim", "--duration", "0", "--prune-after", "-1"]
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [*command, "--port", str(port), "--out", str(tmp_path)])
    shown = b""
    while re.search(rb"[1-9] s +running", shown) is None:  # before that there may be nothing to write
        shown += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert (tmp_path / "bundles" / "dense").is_dir()
    assert (tmp_path / "run.png").exists()


def test_results_that_cannot_be_written_are_told_beside_the_figures(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "out/run.png")

    monkeypatch.setattr("nncontrol_prune.plots.plot_run", full)
    ran = run("sim", "--out", tmp_path, "--port", port, "--duration", 1, "--prune-after", -1, "--json")
    assert ran.exit_code == 1
    result = json_of(ran)
    assert result["dense"]["ticks"] == result["ticks"] > 20
    assert result["notes"] == [
        f"not all that came of it could be written to {tmp_path}: [Errno 28] No space left on device: 'out/run.png'"
    ]


def test_second_ctrl_c_ends_everything_within_two_seconds(tmp_path: Path, port: int) -> None:
    process, children = started_sim(tmp_path, port)
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(10) == 130
    assert time.monotonic() - started < 2.5
    while any(map(alive, children)) and time.monotonic() - started < 2.5:
        time.sleep(0.05)
    assert [pid for pid in children if alive(pid)] == []


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they did."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    threads = [path.name for path in Path(f"/proc/{pid}/task").iterdir() if path.name != str(pid)]
    for thread in threads:
        children += [int(child) for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
    return children + [grandchild for child in children for grandchild in descendants(child)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
