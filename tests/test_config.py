from __future__ import annotations

from pathlib import Path

import pytest

from nncontrol_prune.config import Config, ConfigError, load_config
from nncontrol_prune.resources import share_directory


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "setup.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted((share_directory() / "config").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path: Path) -> None:
    assert isinstance(load_config(path), Config)


def test_values_of_a_file_replace_the_defaults(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "/**/mujoco_sim:\n  ros__parameters:\n    env: Hopper-v5\n    seed: 4\n"))
    assert (config.mujoco_sim.env, config.mujoco_sim.seed, config.mujoco_sim.headless) == ("Hopper-v5", 4, True)
    assert config.nn_controller == Config().nn_controller


def test_whole_number_is_accepted_for_a_float(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "nn_controller:\n  ros__parameters:\n    rate: 100\n"))
    assert config.nn_controller.rate == 100.0


def test_sections_of_other_nodes_are_left_alone(tmp_path: Path) -> None:
    load_config(written(tmp_path, "/**/rviz:\n  ros__parameters:\n    colour: red\n"))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("/**/nn_controller:\n  ros__parameters:\n    ratte: 100\n", ["ratte", "did you mean rate"]),
        ("/**/nn_controller:\n  ros__parameters:\n    rate: -5\n", ["rate", "-5", "greater than 0"]),
        ("/**/pruning_service:\n  ros__parameters:\n    sparsity: 1.0\n", ["sparsity", "1.0", "less than 1"]),
        ("/**/pruning_service:\n  ros__parameters:\n    method: magic\n", ["method", "magic", "'gradient'"]),
        ("/**/mujoco_sim:\n  ros__parameters:\n    real_time_factor: .nan\n", ["real_time_factor", "nan", "finite"]),
        (
            "/**/pruning_service:\n  ros__parameters:\n    min_episodes: 700\n",
            ["pruning_service: min_episodes 700 is more than max_episodes 600"],
        ),
        (
            "/**/pruning_service:\n  ros__parameters:\n    robustness:\n      nose: 1\n",
            ["there is no key 'robustness.nose'"],
        ),
        ("/**/mujoco_sim:\n  env: Hopper-v5\n", ["mujoco_sim", "ros__parameters"]),
        ("- a\n", ["no sections"]),
        ("a: [", ["not YAML"]),
    ],
)
def test_error_names_the_key_the_value_and_what_is_allowed(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(written(tmp_path, text))
    for part in [*parts, "setup.yaml"]:
        assert part in str(error.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml cannot be read"):
        load_config(tmp_path / "nothing.yaml")


def test_override_replaces_what_is_given_and_checks_it() -> None:
    config = Config().override("pruning_service", sparsity=0.5, method=None)
    assert config.pruning_service.sparsity == 0.5
    assert config.pruning_service.method == Config().pruning_service.method
    with pytest.raises(ConfigError, match=r"sparsity = 1\.5"):
        Config().override("pruning_service", sparsity=1.5)
