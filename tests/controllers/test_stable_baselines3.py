"""Stable-Baselines3 files: the imported network acts as the model did, and nothing else is accepted."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import nn

from nncontrol_prune.controllers import checkpoints, vecnormalize
from nncontrol_prune.controllers.errors import ImportFailedError
from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.controllers.specs import ActionSpec, Activation
from nncontrol_prune.controllers.stable_baselines3 import import_sb3

sb3 = pytest.importorskip("stable_baselines3")
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize  # noqa: E402

torch.set_num_threads(1)

LOWER, UPPER = (-1.0, 0.25), (3.0, 1.0 / 3.0 + 0.5)
ACTION = ActionSpec(joints=("slide", "hinge"), lower=LOWER, upper=UPPER)
OBSERVATION_SIZE = 5


class Plant(gym.Env[Any, Any]):
    """Random observations far from zero; two actions with unlike, asymmetric limits."""

    def __init__(self, observation: spaces.Space[Any] | None = None, action: spaces.Space[Any] | None = None) -> None:
        self.observation_space = observation or spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,), np.float64)
        self.action_space = action or spaces.Box(np.float32(LOWER), np.float32(UPPER))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.normal(3.0, [0.1, 1.0, 2.0, 5.0, 100.0]), {"start": np.float64(1.0)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.reset()[0], 0.0, False, False, {}


def build(algorithm: str, env: Any = None, **kwargs: Any) -> Any:
    """Return an untrained model whose actions reach the limits, as a trained one's do."""
    kwargs = {"policy": "MlpPolicy", "seed": 0, "device": "cpu"} | kwargs
    if algorithm not in ("PPO", "A2C"):
        kwargs = {"buffer_size": 100} | kwargs
    model = getattr(sb3, algorithm)(env=env or Plant(), **kwargs)
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.2, 0.2)
            elif name.endswith("weight") and parameter.shape[0] == len(LOWER):
                parameter.mul_(2.0 / parameter.shape[1] ** 0.5 / parameter.std())
    return model


@pytest.fixture
def ppo_file(tmp_path: Path) -> Path:
    path = tmp_path / "ppo.zip"
    build("PPO", policy_kwargs={"net_arch": [8]}).save(path)
    return path


@pytest.fixture
def normalize() -> VecNormalize:
    env = VecNormalize(DummyVecEnv([Plant]), clip_obs=2.5, epsilon=1e-3)
    env.seed(0)
    env.reset()
    for _ in range(50):
        env.step(np.zeros((1, 2), np.float32))
    env.action_space.sample()  # its random generator is now part of what is saved
    return env


def saved(model: Any, path: Path) -> Path:
    model.save(path)
    return path


def spread_observations(seed: int = 0) -> NDArray[np.float64]:
    """Return typical observations, and ones a hundred deviations out."""
    rng = np.random.default_rng(seed)
    typical = rng.normal(size=(400, OBSERVATION_SIZE))
    typical[200:] *= 100.0
    return 3.0 + typical * [0.1, 1.0, 2.0, 5.0, 100.0]


def act(actor: Mlp, observations: NDArray[np.float64]) -> NDArray[np.float32]:
    with torch.no_grad():
        return actor(torch.tensor(observations, dtype=torch.float32)).numpy()


def rewrite(path: Path, **changes: Callable[[bytes], bytes | None]) -> Path:
    """Change the members of an archive whose names (dots as __) are given; None drops one."""
    with zipfile.ZipFile(path) as archive:
        members: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    for key, change in changes.items():
        name = key.replace("__", ".")
        members[name] = change(members[name] or b"")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            if content is not None:
                archive.writestr(name, content)
    return path


