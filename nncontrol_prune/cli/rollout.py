"""`rollout`: episodes as fast as possible, into a bag."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nncontrol_prune.cli.common import (
    DEFAULT_STORE,
    INTERRUPTED,
    Env,
    Json,
    Store,
    check_new,
    environment_of,
    handled,
    print_json,
)


@handled
def rollout(
    controller: Annotated[str, typer.Argument(help="Shipped name, directory or name@digest.")],
    out: Annotated[Path, typer.Option(help="The bag to write; a new directory.")],
    env: Env = None,
    episodes: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first episode; the next ones follow.")] = 0,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Run episodes as fast as possible and write them to a bag. After Ctrl-C it holds those that were done."""
    from nncontrol_prune import display
    from nncontrol_prune.runtime.finding import find_bundle
    from nncontrol_prune.runtime.store import BundleStore
    from nncontrol_prune.service.rollouts import record_episodes
    from nncontrol_prune.transport.signals import ending_by_signal
    from nncontrol_prune.validation.evaluation import summarize

    check_new(out)
    bundle = find_bundle(BundleStore(store), controller)
    with ending_by_signal() as ending, display.progress_bar(as_json) as show:
        done = record_episodes(
            bundle,
            environment_of(bundle, env),
            range(seed, seed + episodes),
            out,
            lambda share: show(f"{episodes} episodes", share),
            ending,
        )
    if not done:
        raise KeyboardInterrupt
    summary = summarize(bundle, done)
    if as_json:
        print_json({"bag": str(out), **summary.model_dump()})
    else:
        display.out.print(
            f"{out}: {sum(episode.steps for episode in done):,} transitions in {len(done)} episodes; "
            f"success {summary.successes} of {len(done)}, return {summary.return_mean:.1f} ± {summary.return_std:.1f}",
            soft_wrap=True,
        )
    if len(done) < episodes:
        display.note(f"interrupted after {len(done)} of {episodes} episodes, all of which are whole")
        raise typer.Exit(INTERRUPTED)
