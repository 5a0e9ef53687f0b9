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


def first_controller(store: BundleStore, slot: str, *, asked: str, default: str) -> Bundle:
    """Find the controller that a loop begins with: what is asked for, or what its slot ran last, or the default.

    Args:
        store: The store.
        slot: The loop's.
        asked: What a user means, see `stored_bundle`; empty for nothing.
        default: Likewise.

    Raises:
        ControllerError: There is none, or it fails a check.
    """
    record = store.slot(slot)
    text = asked or (default if record is None else record.current)
    if not text:
        raise StoreError(f"slot {slot} of the store {store.root} has no current controller; name one")
    return find_bundle(store, text)


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