def edit_data(path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    def change(content: bytes) -> bytes:
        data = json.loads(content)
        edit(data)
        return json.dumps(data).encode()

    return rewrite(path, data=change)


def edit_tensors(path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    def change(content: bytes) -> bytes:
        tensors = torch.load(io.BytesIO(content), weights_only=True)
        edit(tensors)
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        return buffer.getvalue()

    return rewrite(path, policy__pth=change)


def refusal(path: Path, size: int = OBSERVATION_SIZE, action: ActionSpec = ACTION, **kwargs: Any) -> str:
    """Return the sentence with which an import is refused."""
    with pytest.raises(ImportFailedError) as caught:
        import_sb3(path, size, action, **kwargs)
    message = str(caught.value)
    assert message.startswith(str(kwargs.get("vecnormalize", path)))
    assert "\n" not in message
    return message


# What is imported


@pytest.mark.parametrize(
    ("algorithm", "kwargs", "hidden", "activation"),
    [
        ("PPO", {}, (64, 64), "tanh"),
        ("PPO", {"policy_kwargs": {"net_arch": {"pi": [], "vf": [8]}, "activation_fn": nn.ELU}}, (), "elu"),
        (
            "PPO",
            {"policy_kwargs": {"net_arch": {"pi": [7, 6, 5], "vf": []}, "activation_fn": nn.GELU}},
            (7, 6, 5),
            "gelu",
        ),
        ("PPO", {"policy_kwargs": {"share_features_extractor": False}}, (64, 64), "tanh"),
        ("PPO", {"use_sde": True}, (64, 64), "tanh"),
        ("PPO", {"use_sde": True, "policy_kwargs": {"squash_output": True}}, (64, 64), "tanh"),
        ("SAC", {}, (256, 256), "relu"),
        ("SAC", {"policy_kwargs": {"net_arch": [], "share_features_extractor": True}}, (), "relu"),
        ("SAC", {"policy_kwargs": {"net_arch": {"pi": [9], "qf": [4, 4]}, "activation_fn": nn.SiLU}}, (9,), "silu"),
        ("SAC", {"use_sde": True, "policy_kwargs": {"clip_mean": 0.0, "net_arch": [8]}}, (8,), "relu"),
        ("TD3", {}, (400, 300), "relu"),
        ("TD3", {"policy_kwargs": {"net_arch": [], "activation_fn": nn.Tanh}}, (), "tanh"),
        ("TD3", {"policy_kwargs": {"net_arch": [8, 8], "activation_fn": nn.LeakyReLU}}, (8, 8), "leaky_relu"),
    ],
)
def test_imported_actor_acts_as_the_model_does(
    tmp_path: Path,
    normalize: VecNormalize,
    algorithm: str,
    kwargs: dict[str, Any],
    hidden: tuple[int, ...],
    activation: Activation,
) -> None:
    model = build(algorithm, **kwargs)
    model.save(tmp_path / "model.zip")
    normalize.save(str(tmp_path / "vecnormalize.pkl"))
    observations = spread_observations()

    actor = import_sb3(tmp_path / "model.zip", OBSERVATION_SIZE, ACTION, vecnormalize=tmp_path / "vecnormalize.pkl")

    expected, _ = model.predict(normalize.normalize_obs(observations), deterministic=True)
    np.testing.assert_allclose(act(actor, observations), expected, rtol=0, atol=1e-5)
    assert np.abs(normalize.normalize_obs(observations)).max() == 2.5
    assert expected.std(axis=0).min() > 1e-3
    assert actor.architecture.activation == activation
    assert actor.current_architecture().hidden == hidden
    assert not actor.training


def test_ppo_reaches_and_keeps_the_action_limits(tmp_path: Path) -> None:
    actor = import_sb3(saved(build("PPO"), tmp_path / "ppo.zip"), OBSERVATION_SIZE, ACTION)
    actions = act(actor, spread_observations())
    np.testing.assert_allclose(actions.min(axis=0), LOWER, atol=1e-6)
    np.testing.assert_allclose(actions.max(axis=0), UPPER, atol=1e-6)


def test_ddpg_is_imported_as_td3(tmp_path: Path) -> None:
    model = build("DDPG", policy_kwargs={"net_arch": [8]})
    actor = import_sb3(saved(model, tmp_path / "ddpg.zip"), OBSERVATION_SIZE, ACTION)
    expected, _ = model.predict(spread_observations(), deterministic=True)
    np.testing.assert_allclose(act(actor, spread_observations()), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["PPO", "SAC", "TD3"])
def test_trained_model_and_its_statistics_are_imported(tmp_path: Path, algorithm: str) -> None:
    env = VecNormalize(DummyVecEnv([lambda: gym.make("InvertedPendulum-v5")]))
    few = {"n_steps": 64, "batch_size": 32, "n_epochs": 2} if algorithm == "PPO" else {"learning_starts": 20}
    model = build(algorithm, env, policy_kwargs={"net_arch": [16, 16]}, **few).learn(100)
    model.save(tmp_path / "model.zip")
    env.save(str(tmp_path / "vecnormalize.pkl"))
    action = ActionSpec(joints=("slider",), lower=(-3.0,), upper=(3.0,))
    observations = np.random.default_rng(0).normal(scale=[0.5, 0.2, 2.0, 2.0], size=(300, 4))

    actor = import_sb3(tmp_path / "model.zip", 4, action, vecnormalize=tmp_path / "vecnormalize.pkl")

    expected, _ = model.predict(env.normalize_obs(observations), deterministic=True)
    np.testing.assert_allclose(act(actor, observations), expected, rtol=0, atol=1e-5)


def test_without_statistics_the_observation_is_taken_as_it_is(tmp_path: Path, normalize: VecNormalize) -> None:
    model = build("SAC", policy_kwargs={"net_arch": [8]})
    normalize.norm_obs = False
    normalize.save(str(tmp_path / "vecnormalize.pkl"))
    observations = spread_observations()
    expected, _ = model.predict(observations, deterministic=True)
    for statistics in (None, tmp_path / "vecnormalize.pkl"):
        actor = import_sb3(saved(model, tmp_path / "m.zip"), OBSERVATION_SIZE, ACTION, vecnormalize=statistics)
        np.testing.assert_allclose(act(actor, observations), expected, rtol=0, atol=1e-5)
        assert actor.architecture.observation_clip is None


@pytest.mark.parametrize(("protocol", "numpy_core"), [(3, b"core"), (3, b"_core"), (4, None), (5, None)])
def test_statistics_of_both_numpy_versions_and_every_protocol_are_read(
    tmp_path: Path, normalize: VecNormalize, protocol: int, numpy_core: bytes | None
) -> None:
    content = pickle.dumps(normalize, protocol=protocol)
    if numpy_core is not None:  # only protocol 3 writes names without their lengths
        content, count = re.subn(rb"cnumpy\._?core\.", b"cnumpy." + numpy_core + b".", content)
        assert count > 0
    path = tmp_path / "vecnormalize.pkl"
    path.write_bytes(content)
    statistics = vecnormalize.read_vecnormalize(path, OBSERVATION_SIZE)
    np.testing.assert_array_equal(statistics.mean, normalize.obs_rms.mean)
    np.testing.assert_allclose(statistics.inverse_std, 1 / np.sqrt(normalize.obs_rms.var + 1e-3), rtol=1e-12)
    assert statistics.clip == 2.5


def test_neither_stable_baselines3_nor_gymnasium_is_imported(
    tmp_path: Path, ppo_file: Path, normalize: VecNormalize
) -> None:
    vecnormalize = tmp_path / "vecnormalize.pkl"
    normalize.save(str(vecnormalize))
    script = f"""
import sys
sys.modules["stable_baselines3"] = sys.modules["gymnasium"] = None  # an import of these now fails
from pathlib import Path
from nncontrol_prune.controllers.specs import ActionSpec
from nncontrol_prune.controllers.stable_baselines3 import import_sb3
action = ActionSpec(joints=("a", "b"), lower={LOWER}, upper={UPPER})
import_sb3(Path({str(ppo_file)!r}), {OBSERVATION_SIZE}, action, vecnormalize=Path({str(vecnormalize)!r}))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# Activations


def test_activation_is_asked_for_where_it_cannot_be_known(tmp_path: Path) -> None:
    class Swish(nn.SiLU):
        pass

    model = build("PPO", policy_kwargs={"net_arch": [8], "activation_fn": Swish})
    path = saved(model, tmp_path / "ppo.zip")
    message = refusal(path)
    assert "Swish" in message
    assert "--activation" in message
    assert "silu" in message
    actor = import_sb3(path, OBSERVATION_SIZE, ACTION, activation="silu")
    expected, _ = model.predict(spread_observations(), deterministic=True)
    np.testing.assert_allclose(act(actor, spread_observations()), expected, rtol=0, atol=1e-5)


def test_activation_is_asked_for_without_policy_kwargs(ppo_file: Path) -> None:
    edit_data(ppo_file, lambda data: data.pop("policy_kwargs"))
    assert "does not tell its activation" in refusal(ppo_file)
    assert import_sb3(ppo_file, OBSERVATION_SIZE, ACTION, activation="relu").architecture.activation == "relu"


def test_activation_that_contradicts_the_file_is_refused(ppo_file: Path) -> None:
    assert "its activation is tanh, not relu" in refusal(ppo_file, activation="relu")


# Models that are refused


def test_other_algorithms_are_refused(tmp_path: Path) -> None:
    dqn = build("DQN", Plant(action=spaces.Discrete(2)))
    assert "stable_baselines3.dqn.policies; supported are MlpPolicy actors of PPO, SAC and TD3" in refusal(
        saved(dqn, tmp_path / "dqn.zip")
    )
    assert "A2C" in refusal(saved(build("A2C"), tmp_path / "a2c.zip"))


def test_other_policies_are_refused(tmp_path: Path) -> None:
    pixels = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    for policy, observation, reason in (
        ("CnnPolicy", pixels, "shape (3, 36, 36)"),
        ("MlpPolicy", pixels, "shape (3, 36, 36)"),
        ("MultiInputPolicy", spaces.Dict(x=spaces.Box(-1, 1, (5,))), "gymnasium.spaces.dict.Dict"),
    ):
        path = saved(
            build("PPO", Plant(observation=observation), policy=policy, n_steps=2, batch_size=2), tmp_path / "m.zip"
        )
        assert reason in refusal(path)


def test_policy_class_of_the_users_own_is_refused(ppo_file: Path) -> None:
    edit_data(ppo_file, lambda data: data["policy_class"].update(__module__="my_lab.policies"))
    assert "my_lab.policies; supported are" in refusal(ppo_file)


def test_features_extractor_of_the_users_own_is_refused(ppo_file: Path) -> None:
    edit_data(ppo_file, lambda data: data["policy_kwargs"].update(features_extractor_class="<class 'lab.Scaling'>"))
    assert "<class 'lab.Scaling'>" in refusal(ppo_file)


@pytest.mark.parametrize(
    "name", ["features_extractor.cnn.0.weight", "lstm_actor.weight_ih_l0", "mlp_extractor.policy_net.1.weight"]
)
def test_tensors_of_no_mlp_are_refused(ppo_file: Path, name: str) -> None:
    edit_tensors(ppo_file, lambda tensors: tensors.update({name: torch.zeros(8)}))
    assert name in refusal(ppo_file)


def test_discrete_actions_are_refused(tmp_path: Path) -> None:
    path = saved(build("PPO", Plant(action=spaces.Discrete(2))), tmp_path / "m.zip")
    assert "its action_space is <class 'gymnasium.spaces.discrete.Discrete'>, supported is" in refusal(path)


def test_clipped_mean_of_sac_with_state_dependent_exploration_is_refused(tmp_path: Path) -> None:
    path = saved(build("SAC", use_sde=True, policy_kwargs={"net_arch": [8]}), tmp_path / "m.zip")
    assert "clip_mean=0.0" in refusal(path)


def test_unknown_squashing_is_refused(tmp_path: Path) -> None:
    path = saved(build("PPO", use_sde=True), tmp_path / "m.zip")
    edit_data(path, lambda data: data.pop("policy_kwargs"))
    assert "squashes its output" in refusal(path, activation="tanh")


# Models that do not fit the environment


def test_other_observation_size_is_refused_with_both_sizes(ppo_file: Path) -> None:
    assert "observes 5 numbers, the environment has 11" in refusal(ppo_file, 11)


def test_other_action_size_is_refused_with_both_sizes(ppo_file: Path) -> None:
    action = ActionSpec(joints=("a",), lower=(-1.0,), upper=(1.0,))
    assert "commands 2 numbers, the environment has 1" in refusal(ppo_file, action=action)


def test_other_action_limits_are_refused_with_both_limits(ppo_file: Path) -> None:
    action = ActionSpec(joints=("a", "b"), lower=LOWER, upper=(3.0, 0.9))
    message = refusal(ppo_file, action=action)
    assert "high action limits are [3.0, 0.8333333], the environment's are [3.0, 0.9]" in message


def test_action_limits_that_are_not_readable_are_not_compared(ppo_file: Path) -> None:
    edit_data(ppo_file, lambda data: data["action_space"].update(low="[-1. ... 0.25]", high=None))
    assert isinstance(import_sb3(ppo_file, OBSERVATION_SIZE, ACTION), Mlp)


# Damaged and hostile models


def test_what_is_no_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    assert "No such file" in refusal(path)
    path.write_bytes(b"PK\x03\x04 not really")
    assert "not a zip file" in refusal(path)


@pytest.mark.parametrize("member", ["data", "policy__pth"])
def test_missing_member_is_named(ppo_file: Path, member: str) -> None:
    rewrite(ppo_file, **{member: lambda _: None})
    assert member.replace("__", ".") in refusal(ppo_file)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_metadata_that_is_no_json_object_is_refused(ppo_file: Path, content: bytes) -> None:
    assert "model.save()" in refusal(rewrite(ppo_file, data=lambda _: content))


def test_huge_declared_sizes_are_refused_before_unpacking(ppo_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "MAX_ARCHIVE_BYTES", 100_000)
    with zipfile.ZipFile(ppo_file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(200_000))
    assert ppo_file.stat().st_size < 100_000
    assert "bytes, allowed are 100000" in refusal(ppo_file)


def test_huge_declared_sizes_inside_the_weights_are_refused(ppo_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "MAX_ARCHIVE_BYTES", 100_000)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(200_000))
    assert "bytes, allowed are 100000" in refusal(rewrite(ppo_file, policy__pth=lambda _: bomb.getvalue()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(ppo_file: Path, value: float) -> None:
    edit_tensors(ppo_file, lambda tensors: tensors["action_net.bias"].fill_(value))
    assert "action_net.bias holds NaN or infinite values" in refusal(ppo_file)


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(10**7, 5), torch.zeros(8, 5, dtype=torch.int64), torch.zeros(8, 5).to_sparse(), [1.0], None],
    ids=["view", "integers", "sparse", "list", "none"],
)
def test_weights_that_are_no_plain_tensor_are_refused(ppo_file: Path, tensor: Any) -> None:
    name = "mlp_extractor.policy_net.0.weight"
    edit_tensors(ppo_file, lambda tensors: tensors.update({name: tensor}))
    assert name in refusal(ppo_file)


@pytest.mark.parametrize("shape", [(8, 6), (8,), (2, 9), (0, 8)])
def test_weights_whose_shapes_do_not_chain_are_refused(ppo_file: Path, shape: tuple[int, ...]) -> None:
    edit_tensors(ppo_file, lambda tensors: tensors.update({"action_net.weight": torch.zeros(shape)}))
    assert "action_net" in refusal(ppo_file)


def test_layer_without_channels_is_refused(ppo_file: Path) -> None:
    def edit(tensors: dict[str, Any]) -> None:
        tensors["mlp_extractor.policy_net.0.weight"] = torch.zeros(0, 5)
        tensors["mlp_extractor.policy_net.0.bias"] = torch.zeros(0)
        tensors["action_net.weight"] = torch.zeros(2, 0)

    edit_tensors(ppo_file, edit)
    assert "its layers make no mlp controller" in refusal(ppo_file)


def test_layer_without_bias_is_refused(ppo_file: Path) -> None:
    edit_tensors(ppo_file, lambda tensors: tensors.pop("mlp_extractor.policy_net.0.bias"))
    assert "has no mlp_extractor.policy_net.0.bias" in refusal(ppo_file)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_code_in_the_weights_is_not_run(tmp_path: Path, ppo_file: Path) -> None:
    marker, buffer = tmp_path / "ran", io.BytesIO()
    torch.save({"action_net.weight": Malicious(marker)}, buffer)
    assert "policy.pth is damaged or holds more than tensors" in refusal(
        rewrite(ppo_file, policy__pth=lambda _: buffer.getvalue())
    )
    assert not marker.exists()


def test_pickled_metadata_is_never_decoded(ppo_file: Path) -> None:
    def spoil(data: dict[str, Any]) -> None:
        for value in data.values():
            if isinstance(value, dict) and ":serialized:" in value:
                value[":serialized:"] = "not base64"

    assert isinstance(import_sb3(edit_data(ppo_file, spoil), OBSERVATION_SIZE, ACTION), Mlp)


def test_damaged_models_are_refused_and_nothing_else_is_raised(ppo_file: Path) -> None:
    rng, content = np.random.default_rng(0), ppo_file.read_bytes()
    for _ in range(100):
        damaged = bytearray(content)
        damaged[rng.integers(len(damaged))] ^= int(rng.integers(1, 256))
        ppo_file.write_bytes(damaged[: rng.integers(1, len(damaged))] if rng.random() < 0.2 else damaged)
        try:
            import_sb3(ppo_file, OBSERVATION_SIZE, ACTION)
        except ImportFailedError:
            continue


# Statistics that are refused


def dumped(value: Any, path: Path) -> Path:
    path.write_bytes(pickle.dumps(value))
    return path


@pytest.mark.parametrize("place", ["alone", "in_statistics"])
def test_code_in_the_statistics_is_not_run_and_named(
    tmp_path: Path, ppo_file: Path, normalize: VecNormalize, place: str
) -> None:
    marker = tmp_path / "ran"
    value: Any = Malicious(marker)
    if place == "in_statistics":
        normalize.obs_rms.mean, value = value, normalize
    message = refusal(ppo_file, vecnormalize=dumped(value, tmp_path / "v.pkl"))
    assert f"it mentions {os.system.__module__}.system, allowed are" in message
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
        b"cstable_baselines3.common.vec_env.vec_normalize\nVecNormalize.load\n(S'x'\ntR.",
    ],
)
def test_every_other_name_is_refused(tmp_path: Path, ppo_file: Path, content: bytes) -> None:
    path = tmp_path / "v.pkl"
    path.write_bytes(content)
    assert "it mentions" in refusal(ppo_file, vecnormalize=path)


def test_admitted_names_cannot_be_changed_by_a_pickle(tmp_path: Path, ppo_file: Path) -> None:
    path = tmp_path / "v.pkl"
    path.write_bytes(b"cnumpy\ndtype\n(N}S'name'\nS'spoiled'\nstb.")
    refusal(ppo_file, vecnormalize=path)
    assert not hasattr(vecnormalize._Record, "name")
    assert np.dtype("f8").name == "float64"


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", b"\x80\x04N.", b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00.", b"Nr\xff\xff\xff\xff.", b"I1\n" * 9],
    ids=["empty", "junk", "none", "huge_bytes", "huge_memo", "no_stop"],
)
def test_what_is_no_vecnormalize_file_is_refused(tmp_path: Path, ppo_file: Path, content: bytes) -> None:
    path = tmp_path / "v.pkl"
    path.write_bytes(content)
    assert "VecNormalize.save()" in refusal(ppo_file, vecnormalize=path)


def test_missing_and_huge_statistics_files_are_refused(tmp_path: Path, ppo_file: Path) -> None:
    path = tmp_path / "v.pkl"
    assert "No such file" in refusal(ppo_file, vecnormalize=path)
    path.write_bytes(bytes(vecnormalize.MAX_VECNORMALIZE_BYTES + 1))
    assert "it has over" in refusal(ppo_file, vecnormalize=path)


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("mean", np.zeros(3), "shape (3,), the environment's have (5,)"),
        ("var", np.full(5, -1.0), "not finite"),
        ("mean", np.array([0.0, np.nan, 0.0, 0.0, 0.0]), "not finite"),
        ("mean", np.full(5, 1e300), "not finite"),
        ("mean", np.array([object] * 5), "it mentions builtins.object"),
        ("mean", np.array([None] * 5), "type |O8"),
        ("mean", "text", "not what VecNormalize.save() writes"),
    ],
)
def test_statistics_that_make_no_normalization_are_refused(
    tmp_path: Path, ppo_file: Path, normalize: VecNormalize, attribute: str, value: Any, reason: str
) -> None:
    setattr(normalize.obs_rms, attribute, value)
    assert reason in refusal(ppo_file, vecnormalize=dumped(normalize, tmp_path / "v.pkl"))


def test_statistics_of_dictionary_observations_are_refused(
    tmp_path: Path, ppo_file: Path, normalize: VecNormalize
) -> None:
    normalize.obs_rms = {"x": normalize.obs_rms}
    assert "dictionary observations" in refusal(ppo_file, vecnormalize=dumped(normalize, tmp_path / "v.pkl"))


def test_infinite_clip_is_no_clip(tmp_path: Path, normalize: VecNormalize) -> None:
    normalize.clip_obs = np.float32("inf")
    assert vecnormalize.read_vecnormalize(dumped(normalize, tmp_path / "v.pkl"), OBSERVATION_SIZE).clip is None


def test_damaged_statistics_are_refused_and_nothing_else_is_raised(tmp_path: Path, normalize: VecNormalize) -> None:
    rng, content, path = np.random.default_rng(0), pickle.dumps(normalize), tmp_path / "v.pkl"
    for _ in range(500):
        damaged = bytearray(content)
        damaged[rng.integers(len(damaged))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged[: rng.integers(1, len(damaged))] if rng.random() < 0.2 else damaged)
        try:
            vecnormalize.read_vecnormalize(path, OBSERVATION_SIZE)
        except ImportFailedError:
            continue
