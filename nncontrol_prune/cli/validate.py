"""`validate`: let the gate decide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nncontrol_prune.cli.common import (
    DEFAULT_STORE,
    REJECTED,
    Config,
    Env,
    Json,
    Store,
    check_writable,
    environment_of,
    handled,
    print_json,
    setting,
    with_options,
)
from nncontrol_prune.validation.settings import GateSettings

if TYPE_CHECKING:
    from nncontrol_prune.rollouts.reader import Rollouts

GATE = GateSettings()


@handled
def validate(
    candidate: Annotated[str, typer.Argument(help="The pruned controller: directory or name@digest.")],
    against: Annotated[str, typer.Option(help="The dense controller: shipped name, directory or name@digest.")],
    env: Env = None,
    rollouts: Annotated[
        list[Path] | None,
        typer.Option(help="Instead of a closed loop: bag it was not pruned from; may be given again."),
    ] = None,
    config: Config = None,
    report: Annotated[Path | None, typer.Option(help="Directory for the report; default: in the store.")] = None,
    max_episodes: Annotated[
        int | None, setting(GATE, "max_episodes", "Pairs of episodes after which it is inconclusive.")
    ] = None,
    min_episodes: Annotated[int | None, setting(GATE, "min_episodes", "Pairs before it may be accepted.")] = None,
    success_margin: Annotated[
        float | None, setting(GATE, "success_margin", "How much less likely it may succeed than the dense one.")
    ] = None,
    return_ratio: Annotated[
        float | None, setting(GATE, "return_ratio", "Smallest share of the dense return to keep.")
    ] = None,
    action_rate_ratio: Annotated[
        float | None, setting(GATE, "action_rate_ratio", "How much faster its commands may change.")
    ] = None,
    latency_share: Annotated[
        float | None,
        setting(GATE, "latency_share", "Largest share of the control period that an action (p99) may take here."),
    ] = None,
    margin_share: Annotated[
        float | None, setting(GATE, "margin_share", "Smallest share of the dense one's delay and gain margins to keep.")
    ] = None,
    robustness: Annotated[
        bool, typer.Option(help="Whether to try pushes, noise, more delay, other masses, friction and starts too.")
    ] = True,
    delay: Annotated[int | None, setting(GATE, "delay", "Ticks that a command takes to the plant.")] = None,
    jobs: Annotated[int | None, setting(GATE, "jobs", "Workers; the verdict does not depend on it.")] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Judge a pruned controller in closed loop. The verdict is kept in the store; without acceptance, exit code 3.

    Where there is no simulator, --rollouts compares it with the dense one on logged states alone. That says much less:
    the loop runs it only if its setting allow_offline is true.
    """
    from nncontrol_prune import display
    from nncontrol_prune.config import ConfigError, PruningServiceConfig, load_config, validated
    from nncontrol_prune.plants.environments import PlantError
    from nncontrol_prune.progress import Progress
    from nncontrol_prune.runtime.finding import stored_bundle
    from nncontrol_prune.runtime.store import BundleStore, StoreError
    from nncontrol_prune.service import work
    from nncontrol_prune.service.report_files import PAGE, check_directory

    if report is not None:
        check_directory(report)
        check_writable(report.parent)
    if rollouts and env is not None:
        raise ConfigError("validate: --env is for a closed loop and --rollouts for where there is none; leave one out")
    options = {
        "min_episodes": min_episodes,
        "max_episodes": max_episodes,
        "success_margin": success_margin,
        "return_ratio": return_ratio,
        "action_rate_ratio": action_rate_ratio,
        "latency_share": latency_share,
        "margin_share": margin_share,
        "delay": delay,
        "jobs": jobs,
    }
    section = PruningServiceConfig() if config is None else load_config(config).pruning_service
    values = with_options(section.gate, options)
    if not robustness:
        values["robustness"]["enabled"], values["attraction_starts"] = False, 0
    gate = validated(GateSettings, values, "validate")
    check_writable(store)
    bundles = BundleStore(store)
    pruned, dense = stored_bundle(bundles, candidate), stored_bundle(bundles, against)
    with display.progress_bar(as_json) as show:
        where: str | Rollouts
        if rollouts:
            where = work.unseen_part(pruned, work.read(dense, tuple(rollouts), Progress(show)))
        else:
            where = environment_of(dense, env or section.env)
        verdict = work.judged(pruned, dense, bundles, where, gate, Progress(show))
    unwritten: StoreError | None = None
    try:
        bundles.write_verdict(verdict)
    except StoreError as error:  # it took long, so it is told at least
        unwritten = error
    if not as_json:  # before the report, which takes longer than some decisions
        display.out.print(display.verdict_table(verdict))
        if verdict.robustness:
            display.out.print(display.robustness_table(verdict))
    if unwritten is not None:
        raise unwritten
    written, no_report = report or work.default_report(bundles, pruned), ""
    try:
        with display.progress_bar(as_json) as show:
            work.report_on(verdict, pruned, dense, bundles, gate, Progress(show), written)
    except (OSError, PlantError) as error:  # what is decided stays decided
        no_report = str(error)
        display.note(f"there is no report: {no_report}")
    if as_json:
        told = {"report": None, "no_report": no_report} if no_report else {"report": str(written)}
        print_json({**verdict.model_dump(mode="json"), **told})
    elif not no_report:
        display.out.print(str(written / PAGE), soft_wrap=True)
    if not verdict.accepted:
        raise typer.Exit(REJECTED)
