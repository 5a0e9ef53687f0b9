"""`import`: controllers from other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nncontrol_prune.controllers.specs import Activation, Squash

if TYPE_CHECKING:
    from nncontrol_prune.controllers.bundle import Bundle

from nncontrol_prune.cli.common import Json, Name, check_new, handled, print_json

importer = typer.Typer(help="Import controllers from other libraries.", no_args_is_help=True)


@importer.command("sb3")
@handled
def import_sb3(
    file: Annotated[Path, typer.Argument(help="Zip written by Stable-Baselines3 (PPO, SAC or TD3).")],
    env: Annotated[str, typer.Option(help="The environment it was trained for.")],
    out: Annotated[Path, typer.Option(help="The bundle to write; a new directory.")],
    vecnormalize: Annotated[Path | None, typer.Option(help="VecNormalize statistics saved beside it.")] = None,
    activation: Annotated[Activation | None, typer.Option(help="Needed only if the file does not say.")] = None,
    name: Name = None,
    as_json: Json = False,
) -> None:
    """Import a Stable-Baselines3 zip. Nothing in the file is executed."""
    from nncontrol_prune.service.imports import bundle_from_sb3

    check_new(out)
    bundle = bundle_from_sb3(file, env, name=name, vecnormalize=vecnormalize, activation=activation)
    _write_imported(bundle, out, as_json)


@importer.command("mlp")
@handled
def import_mlp(
    file: Annotated[Path, typer.Argument(help="State dict, or a checkpoint that has one inside: .pt or .safetensors.")],
    env: Annotated[str, typer.Option(help="The environment it was trained for.")],
    out: Annotated[Path, typer.Option(help="The bundle to write; a new directory.")],
    activation: Annotated[Activation, typer.Option(help="Of the hidden layers; the file does not say.")],
    squash: Annotated[
        Squash, typer.Option(help="clip: it gives out the action, as PPO does; tanh: it is squashed, then scaled.")
    ] = "clip",
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Names of the layers in order, or what is before their numbers; default: what fits."),
    ] = None,
    normalizer: Annotated[
        str | None, typer.Option(help="Name of rsl_rl's observation normalizer; default: the one that fits, if any.")
    ] = None,
    name: Name = None,
    as_json: Json = False,
) -> None:
    """Import an MLP's weights, as from rsl_rl or CleanRL. Nothing in the file is executed."""
    from nncontrol_prune.service.imports import bundle_from_state_dict

    check_new(out)
    bundle = bundle_from_state_dict(
        file,
        env,
        activation=activation,
        squash=squash,
        layers=layer or (),
        normalizer=normalizer,
        name=name,
    )
    _write_imported(bundle, out, as_json)


@importer.command("onnx")
@handled
def import_onnx(
    file: Annotated[Path, typer.Argument(help="An MLP policy, exported by whatever tool; float32 or float64.")],
    env: Annotated[str, typer.Option(help="The environment it was trained for.")],
    out: Annotated[Path, typer.Option(help="The bundle to write; a new directory.")],
    output: Annotated[
        str | None, typer.Option(help="Name of the output that is the action; default: the only one that can be.")
    ] = None,
    name: Name = None,
    as_json: Json = False,
) -> None:
    """Import an MLP policy from an ONNX file, and check that it acts the same. Nothing in the file is executed."""
    from nncontrol_prune import display
    from nncontrol_prune.service.imports import bundle_from_onnx

    check_new(out)
    bundle = bundle_from_onnx(file, env, output=output, name=name, note=display.note)
    _write_imported(bundle, out, as_json)


@importer.command("tdmpc2")
@handled
def import_tdmpc2(
    file: Annotated[Path, typer.Argument(help="Checkpoint of one task with state observations.")],
    env: Annotated[str, typer.Option(help="The environment it was trained for.")],
    out: Annotated[Path, typer.Option(help="The bundle to write; a new directory.")],
    name: Name = None,
    horizon: Annotated[int | None, typer.Option(help="Steps planned ahead; official: 3.")] = None,
    samples: Annotated[int | None, typer.Option(help="Sequences drawn around the plan; official: 488.")] = None,
    policy_samples: Annotated[int | None, typer.Option(help="Sequences the policy proposes; official: 24.")] = None,
    elites: Annotated[int | None, typer.Option(help="Sequences that make the next plan; official: 64.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Official: 6, with 20 actions and more 8.")] = None,
    temperature: Annotated[float | None, typer.Option(help="How much better elites count more; official: 0.5.")] = None,
    min_std: Annotated[float | None, typer.Option(help="Least spread of the sequences; official: 0.05.")] = None,
    max_std: Annotated[float | None, typer.Option(help="Spread at first; official: 2.")] = None,
    discount: Annotated[float | None, typer.Option(help="Of the rewards; default: 0.99.")] = None,
    episode_length: Annotated[
        int | None, typer.Option(min=1, help="Steps of a training episode, which the official discount follows from.")
    ] = None,
    simplex: Annotated[int, typer.Option(help="Its `simnorm_dim`.")] = 8,
    v_min: Annotated[float, typer.Option(help="Its `vmin`.")] = -10.0,
    v_max: Annotated[float, typer.Option(help="Its `vmax`.")] = 10.0,
    log_std_min: Annotated[float, typer.Option(help="Of its policy; newer files tell it themselves.")] = -10.0,
    log_std_max: Annotated[float, typer.Option(help="Likewise.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Import a checkpoint of the official TD-MPC2 code. Nothing in the file is executed."""
    from nncontrol_prune import display
    from nncontrol_prune.config import ConfigError
    from nncontrol_prune.controllers.tdmpc2 import official_discount
    from nncontrol_prune.service.imports import bundle_from_tdmpc2

    check_new(out)
    planner = {
        "horizon": horizon,
        "samples": samples,
        "policy_samples": policy_samples,
        "elites": elites,
        "iterations": iterations,
        "temperature": temperature,
        "min_std": min_std,
        "max_std": max_std,
    }
    if discount is not None and episode_length is not None:
        raise ConfigError("import tdmpc2: the discount follows from --episode-length; leave --discount or it out")
    if discount is None:
        discount = 0.99 if episode_length is None else official_discount(episode_length)
    bundle = bundle_from_tdmpc2(
        file,
        env,
        name=name,
        planner={key: value for key, value in planner.items() if value is not None},
        simplex=simplex,
        v_min=v_min,
        v_max=v_max,
        log_std_min=log_std_min,
        log_std_max=log_std_max,
        discount=discount,
        note=display.note,
    )
    _write_imported(bundle, out, as_json)


def _write_imported(bundle: Bundle, out: Path, as_json: bool) -> None:
    from nncontrol_prune import display

    bundle.write(out)
    if as_json:
        print_json({"bundle": str(out), "reference": bundle.reference, **bundle.manifest.model_dump(mode="json")})
    else:
        display.out.print(display.bundle_table(bundle))
        display.out.print(str(out))
