"""`prune`: make a controller smaller."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nncontrol_prune.cli.common import (
    DEFAULT_STORE,
    Config,
    Json,
    Name,
    Store,
    check_new,
    check_writable,
    environment_of,
    handled,
    print_json,
    setting,
    with_options,
)
from nncontrol_prune.pruning.settings import CostName, ImportanceName, Method, PruningSettings

if TYPE_CHECKING:
    from nncontrol_prune.controllers.bundle import Bundle

PRUNING = PruningSettings()
NOWHERE = "none"


@handled
def prune(
    controller: Annotated[str, typer.Argument(help="Shipped name, directory or name@digest.")],
    rollouts: Annotated[list[Path], typer.Option(help="Bag to prune from; may be given several times.")],
    out: Annotated[Path, typer.Option(help="The bundle to write; a new directory.")],
    env: Annotated[
        str | None,
        typer.Option(
            help="Gymnasium MuJoCo id that candidates are compared in; default: what the controller was made for; "
            f"`{NOWHERE}`: prune by the rollouts alone."
        ),
    ] = None,
    config: Config = None,
    sparsity: Annotated[
        str | None,
        setting(PRUNING, "sparsity", "Share to remove, in [0, 1); `auto` for the largest that passes validation."),
    ] = None,
    tolerance: Annotated[float | None, setting(PRUNING, "tolerance", "How far the sparsity may be off.")] = None,
    cost: Annotated[CostName | None, setting(PRUNING, "cost", "What the sparsity is a share of.")] = None,
    channel_multiple: Annotated[
        int | None,
        setting(PRUNING, "channel_multiple", "Groups keep a multiple of so many channels, or all.", min=1),
    ] = None,
    method: Annotated[Method | None, setting(PRUNING, "method", "Optimizer of the pruning coefficients.")] = None,
    importance: Annotated[ImportanceName | None, setting(PRUNING, "importance", "Which channels leave first.")] = None,
    term: Annotated[
        list[str] | None,
        typer.Option(help="NAME=WEIGHT of what matters, such as action=1; may be given several times."),
    ] = None,
    limit: Annotated[list[str] | None, typer.Option(help="NAME=LARGEST mean error of a term that is allowed.")] = None,
    component_weight: Annotated[
        list[str] | None, typer.Option(help="NAME=WEIGHT of a component, for the method threshold.")
    ] = None,
    rounds: Annotated[int | None, setting(PRUNING, "rounds", "Prune gradually, in so many rounds.")] = None,
    distill_steps: Annotated[
        int | None, setting(PRUNING, "distill_steps", "Gradient steps of distillation.", min=0)
    ] = None,
    on_policy_rounds: Annotated[
        int | None,
        typer.Option(help="Rounds with states that the pruned controller meets in --env; by default 3 where possible."),
    ] = None,
    variations: Annotated[
        int | None,
        typer.Option(help="Choices of coefficients to try in --env, at the most; by default 12 where possible."),
    ] = None,
    perturbation: Annotated[
        float | None,
        setting(PRUNING, "perturbation", "Noise on a second copy of the rollouts, in standard deviations."),
    ] = None,
    max_rows: Annotated[int | None, setting(PRUNING, "max_rows", "Transitions that are used at the most.")] = None,
    jobs: Annotated[int | None, setting(PRUNING, "jobs", "Workers, for the grid and in closed loop.", min=1)] = None,
    seed: Annotated[int | None, setting(PRUNING, "seed", "Of all that is left to chance.", min=0)] = None,
    name: Name = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Make a controller smaller from its rollouts. It cannot be run before `validate` has accepted it.

    Candidates are compared by what the gate asks, which --config may give. With `--sparsity auto` the sparsities tried
    are validated as they come, and the verdict about the result is kept in the store.
    """
    from nncontrol_prune import display
    from nncontrol_prune.config import ConfigError, PruningServiceConfig, load_config, validated
    from nncontrol_prune.progress import Progress
    from nncontrol_prune.runtime.finding import find_bundle
    from nncontrol_prune.runtime.store import BundleStore
    from nncontrol_prune.service import work
    from nncontrol_prune.service.boundary import prune_to_boundary
    from nncontrol_prune.shares import percent_removed

    options: dict[str, Any] = {
        "tolerance": tolerance,
        "cost": cost,
        "channel_multiple": channel_multiple,
        "method": method,
        "importance": importance,
        "terms": _named_numbers(term, "--term") or None,
        "limits": _named_numbers(limit, "--limit") or None,
        "component_weights": _named_numbers(component_weight, "--component-weight") or None,
        "rounds": rounds,
        "distill_steps": distill_steps,
        "on_policy_rounds": on_policy_rounds,
        "variations": variations,
        "perturbation": perturbation,
        "max_rows": max_rows,
        "jobs": jobs,
        "seed": seed,
    }
    auto = sparsity == "auto"
    if sparsity is not None and not auto:
        options["sparsity"] = _number(sparsity, "prune: --sparsity has to be a number or `auto`", sparsity)
    section = PruningServiceConfig() if config is None else load_config(config).pruning_service
    settings = validated(PruningSettings, with_options(section.pruning, options), "prune")
    check_new(out)
    bundles = BundleStore(store)
    dense = find_bundle(bundles, controller)
    if auto and settings.cost != "parameters":
        raise ConfigError("prune: --sparsity auto goes by parameters; leave --cost out")
    where = _environment(dense, env or section.env or None, needed=auto)
    if where is None and (settings.variations or settings.on_policy_rounds):
        raise ConfigError("prune: --variations and --on-policy-rounds run the controller; say where with --env")
    if where is not None:
        check_writable(store)  # the episodes of candidates are kept there
    found = None
    with display.progress_bar(as_json) as show:
        data = work.with_origin(work.read(dense, tuple(rollouts), Progress(show)), dense, bundles)
        if auto:
            found = prune_to_boundary(
                dense,
                data,
                settings,
                environment=str(where),
                gate=section.gate,
                cache=work.episode_cache(bundles),
                progress=Progress(show),
                name=name,
            )
            bundle, report = found.candidate, found.report
        else:
            bundle, report = work.prune(
                dense,
                data,
                settings,
                gate=section.gate,
                environment=where,
                cache=work.episode_cache(bundles),
                name=name,
                progress=Progress(show),
            )
    bundle.write(out)
    if found is not None:
        bundles.add(dense)
        bundles.add(bundle)
        bundles.write_verdict(found.verdict)
    if as_json:
        summary = {"bundle": str(out), "reference": bundle.reference, **report.model_dump(mode="json")}
        if found is not None:
            summary["curve"] = [point.model_dump(mode="json") for point in found.curve]
        print_json(summary)
        return
    groups = [group.model_dump() for group in report.groups]
    display.out.print(display.groups_table(groups, f"{percent_removed(report.sparsity)} of the {report.cost} removed"))
    if found is not None:
        display.out.print(display.boundary_table(found.curve))
    errors = ", ".join(f"{name} {error:.2e}" for name, error in report.errors.items())
    display.out.print(f"held-out error: {errors}; chosen: {report.chosen}")
    for warning in report.warnings:
        display.note(warning)
    display.out.print(
        f"{out}: {report.pruned_parameters:,} of {report.dense_parameters:,} parameters left."
        + (" It is accepted." if auto else f" Next: nncontrol-prune validate {out} --against {controller}")
        + (f" --env {where}" if where not in (None, dense.manifest.environment) and not auto else "")
        + (f" --config {config}" if config is not None and not auto else "")
        + (f" --store {store}" if store != DEFAULT_STORE and not auto else ""),
        soft_wrap=True,
    )


