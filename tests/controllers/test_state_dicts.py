"""State dicts of MLPs: the imported network acts as the module did that they are from."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from nncontrol_prune.controllers.errors import ImportFailedError
from nncontrol_prune.controllers.specs import ActionSpec
from nncontrol_prune.controllers.state_dicts import import_state_dict

ACTION = ActionSpec(joints=("slide", "hinge"), lower=(-1.0, 0.25), upper=(3.0, 0.75))
LOWER, UPPER = torch.tensor(ACTION.lower), torch.tensor(ACTION.upper)


def mlp(inputs: int = 5, outputs: int = 2, activation: type[nn.Module] = nn.ELU) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 16), activation(), nn.Linear(16, 8), activation(), nn.Linear(8, outputs))


class EmpiricalNormalization(nn.Module):
    """The buffers and the formula of rsl_rl's."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("_mean", torch.randn(1, size))
        self.register_buffer("_var", torch.rand(1, size) + 0.1)
        self.register_buffer("_std", self._var.sqrt())
        self.register_buffer("count", torch.tensor(7))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - self._mean) / (self._std + 1e-2)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def check_same(imported: nn.Module, wanted: Any) -> None:
    observations = 3.0 * torch.randn(200, 5)
    with torch.no_grad():
        torch.testing.assert_close(imported(observations), wanted(observations), atol=1e-5, rtol=0)


@pytest.fixture
def actor() -> nn.Sequential:
    torch.manual_seed(0)
    return mlp()


def test_output_is_the_action_and_clipped_or_squashed_and_scaled(actor: nn.Sequential, tmp_path: Path) -> None:
    path = saved(tmp_path / "actor.pt", actor.state_dict())
    check_same(import_state_dict(path, 5, ACTION, activation="elu"), lambda o: actor(o).clamp(LOWER, UPPER))
    squashed = import_state_dict(path, 5, ACTION, activation="elu", squash="tanh")
    check_same(squashed, lambda o: LOWER + (UPPER - LOWER) * (torch.tanh(actor(o)) + 1) / 2)


def test_safetensors_are_read(actor: nn.Sequential, tmp_path: Path) -> None:
    path = tmp_path / "actor.safetensors"
    safetensors.torch.save_file(actor.state_dict(), path)
    check_same(import_state_dict(path, 5, ACTION, activation="elu"), lambda o: actor(o).clamp(LOWER, UPPER))


@pytest.mark.parametrize("layout", ["beside", "within", "apart"])
def test_checkpoints_of_rsl_rl_are_read_with_their_normalization(
    actor: nn.Sequential, tmp_path: Path, layout: str
) -> None:
    """As its releases wrote them one after the other."""
    normalizer, critics = EmpiricalNormalization(5), EmpiricalNormalization(5)
    critic, optimizer = mlp(outputs=1), torch.optim.Adam(actor.parameters())
    actor(torch.randn(4, 5)).sum().backward()
    optimizer.step()

    def named(module: nn.Module, name: str) -> dict[str, Tensor]:
        return {f"{name}.{key}": value for key, value in module.state_dict().items()}

    both = named(actor, "actor") | named(critic, "critic") | {"std": torch.ones(2)}
    contents: dict[str, Any] = {
        "beside": {
            "model_state_dict": OrderedDict(both),
            "obs_norm_state_dict": normalizer.state_dict(),
            "privileged_obs_norm_state_dict": critics.state_dict(),
        },
        "within": {
            "model_state_dict": both
            | named(normalizer, "actor_obs_normalizer")
            | named(critics, "critic_obs_normalizer")
        },
        "apart": {
            "actor_state_dict": named(actor, "mlp") | named(normalizer, "obs_normalizer"),
            "critic_state_dict": named(critic, "mlp") | named(critics, "obs_normalizer"),
        },
    }
    rest = {"optimizer_state_dict": optimizer.state_dict(), "iter": 300, "infos": None}
    path = saved(tmp_path / "model_300.pt", contents[layout] | rest)
    imported = import_state_dict(path, 5, ACTION, activation="elu")
    check_same(imported, lambda o: actor(normalizer(o)).clamp(LOWER, UPPER))


def test_critic_is_no_actor_though_it_fits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    action = ActionSpec(joints=("slide",), lower=(-1.0,), upper=(1.0,))
    actor, critic = mlp(outputs=1), mlp(outputs=1)
    path = saved(tmp_path / "ppo.pt", {"actor_mean": actor.state_dict(), "critic": critic.state_dict()})
    check_same(import_state_dict(path, 5, action, activation="elu"), lambda o: actor(o).clamp(-1.0, 1.0))


def test_layers_may_be_named_one_by_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = {
        "fc1": nn.Linear(5, 16),
        "fc2": nn.Linear(16, 8),
        "fc_mean": nn.Linear(8, 2),
        "fc_logstd": nn.Linear(8, 2),
    }
    path = saved(tmp_path / "sac.pt", nn.ModuleDict(layers).state_dict())
    with pytest.raises(ImportFailedError, match=r"no row of numbered layers .*--layer may name fc1 \(16, 5\), fc2"):
        import_state_dict(path, 5, ACTION, activation="relu")
    imported = import_state_dict(path, 5, ACTION, activation="relu", layers=("fc1", "fc2", "fc_mean"))
    chain = nn.Sequential(layers["fc1"], nn.ReLU(), layers["fc2"], nn.ReLU(), layers["fc_mean"])
    check_same(imported, lambda o: chain(o).clamp(LOWER, UPPER))


