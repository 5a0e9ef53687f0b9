"""Finding the controller that a user means."""

from __future__ import annotations

from pathlib import Path

from nncontrol_prune.controllers.bundle import Bundle, load_bundle
from nncontrol_prune.resources import shipped_controllers
from nncontrol_prune.runtime.store import BundleStore, StoreError


def stored_bundle(store: BundleStore, text: str) -> Bundle:
    """Find the controller a user means, and put it into the store unless it is there.

    Args:
        store: The store.
        text: A directory, `name@digest` of a bundle in the store, or the name of a controller that ships.

    Raises:
        ControllerError: There is none, or it fails a check.
    """
    bundle = find_bundle(store, text)
    store.add(bundle)
    return bundle


def find_bundle(store: BundleStore, text: str) -> Bundle:
    """Find the controller a user means; see `stored_bundle`."""
    shipped = shipped_controllers()
    if text in shipped and not Path(text).exists():
        return load_bundle(shipped[text])
    if "@" in text and not Path(text).exists():
        return store.load(text)
    if Path(text).is_dir():
        return load_bundle(Path(text))
    raise StoreError(
        f"there is no controller {text!r}: it is no directory, no name@digest, and not one of those that ship "
        f"({', '.join(shipped) or 'none'})"
    )
