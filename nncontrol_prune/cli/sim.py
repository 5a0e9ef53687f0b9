"""`sim`: a live loop that prunes its own controller."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nncontrol_prune.cli.common import (
    FAILED,
    REJECTED,
    Host,
    Json,
    Keys,
    LoopStore,
    Port,
    Sparsity,
    check_writable,
    handled,
    new_bag,
    print_json,
)
from nncontrol_prune.pruning.settings import Method
from nncontrol_prune.transport.network import DEFAULT_PORT, LOOPBACK, Network


@handled
def sim(
    env: Annotated[
        str | None,
        typer.Option(
            help="Gymnasium MuJoCo id, such as Hopper-v5; default: what --config names, or else what the controller "
            "was made for."
        ),
    ] = None,
    controller: Annotated[
        str | None, typer.Option(help="Shipped name, directory or name@digest; default: the configuration's.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Control rate in Hz; must be the environment's.")] = None,
    duration: Annotated[
        float, typer.Option(min=0, help="Seconds; 0 to run until Ctrl-C, which ends any session.")
    ] = 60.0,
    record: Annotated[
        bool | None,
        typer.Option("--record/--no-record", help="Record rollouts below OUT/bags; without, nothing is pruned."),
    ] = None,
    sparsity: Sparsity = None,
    method: Annotated[Method | None, typer.Option(help="Optimizer of the pruning coefficients.")] = None,
    prune_after: Annotated[
        float, typer.Option(help="Seconds after which pruning starts; negative to leave it to `call prune`.")
    ] = 25.0,
    headless: Annotated[bool | None, typer.Option("--headless/--viewer", help="Whether to open a window.")] = None,
    real_time_factor: Annotated[float | None, typer.Option(help="Plant seconds per second.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the plant's first episode.")] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration file; default config/sim.yaml.")] = None,
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("out"),
    store: LoopStore = None,
    port: Port = DEFAULT_PORT,
    host: Host = LOOPBACK,
    keys: Keys = None,
    as_json: Json = False,
) -> None:
    """Run plant, control loop and pruning service; prune, validate and swap while the loop runs."""
    from nncontrol_prune import display
    from nncontrol_prune.config import load_config
    from nncontrol_prune.controllers.errors import ControllerError
    from nncontrol_prune.files import held_directory
    from nncontrol_prune.plots import plot_run
    from nncontrol_prune.rollouts.errors import RolloutError
    from nncontrol_prune.rollouts.reader import read_rollouts
    from nncontrol_prune.runtime.finding import first_controller
    from nncontrol_prune.runtime.store import BundleStore
    from nncontrol_prune.service.report_files import PAGE, check_directory
    from nncontrol_prune.transport.controller_process import SLOT
    from nncontrol_prune.transport.live_loop import REPORT
    from nncontrol_prune.transport.session import check_places, export_bundles, run_session
    from nncontrol_prune.transport.signals import ending_by_signal
    from nncontrol_prune.transport.simulation import Simulation

    setup = load_config(config)
    env_is_given = env is not None or (config is not None and "env" in setup.mujoco_sim.model_fields_set)
    setup = setup.override("mujoco_sim", env=env, headless=headless, real_time_factor=real_time_factor, seed=seed)
    setup = setup.override("nn_controller", controller=controller, rate=rate, record=record)
    setup = setup.override("pruning_service", sparsity=sparsity, method=method)
    # Not what a session before has swapped in: each begins anew.
    begins_with = setup.nn_controller.controller or setup.nn_controller.default_controller
    setup = setup.override("nn_controller", controller=begins_with)
    check_writable(out)
    check_directory(out / REPORT)
    check_places(out / "bundles", begins_with)
    bundles = BundleStore(store or out / "store")
    if not env_is_given:
        made_for = first_controller(bundles, SLOT, asked=begins_with, default="").manifest.environment
        setup = setup.override("mujoco_sim", env=made_for)
    bag = new_bag(out) if setup.nn_controller.record else None
    simulation = Simulation(setup, Network(port=port, host=host, keys=keys), out=out, store=bundles, bag=bag)
    with held_directory(out):
        with simulation, display.progress_bar(as_json) as tell, ending_by_signal() as ending:
            result, ticks = run_session(
                simulation,
                duration=duration or None,
                prune_after=prune_after if prune_after >= 0 and bag is not None else None,
                tell=tell,
                ending=ending,
            )
        written: list[Path] = []
        try:
            written += export_bundles(bundles, result, out / "bundles")
            if bag is not None:
                written.append(bag)
                plot_run(
                    out / "run.png",
                    setup.mujoco_sim.env,
                    read_rollouts(bag),
                    simulation.dense.manifest.action,
                    ticks,
                    result.active_by_swap,
                    setup.mujoco_sim.real_time_factor,
                )
                written.append(out / "run.png")
        except (OSError, ControllerError, RolloutError) as error:  # as on a full disk: what happened is told anyway
            result.notes.append(f"not all that came of it could be written to {out}: {error}")
    if result.job.outcome is not None and result.job.outcome.report is not None:
        written.append(result.job.outcome.report / PAGE)
    if as_json:
        print_json({**result.model_dump(mode="json"), "written": [str(path) for path in written]})
    else:
        display.out.print(display.session_table(result))
        for note in result.notes:
            display.note(note)
        if result.job.state == "cancelled":
            display.note("pruning was cancelled, since the session was ended before it was done")
        if written:
            display.out.print(display.written(written), soft_wrap=True)
    if result.job.state == "rejected":
        raise typer.Exit(REJECTED)
    if result.job.state == "failed" or result.notes:
        raise typer.Exit(FAILED)
