"""Official TD-MPC2 checkpoints: the imported networks are those that were saved, and nothing else is accepted."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from nncontrol_prune.cli.app import app
from nncontrol_prune.controllers import tdmpc2 as importer
from nncontrol_prune.controllers.bundle import load_bundle
from nncontrol_prune.controllers.errors import ImportFailedError
from nncontrol_prune.controllers.specs import ActionSpec, PlannerSpec, TdMpcArchitecture
from nncontrol_prune.controllers.tdmpc import TdMpc
from nncontrol_prune.controllers.tdmpc2 import import_tdmpc2, official_discount, official_planner
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.environments import environment_specs
from nncontrol_prune.service.imports import _slow_planner

torch.set_num_threads(1)

OBSERVATION_SIZE = 5
ACTION = ActionSpec(joints=("slide", "hinge"), lower=(-1.0, 0.25), upper=(3.0, 0.75))
PLANNER = PlannerSpec(horizon=2, samples=6, policy_samples=2, elites=3, iterations=2)
ARCHITECTURE = TdMpcArchitecture(
    encoder=(7, 6), dynamics=(9, 10), reward=(11, 12), policy=(13, 14), q=(15, 16), latent=12, simplex=4, q_members=3,
    bins=21, planner=PLANNER,
)  # fmt: skip
OFFICIAL = {"encoder": "_encoder.state", "dynamics": "_dynamics", "reward": "_reward", "policy": "_pi"}
LAYOUTS = ("2023", "2024", "2025")
META = torch.empty(3, 2, device="meta")

State = dict[str, Any]


def build(architecture: TdMpcArchitecture = ARCHITECTURE, action: ActionSpec = ACTION) -> TdMpc:
    """Return a model whose every weight is another, norms included."""
    torch.manual_seed(0)
    module = TdMpc.for_action(architecture, OBSERVATION_SIZE, action)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def official_layers(layers: torch.nn.Module) -> State:
    """Return the tensors of a sequence of layers by their names in official checkpoints."""
    found = {}
    for name, tensor in layers.state_dict().items():
        place, kind = name.split(".")
        found[f"{int(place) // 3}.{'ln.' if int(place) % 3 else ''}{kind}"] = tensor
    return found


def official_state(module: TdMpc, layout: str) -> State:
    """Return what the official code saves of such a model; what training alone needs is in it, with other values."""
    state: State = {
        f"{prefix}.{name}": tensor
        for component, prefix in OFFICIAL.items()
        for name, tensor in official_layers(getattr(module, component)).items()
    }
    members = [official_layers(member) for member in module.q]
    stacked = {name: torch.stack([member[name] for member in members]) for name in members[0]}
    if layout == "2023":
        for index, tensor in enumerate(stacked.values()):
            state[f"_Qs.params.{index}"], state[f"_target_Qs.params.{index}"] = tensor, tensor + 1
        return state
    low, high = module.architecture.log_std_min, module.architecture.log_std_max
    state |= {"log_std_min": torch.tensor(int(low)), "log_std_dif": torch.tensor(int(high - low))}
    for name, tensor in stacked.items():
        state[f"_Qs.params.{name}"] = tensor
        state |= {f"_detach_Qs_params.{name}": tensor, f"_target_Qs_params.{name}": tensor + 1}
        if layout == "2024":
            state |= {f"_detach_Qs.params.{name}": tensor, f"_target_Qs.params.{name}": tensor + 1}
            state |= {f"{ensemble}.module.{name}": META for ensemble in ("_Qs", "_detach_Qs", "_target_Qs")}
    if layout == "2025":
        for prefix in ("_Qs.", "_detach_Qs_", "_target_Qs_"):
            state |= {f"{prefix}params.__batch_size": torch.Size([3]), f"{prefix}params.__device": torch.device("cuda")}
    return state


def saved(path: Path, module: TdMpc | None = None, layout: str = "2025", edit: Callable[[State], object] = len) -> Path:
    state = official_state(module or build(), layout)
    edit(state)
    torch.save({"model": state}, path)
    return path


def imported(path: Path, **kwargs: Any) -> TdMpc:
    return import_tdmpc2(path, OBSERVATION_SIZE, ACTION, **{"planner": PLANNER, "simplex": 4, **kwargs})


def refusal(path: Path, size: int = OBSERVATION_SIZE, action: ActionSpec = ACTION, **kwargs: Any) -> str:
    """Return the sentence with which an import is refused."""
    with pytest.raises(ImportFailedError) as caught:
        import_tdmpc2(path, size, action, **{"simplex": 4, **kwargs})
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.pt"


# What is imported


@pytest.mark.parametrize("layout", LAYOUTS)
def test_imported_model_computes_what_was_saved(path: Path, layout: str) -> None:
    module = build()
    found = imported(saved(path, module, layout))
    assert found.current_architecture() == ARCHITECTURE
    assert not found.training
    observations, plan = torch.randn(20, OBSERVATION_SIZE), torch.zeros(20, 2, ACTION.size)
    latent, action = module.encode(observations), torch.rand(20, ACTION.size)
    for expected, given in (
        (latent, found.encode(observations)),
        (module.predict(latent, action), found.predict(latent, action)),
        (module.reward_logits(latent, action), found.reward_logits(latent, action)),
        (module.value_logits(latent, action), found.value_logits(latent, action)),
        (torch.cat(module.policy_parameters(latent)), torch.cat(found.policy_parameters(latent))),
        (module(observations, plan)[0], found(observations, plan)[0]),
    ):
        assert torch.equal(expected, given)
        assert expected.std() > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_depths_and_widths_are_inferred(path: Path, layout: str) -> None:
    architecture = ARCHITECTURE.model_copy(
        update={"encoder": (5,), "dynamics": (), "reward": (3,), "policy": (4, 4, 4), "q": (6,), "q_members": 1}
    )
    assert imported(saved(path, build(architecture), layout)).current_architecture() == architecture


def test_state_dictionary_alone_is_read_too(path: Path) -> None:
    torch.save(official_state(build(), "2025"), path)
    assert imported(path).current_architecture() == ARCHITECTURE


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floating_point_types_are_read(path: Path, dtype: torch.dtype) -> None:
    def convert(state: State) -> None:
        state.update({name: value.to(dtype) for name, value in state.items() if isinstance(value, Tensor)})

    assert next(imported(saved(path, edit=convert)).parameters()).dtype == torch.float32


def test_actions_are_scaled_to_the_limits_of_the_environment(path: Path) -> None:
    with torch.no_grad():
        actions, _ = imported(saved(path))(torch.randn(200, OBSERVATION_SIZE), torch.zeros(200, 2, 2))
    assert (actions >= torch.tensor(ACTION.lower)).all()
    assert (actions <= torch.tensor(ACTION.upper)).all()
    assert actions[:, 0].max() > 1.0


def test_bounds_of_the_spread_are_the_files_where_it_tells_them(path: Path) -> None:
    module = build(ARCHITECTURE.model_copy(update={"log_std_min": -5.0, "log_std_max": 1.0}))
    asked = {"log_std_min": -7.0, "log_std_max": 3.0}
    for layout, bounds in (("2025", (-5.0, 1.0)), ("2023", (-7.0, 3.0))):
        architecture = imported(saved(path, module, layout), **asked).architecture
        assert (architecture.log_std_min, architecture.log_std_max) == bounds


def test_what_the_file_does_not_tell_is_as_in_the_official_configuration(path: Path) -> None:
    module = build(ARCHITECTURE.model_copy(update={"latent": 16, "simplex": 8}))
    found = import_tdmpc2(saved(path, module), OBSERVATION_SIZE, ACTION).architecture
    planner = found.planner
    assert (found.simplex, found.v_min, found.v_max, found.discount) == (8, -10.0, 10.0, 0.99)
    assert planner.samples + planner.policy_samples == 512
    assert (planner.horizon, planner.iterations, planner.elites, planner.policy_samples) == (3, 6, 64, 24)


def test_planner_plans_more_often_for_many_actions_and_can_be_changed() -> None:
    assert official_planner(20).iterations == 8
    assert official_planner(20, iterations=2, samples=100) == official_planner(1, iterations=2, samples=100)
    with pytest.raises(ImportFailedError, match="elites are more than the sequences"):
        official_planner(1, samples=20)
    with pytest.raises(ImportFailedError, match="planner cannot be as asked: horizon = 0: "):
        official_planner(1, horizon=0)


@pytest.mark.parametrize(("steps", "discount"), [(1, 0.95), (25, 0.95), (200, 0.975), (500, 0.99), (5000, 0.995)])
def test_discount_follows_from_the_episode_length(steps: int, discount: float) -> None:
    assert official_discount(steps) == pytest.approx(discount)


# Variants that are refused


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["_encoder.rgb.2.weight"], "it observes pixels; supported are"),
        (["_task_emb.weight"], "it is a multitask model; supported are"),
        (["_task_emb.weight", "_action_masks"], "it is a multitask model; supported are"),
        (["_termination.0.weight"], "it has a termination head, which its planner needs"),
        (["_value.0.weight"], "_value.0.weight belongs to no model that can be imported; supported are"),
    ],
)
def test_other_variants_are_refused(path: Path, layout: str, names: list[str], reason: str) -> None:
    saved(path, layout=layout, edit=lambda state: state.update({name: torch.zeros(2, 2) for name in names}))
    assert reason in refusal(path)


def test_pixels_alone_are_refused_as_such(path: Path) -> None:
    def edit(state: State) -> None:
        for name in [name for name in state if name.startswith("_encoder.")]:
            state[name.replace("state", "rgb")] = state.pop(name)

    assert "it observes pixels" in refusal(saved(path, edit=edit))


def test_rewards_without_bins_are_refused(path: Path) -> None:
    def edit(state: State) -> None:
        state["_reward.2.weight"], state["_reward.2.bias"] = torch.zeros(1, 12), torch.zeros(1)

    assert "it predicts rewards by 1 number, supported are distributions" in refusal(saved(path, edit=edit))


# What does not fit


def test_other_observation_size_is_refused_with_both_sizes(path: Path) -> None:
    assert "observes 5 numbers, the environment has 11" in refusal(saved(path), 11)


def test_other_action_size_is_refused_with_both_sizes(path: Path) -> None:
    action = ActionSpec(joints=("a",), lower=(-1.0,), upper=(1.0,))
    assert "commands 2 numbers, the environment has 1" in refusal(saved(path), action=action)


@pytest.mark.parametrize("simplex", [0, 5, 8])
def test_simplices_that_do_not_divide_the_latent_are_refused(path: Path, simplex: int) -> None:
    assert f"its latent of 12 cannot be divided into simplices of {simplex}" in refusal(saved(path), simplex=simplex)


def test_settings_out_of_range_are_named(path: Path) -> None:
    assert "it makes no tdmpc controller: discount = 1.0: input should be less than 1" in refusal(
        saved(path), discount=1.0
    )


# Damaged and hostile files


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_missing_weight_is_named(path: Path, layout: str) -> None:
    complete = official_state(build(), layout)
    unused = re.compile(r"_target|_detach|.*\.module\.|.*__|log_std")
    for name in [name for name in complete if not unused.match(name)]:
        torch.save({"model": {key: value for key, value in complete.items() if key != name}}, path)
        message = refusal(path)
        # The old layout's numbers are told as the names they have in the new one.
        assert f"it has no {name if layout != '2023' else name.partition('_Qs')[0]}" in message


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("_dynamics.0.weight", (9, 13)),
        ("_dynamics.0.ln.bias", (8,)),
        ("_dynamics.2.weight", (13, 10)),
        ("_reward.2.weight", (20, 12)),
        ("_pi.2.weight", (5, 14)),
        ("_pi.1.weight", (14,)),
        ("_pi.1.weight", (0, 13)),
        ("_pi.1.weight", ()),
        ("_Qs.params.1.weight", (16, 15)),
        ("_Qs.params.1.weight", (2, 16, 15)),
        ("_Qs.params.0.weight", (200, 15, 14)),
        ("_Qs.params.2.bias", (3, 20)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(path: Path, name: str, shape: tuple[int, ...]) -> None:
    message = refusal(saved(path, edit=lambda state: state.update({name: torch.zeros(shape)})))
    assert re.search(r"has shape|makes no tdmpc controller: q_members|no _dynamics", message)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(path: Path, value: float) -> None:
    message = refusal(saved(path, edit=lambda state: state["_Qs.params.1.bias"][1].fill_(value)))
    assert "_Qs.params.1.bias holds NaN or infinite values" in message


@pytest.mark.parametrize(
    "value",
    [3, "text", None, torch.zeros(9, 14, dtype=torch.int64), torch.zeros(1).expand(9, 14), META, torch.Size([9, 14])],
)
def test_what_is_no_tensor_of_numbers_is_refused(path: Path, value: object) -> None:
    message = refusal(saved(path, edit=lambda state: state.update({"_dynamics.0.weight": value})))
    assert "_dynamics.0.weight" in message


@pytest.mark.parametrize("value", ["text", torch.zeros(2), torch.tensor(float("nan")), META])
def test_bounds_of_the_spread_that_are_no_numbers_are_refused(path: Path, value: object) -> None:
    assert "log_std_min" in refusal(saved(path, edit=lambda state: state.update({"log_std_min": value})))


@pytest.mark.parametrize("value", [{}, {"model": 3}, {"model": {}}, {"weights": torch.zeros(3)}, {1: 2}])
def test_files_of_something_else_are_refused(path: Path, value: object) -> None:
    torch.save(value, path)
    assert "it is no checkpoint that TD-MPC2's agent.save() wrote" in refusal(path)


@pytest.mark.parametrize("value", [torch.zeros(3), [1, 2], 3])
def test_files_without_a_dictionary_are_refused(path: Path, value: object) -> None:
    torch.save(value, path)
    assert "it is damaged or holds more than tensors" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 not really", b"\x80\x02."])
def test_what_torch_did_not_save_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "it is damaged" in refusal(path)


def test_files_that_cannot_be_read_are_refused(path: Path, tmp_path: Path) -> None:
    assert "No such file" in refusal(path)
    assert "it cannot be read" in refusal(tmp_path)


def test_huge_files_are_refused_unread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "MAX_ARCHIVE_BYTES", 1000)
    assert "bytes, allowed are 1000" in refusal(saved(path))


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(path: Path, tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "ran"
    state = {**official_state(build(), "2025"), "extra": Malicious(marker)}
    torch.save({"model": state}, path, _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    assert "it is damaged or holds more than tensors" in message
    assert "weights_only" not in message
    assert not marker.exists()


def test_damaged_files_are_refused_and_nothing_else_is_raised(path: Path) -> None:
    rng, content = np.random.default_rng(0), saved(path).read_bytes()
    for _ in range(100):
        damaged = bytearray(content)
        damaged[rng.integers(len(damaged))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged[: rng.integers(1, len(damaged))] if rng.random() < 0.3 else damaged)
        try:
            imported(path)
        except ImportFailedError:
            continue


# From file to bundle


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def cartpole_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("tdmpc2") / "agent.pt", build(action=environment_specs(CARTPOLE).action))


def test_command_line_imports_a_checkpoint(cartpole_file: Path, tmp_path: Path) -> None:
    result = run(
        *("import", "tdmpc2", cartpole_file, "--env", CARTPOLE, "--out", tmp_path / "bundle", "--name", "swinger"),
        *("--samples", 6, "--policy-samples", 2, "--elites", 3, "--iterations", 2, "--horizon", 2, "--simplex", 4),
        *("--episode-length", 200, "--json"),
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["reference"].startswith("swinger@")
    assert "note:" not in result.stderr
    bundle = load_bundle(tmp_path / "bundle")
    expected = build(action=environment_specs(CARTPOLE).action)
    assert bundle.manifest.architecture == ARCHITECTURE.model_copy(update={"discount": official_discount(200)})
    for name, tensor in bundle.module().state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name])
    assert bundle.reference_observations.std(axis=0).min() > 0


def test_command_line_takes_what_an_old_file_does_not_tell(tmp_path: Path) -> None:
    file = saved(tmp_path / "agent.pt", build(action=environment_specs(CARTPOLE).action), "2023")
    result = run(
        *("import", "tdmpc2", file, "--env", CARTPOLE, "--out", tmp_path / "bundle"),
        *("--samples", 6, "--policy-samples", 2, "--elites", 3, "--iterations", 2, "--horizon", 2, "--simplex", 4),
        *("--log-std-min", -7, "--log-std-max", 3),
    )
    assert result.exit_code == 0, result.stderr
    architecture = load_bundle(tmp_path / "bundle").manifest.architecture
    assert isinstance(architecture, TdMpcArchitecture)
    assert (architecture.log_std_min, architecture.log_std_max) == (-7.0, 3.0)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--env", "Hopper-v5", "--simplex", 4], 1, "it observes 5 numbers, the environment has 11"),
        (["--env", CARTPOLE], 1, "its latent of 12 cannot be divided into simplices of 8"),
        (["--env", CARTPOLE, "--samples", 10], 1, "64 elites are more than the sequences"),
        (["--env", CARTPOLE, "--discount", 0.9, "--episode-length", 100], 2, "leave --discount or it out"),
    ],
)
def test_command_line_refuses_in_one_sentence(
    cartpole_file: Path, tmp_path: Path, arguments: list[object], code: int, message: str
) -> None:
    result = run("import", "tdmpc2", cartpole_file, "--out", tmp_path / "bundle", *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1)
    assert message in result.stderr
    assert not (tmp_path / "bundle").exists()


def test_planner_slower_than_the_environment_is_noted() -> None:
    specs = environment_specs(CARTPOLE)
    module = build(action=specs.action)
    note = _slow_planner(module, dataclasses.replace(specs, period=1e-6))
    assert note is not None
    assert "--samples (now 6), --iterations (2), --policy-samples (2) or --horizon (2)" in note
    assert _slow_planner(module, dataclasses.replace(specs, period=1e3)) is None