def _environment(dense: Bundle, asked: str | None, *, needed: bool) -> str | None:
    """Return where candidates are compared, after checking that the controller fits there; None for nowhere."""
    from nncontrol_prune.config import ConfigError
    from nncontrol_prune.plants.environments import PlantError
    from nncontrol_prune.validation.evaluation import check_environment

    if asked == NOWHERE:
        if needed:
            raise ConfigError(f"prune: --sparsity auto is validated in closed loop; leave --env {NOWHERE} out")
        return None
    environment = environment_of(dense, asked) if needed else asked or dense.manifest.environment
    if environment is not None:
        try:
            check_environment(dense.manifest, environment)
        except PlantError as error:
            hint = "" if asked or needed else f"; --env {NOWHERE} prunes by the rollouts alone"
            raise PlantError(f"{error}{hint}") from error
    return environment


def _named_numbers(given: list[str] | None, option: str) -> dict[str, float]:
    """Parse NAME=NUMBER options."""
    wrong = f"{option} has to be NAME=NUMBER, such as action=1"
    return {text.partition("=")[0]: _number(text.partition("=")[2], wrong, text) for text in given or ()}


def _number(text: str, otherwise: str, given: str) -> float:
    from nncontrol_prune.config import ConfigError

    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{otherwise}, not {given!r}") from None
