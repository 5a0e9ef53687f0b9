"""`inspect`: what is in a bundle or a bag."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from nncontrol_prune.cli.common import DEFAULT_STORE, Json, Store, handled, print_json


@handled
def inspect(
    what: Annotated[str, typer.Argument(help="A bundle (directory, name@digest, shipped name) or a bag.")],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Show what is in a bundle, with its prunable groups where torch is installed, or in a bag."""
    from nncontrol_prune import display
    from nncontrol_prune.runtime.finding import find_bundle
    from nncontrol_prune.runtime.store import BundleStore
    from nncontrol_prune.service import inspection

    path = Path(what)
    if path.exists() and not (path / "manifest.json").exists():
        summary = inspection.inspect_rollouts(path)
        if as_json:
            print_json(summary)
        else:
            for key, value in summary.items():
                display.out.print(f"{key}: {value}", soft_wrap=True)
        return
    bundle = find_bundle(BundleStore(store), what)
    # A robot's computer has no torch to find them with; the rest can be told there too.
    groups = inspection.inspect_groups(bundle) if find_spec("torch") else None
    if as_json:
        manifest = bundle.manifest.model_dump(mode="json")
        print_json({"reference": bundle.reference, **manifest, "groups": groups})
        return
    display.out.print(display.bundle_table(bundle))
    if groups is None:
        display.note("to find the groups of channels takes torch, which is not installed here")
    else:
        display.out.print(display.groups_table(groups))
