"""`run`: a controller in the live loop of a plant that is not ours."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from nncontrol_prune.cli.common import (
    FAILED,
    Host,
    Json,
    Keys,
    LoopStore,
    Port,
    check_writable,
    handled,
    new_bag,
    print_json,
)
from nncontrol_prune.transport.network import DEFAULT_PORT, LOOPBACK, Network


@handled
def run(
    controller: Annotated[
        str | None,
        typer.Argument(help="Shipped name, directory or name@digest; default: what ran last, by the store."),
    ] = None,
    record: Annotated[bool | None, typer.Option("--record/--no-record", help="Record rollouts below OUT/bags.")] = None,
    pruning: Annotated[
        bool,
        typer.Option("--pruning/--no-pruning", help="Start the pruning service too, for `call prune`; takes torch."),
    ] = False,
    env: Annotated[
        str | None,
        typer.Option(
            help="Gymnasium MuJoCo id that pruned controllers are validated in; default: what it was made for."
        ),
    ] = None,
    duration: Annotated[float, typer.Option(min=0, help="Seconds; 0 to run until Ctrl-C.")] = 0.0,
    config: Annotated[
        Path | None, typer.Option(help="Configuration file, for the sections nn_controller and pruning_service.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where recordings and logs go.")] = Path("out"),
    store: LoopStore = None,
    port: Port = DEFAULT_PORT,
    host: Host = LOOPBACK,
    keys: Keys = None,
    as_json: Json = False,
) -> None:
    """Run a controller for a plant of your own, which sends states and takes commands as docs/transport.md has it."""
    from nncontrol_prune import display
    from nncontrol_prune.config import Config, ConfigError, load_config
    from nncontrol_prune.files import held_directory
    from nncontrol_prune.runtime.finding import first_controller
    from nncontrol_prune.runtime.statistics import summarize
    from nncontrol_prune.runtime.store import BundleStore
    from nncontrol_prune.transport.controller_process import SLOT
    from nncontrol_prune.transport.live_loop import LiveLoop, watch
    from nncontrol_prune.transport.signals import ending_by_signal

    if pruning and find_spec("torch") is None:
        raise ConfigError(
            "--pruning takes torch, which is not installed here; leave it out, and prune on another computer from the "
            "bags that are recorded"
        )
    # The file that ships is a simulated cart-pole's.
    setup = (Config() if config is None else load_config(config)).override(
        "nn_controller", controller=controller, record=record
    )
    check_writable(out)
    bundles = BundleStore(store or out / "store")
    bag = new_bag(out) if setup.nn_controller.record else None
    loop = LiveLoop(
        setup,
        Network(port=port, host=host, keys=keys),
        first_controller(
            bundles, SLOT, asked=setup.nn_controller.controller, default=setup.nn_controller.default_controller
        ),
        out=out,
        store=bundles,
        bag=bag,
        environment=env,
        pruning=pruning,
    )
    with held_directory(out), loop, display.progress_bar(as_json) as tell, ending_by_signal() as ending:
        status, trace, notes = watch(loop, duration=duration or None, tell=tell, ending=ending)
    if as_json:
        print_json({**status, "notes": notes})
    else:
        display.out.print(display.loop_table(status, summarize(trace.rows)))
        for note in notes:
            display.note(note)
        if bag is not None:
            display.out.print(display.written([bag]), soft_wrap=True)
    if notes:
        raise typer.Exit(FAILED)
