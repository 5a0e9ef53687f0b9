from __future__ import annotations

from pathlib import Path

import pytest

from nncontrol_prune.config import Config, ConfigError, ControllerConfig, is_model, load_config
from nncontrol_prune.controllers.bundle import Bundle
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


@pytest.mark.parametrize(
    "name",
    ["rviz", "/**/rviz", "joint_state_broadcaster", "force_controller", "/left/rl_controller", "nn_controller_2"],
)
def test_sections_of_other_nodes_are_left_alone(tmp_path: Path, name: str) -> None:
    ours = "/**/pruning_service: {ros__parameters: {sparsity: 0.5}}"
    config = load_config(written(tmp_path, f"{name}:\n  ros__parameters:\n    colour: red\n{ours}\n"))
    assert config == Config().override("pruning_service", sparsity=0.5)


@pytest.mark.parametrize("name", ["/**/pruning_service", "pruning_service", "/robot1/pruning_service", "/**", "/*"])
def test_section_is_ours_by_any_name_that_ros_knows_it_by(tmp_path: Path, name: str) -> None:
    config = load_config(written(tmp_path, f"{name}: {{ros__parameters: {{sparsity: 0.5}}}}\n"))
    assert config.pruning_service.sparsity == 0.5


def test_section_for_all_nodes_gives_each_what_it_knows_and_its_own_section_does_not(tmp_path: Path) -> None:
    text = """
        pruning_service: {ros__parameters: {seed: 2}}
        /**: {ros__parameters: {use_sim_time: true, seed: 1, sparsity: 0.5}}
    """
    config = load_config(written(tmp_path, text))
    assert config.mujoco_sim.seed == 1
    assert (config.pruning_service.seed, config.pruning_service.sparsity) == (2, 0.5)


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
            ["there is no key 'robustness.nose'", "did you mean robustness.noise?"],
        ),
        (
            "/**/pruning_service: {ros__parameters: {robustness: {enabeld: true}}}",
            ["there is no key 'robustness.enabeld'", "did you mean robustness.enabled?"],
        ),
        (
            "/**/pruning_service: {ros__parameters: {offline: {x: 1}}}",
            ["there is no key 'offline.x'; allowed are action_deviation, gain_deviation, state_deviation"],
        ),
        (
            "/**/pruning_service: {ros__parameters: {task: {signals: {height: {entri: 1, entry: 1}}}}}",
            ["there is no key 'task.signals.height.entri'; did you mean task.signals.height.entry?"],
        ),
        (
            "/**/pruning_servce: {ros__parameters: {sparsity: 0.5}}",
            ["no section /**/pruning_servce", "did you mean /**/pruning_service?"],
        ),
        ("NN-Controller: {ros__parameters: {}}\n/**: {ros__parameters: {a: 1}}", ["did you mean nn_controller?"]),
        ("sparsity: 0.5\n", ["none of our sections", "/**/mujoco_sim, /**/nn_controller, /**/pruning_service"]),
        ("# nothing yet\n", ["none of our sections"]),
        ("/**/rviz: {ros__parameters: {colour: red}}\n", ["none of our sections"]),
        ("/**: {ros__parameters: 3}\n", ["ros__parameters of section /** must hold keys with values"]),
        ("/**/mujoco_sim:\n  env: Hopper-v5\n", ["mujoco_sim", "ros__parameters"]),
        ("- a\n", ["no sections"]),
        (
            "/**/pruning_service: {ros__parameters: {seed: 9223372036854775808}}",
            ["pruning_service", "seed", "more than torch takes"],
        ),
        ("a: [", ["not YAML"]),
        ("a: 2024-02-30\n", ["not YAML", "day"]),
        ("a: " + 3000 * "[", ["not YAML"]),
    ],
)
def test_error_names_the_key_the_value_and_what_is_allowed(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(written(tmp_path, text))
    for part in [*parts, "setup.yaml"]:
        assert part in str(error.value)


@pytest.mark.parametrize("text", [b"a: [1, 2", "# groß".encode("latin-1")])
def test_file_that_is_no_yaml_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "setup.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match="setup.yaml is not YAML"):
        load_config(tmp_path / "setup.yaml")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml cannot be read"):
        load_config(tmp_path / "nothing.yaml")


def test_override_replaces_what_is_given_and_checks_it() -> None:
    config = Config().override("pruning_service", sparsity=0.5, method=None)
    assert config.pruning_service.sparsity == 0.5
    assert config.pruning_service.method == Config().pruning_service.method
    with pytest.raises(ConfigError, match=r"sparsity = 1\.5"):
        Config().override("pruning_service", sparsity=1.5)


def test_rate_that_is_asked_for_is_the_controllers(small_bundle: Bundle) -> None:
    for rate in (None, 100.0, 100.00001):
        Config().override("nn_controller", rate=rate).nn_controller.check_rate(small_bundle.manifest)
    for rate in (99.9, 100.1):
        with pytest.raises(ConfigError, match=rf"rate = {rate} Hz: controller small runs at 100 Hz"):
            Config().override("nn_controller", rate=rate).nn_controller.check_rate(small_bundle.manifest)


def test_types_with_parameters_are_no_models_though_python_3_10_calls_them_types() -> None:
    assert is_model(ControllerConfig)
    for annotation in (dict[str, int], tuple[float, ...], list[str], float | None, float):
        assert not is_model(annotation)