@pytest.mark.parametrize("layers", [("actor",), ("actor.",), ("actor.0", "actor.2", "checkpoint.actor.4")])
def test_what_comes_before_a_name_may_be_left_out(actor: nn.Sequential, tmp_path: Path, layers: Any) -> None:
    normalizer, other = EmpiricalNormalization(5), EmpiricalNormalization(5)
    checkpoint = {"actor": actor.state_dict(), "first": normalizer.state_dict(), "second": other.state_dict()}
    path = saved(tmp_path / "nested.pt", {"checkpoint": checkpoint, "old": mlp().state_dict()})
    imported = import_state_dict(path, 5, ACTION, activation="elu", layers=layers, normalizer="first")
    check_same(imported, lambda o: actor(normalizer(o)).clamp(LOWER, UPPER))
    path = saved(path, {"checkpoint": checkpoint, "old": checkpoint})
    with pytest.raises(ImportFailedError, match=r"may be any of checkpoint\.actor\S*, old\.actor"):
        import_state_dict(path, 5, ACTION, activation="elu", layers=layers)


def test_what_fits_twice_has_to_be_named(actor: nn.Sequential, tmp_path: Path) -> None:
    other, normalizers = mlp(), {name: EmpiricalNormalization(5) for name in ("first", "second")}
    content = {"actor": actor.state_dict(), "target": other.state_dict()}
    path = saved(tmp_path / "two.pt", content)
    with pytest.raises(ImportFailedError, match="two.pt: actor, target all fit the environment; name .* with --layer"):
        import_state_dict(path, 5, ACTION, activation="elu")
    imported = import_state_dict(path, 5, ACTION, activation="elu", layers=("target",))
    check_same(imported, lambda o: other(o).clamp(LOWER, UPPER))
    path = saved(path, content | {name: module.state_dict() for name, module in normalizers.items()})
    with pytest.raises(ImportFailedError, match="first, second all fit the observation; name .* with --normalizer"):
        import_state_dict(path, 5, ACTION, activation="elu", layers=("actor",))
    imported = import_state_dict(path, 5, ACTION, activation="elu", layers=("actor",), normalizer="second")
    check_same(imported, lambda o: actor(normalizers["second"](o)).clamp(LOWER, UPPER))


def _with(actor: nn.Sequential, name: str, tensor: Tensor) -> dict[str, Tensor]:
    return {**{f"a.{key}": value for key, value in actor.state_dict().items()}, name: tensor}


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (lambda a: _with(a, "a.1.weight", torch.ones(16)), {}, "a.1.weight lies between the layers, and belongs to no"),
        (lambda a: _with(a, "a.0.weight", torch.full((16, 5), np.nan)), {}, "a.0.weight holds NaN"),
        (lambda a: _with(a, "a.0.bias", torch.ones(3)), {}, r"a.0 have shapes \(16, 5\) and \(3,\)"),
        (lambda a: _with(a, "b", torch.ones(3)), {"layers": ("c",)}, r"there is no c.weight; .* a.0 \(16, 5\)"),
        (lambda a: _with(a, "b", torch.ones(3)), {"layers": ("a.2", "a.0")}, "a.2 gives out 8 numbers and a.0 takes 5"),
        (lambda a: _with(a, "b", torch.ones(3)), {"layers": ("a.0", "a.2")}, "commands 8 numbers, the environment has"),
        (lambda a: _with(a, "b", torch.ones(3)), {"normalizer": "n"}, "there is no n._mean, which a normalization of"),
        (lambda a: _with(a, "n._mean", torch.ones(5)), {}, "there is no n._std"),
        (lambda a: {}, {}, "--layer may name none"),
        (lambda a: {"module": a}, {}, "damaged or holds more than tensors"),
    ],
)
def test_file_that_holds_no_such_mlp_is_refused(
    actor: nn.Sequential, tmp_path: Path, content: Any, options: dict[str, Any], message: str
) -> None:
    path = saved(tmp_path / "actor.pt", content(actor))
    with pytest.raises(ImportFailedError, match=f"actor.pt: .*{message}"):
        import_state_dict(path, 5, ACTION, activation="elu", **options)


def test_programs_and_other_files_are_refused(actor: nn.Sequential, tmp_path: Path) -> None:
    program = tmp_path / "policy.pt"
    torch.jit.save(torch.jit.script(actor), program)
    with pytest.raises(ImportFailedError, match="is a TorchScript program; give the checkpoint"):
        import_state_dict(program, 5, ACTION, activation="elu")
    cut = saved(tmp_path / "cut.pt", {"a.weight": torch.ones(2, 2)})
    content = bytearray(cut.read_bytes())
    content[content.index(b"PK\x01\x02") + 2] = 0
    cut.write_bytes(content)
    with pytest.raises(ImportFailedError, match=r"cut.pt: it is damaged \("):
        import_state_dict(cut, 5, ACTION, activation="elu")
    damaged = tmp_path / "actor.safetensors"
    damaged.write_bytes(b"nothing of the kind")
    with pytest.raises(ImportFailedError, match="it is not a safetensors file"):
        import_state_dict(damaged, 5, ACTION, activation="elu")
    with pytest.raises(ImportFailedError, match="nothing.pt: it cannot be read"):
        import_state_dict(tmp_path / "nothing.pt", 5, ACTION, activation="elu")
