"""`inspect`: what is in a bundle or a bag."""

from __future__ import annotations

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
    """Show what is in a bundle, with its prunable groups, or in a bag."""
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
    groups = inspection.inspect_groups(bundle)
    if as_json:
        manifest = bundle.manifest.model_dump(mode="json")
        print_json({"reference": bundle.reference, **manifest, "groups": groups})
    else:
        display.out.print(display.bundle_table(bundle))
        display.out.print(display.groups_table(groups))
