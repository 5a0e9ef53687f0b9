"""The bundle store: bundles by content digest, verdicts beside them, and what each slot runs.

    <root>/bundles/<digest>/           bundles, never changed after they are written
    <root>/verdicts/<digest>.json      what the gate said
    <root>/slots/<slot>.json           current controller and history of a slot
    <root>/slots/<slot>.lock           held by the loop that has the slot
    <root>/episodes/                   dense controllers' episodes, which validation need not run again

Everything comes by atomic rename: a power cut leaves the old controller or the new one, never neither.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError

from nncontrol_prune.controllers.bundle import MANIFEST, Bundle, check_bundle, load_bundle, parse_manifest, short
from nncontrol_prune.controllers.errors import BundleError, ControllerError
from nncontrol_prune.controllers.specs import Manifest, Spec, parse_reference, problem_of
from nncontrol_prune.controllers.verdict import Verdict
from nncontrol_prune.files import held_file, remove_unfinished, write_atomically

HISTORY_LENGTH = 32
STORE_VARIABLE = "NNCONTROL_PRUNE_STORE"
"""The environment variable that names the store where nothing else does."""


def default_root(chosen: str) -> Path:
    """Return where the store is: where somebody chose, or what the environment says, or ~/.ros/nncontrol_prune."""
    return Path(chosen or os.environ.get(STORE_VARIABLE, "~/.ros/nncontrol_prune")).expanduser()


class StoreError(ControllerError):
    """The store does not hold what was asked for, or a file of it is damaged."""


class NotAcceptedError(ControllerError):
    """A pruned bundle may not be staged, since the gate has not accepted it."""


class SlotRecord(Spec):
    """Which controller a slot runs, and those it ran before, newest last."""

    current: str
    history: Annotated[tuple[str, ...], Field(max_length=HISTORY_LENGTH)] = ()


Record = TypeVar("Record", Verdict, SlotRecord)


class BundleStore:
    """A directory of bundles; any number of processes may read and write it at once.

    Args:
        root: The directory; made on the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, bundle: Bundle) -> str:
        """Store a checked bundle, unless it is there, and return its `name@digest`.

        Raises:
            StoreError: It cannot be written.
        """
        directory = self.directory(bundle.digest)
        if not directory.is_dir():
            with self._writing():
                try:
                    bundle.write(directory)
                except FileExistsError:
                    # Another process may have stored the same bundle in the meantime: same digest, same contents.
                    if not directory.is_dir():
                        raise
        return bundle.reference

    def receive(self, files: dict[str, bytes], digest: str, verdict: Verdict | None) -> str:
        """Check a bundle that came from another machine, store it with its verdict, and return its `name@digest`.

        Args:
            files: Its contents by file name.
            digest: What was announced.
            verdict: What the other machine's gate said of it.

        Raises:
            BundleError: It fails a check, is another bundle than announced, or the verdict is about another one or
                accepts what this store's own verdict rejects. Nothing is stored then.
            StoreError: The verdict is an off-line one, and this store has one in closed loop. Nor then.
        """
        bundle = check_bundle(files)
        if bundle.digest != digest:
            raise BundleError(f"the bundle that arrived has digest {bundle.digest}, not {digest}")
        if verdict is not None and verdict.candidate != bundle.reference:
            raise BundleError("the verdict that came with the bundle is about another")
        known = self._known_verdict(bundle.digest)
        if verdict is not None and known is not None and not known.accepted and verdict.accepted:
            raise BundleError("the verdict that came with the bundle accepts what this store's own rejects")
        if verdict is not None:
            self._check_replaceable(verdict)
        reference = self.add(bundle)
        if verdict is not None:
            self.write_verdict(verdict)
        return reference

    def dense(self, reference: str) -> str:
        """Return the `name@digest` of the dense controller that one was pruned from, or its own.

        Raises:
            StoreError: One of the controllers on the way there is not in the store.
            BundleError: The manifest of one of them is damaged.
        """
        *_, dense = self.lineage(reference)
        return dense

    def lineage(self, reference: str) -> Iterator[str]:
        """Yield a controller's `name@digest`, that of the one it was pruned from, and so on to the dense one.

        Raises:
            StoreError: The store does not hold the one that was yielded last, when it is asked for the next, or says
                that one was pruned from itself.
            BundleError: Its manifest is damaged.
        """
        known = set[str]()
        follows: str | None = reference
        while follows is not None:
            yield follows
            known.add(follows)
            follows = self.manifest(follows).parent
            # Digests rule it out, but a manifest is not held against its own here.
            if follows in known:
                raise StoreError(f"the store {self.root} says that {short(follows)} was pruned from itself")

    def directory(self, digest: str) -> Path:
        """Return where a bundle of this digest is, or would be."""
        return self.root / "bundles" / digest

    def find(self, reference: str) -> str:
        """Return the full digest for `name@digest`, whose digest may be shortened.

        Raises:
            StoreError: The store holds no such bundle, or several.
        """
        try:
            _, digest = parse_reference(reference)
        except ValueError as error:
            raise StoreError(str(error)) from error
        found = [path.name for path in sorted((self.root / "bundles").glob(f"{digest}*"))]
        if len(found) != 1:
            raise StoreError(f"{'no' if not found else 'more than one'} bundle {reference} in the store {self.root}")
        return found[0]

    def load(self, reference: str) -> Bundle:
        """Load a bundle by `name@digest`, with every check.

        Raises:
            StoreError: The store does not hold it, or holds it under another name.
            BundleError: It is damaged.
        """
        digest = self.find(reference)
        bundle = load_bundle(self.directory(digest))
        name, _ = parse_reference(reference)
        if bundle.digest != digest or bundle.manifest.name != name:
            raise StoreError(f"the store {self.root} holds {short(bundle.reference)} where {short(reference)} belongs")
        return bundle

    def manifest(self, reference: str) -> Manifest:
        """Return a bundle's manifest alone, without a check of its other files.

        Raises:
            StoreError: The store does not hold it.
            BundleError: It is damaged.
        """
        path = self.directory(self.find(reference)) / MANIFEST
        return parse_manifest(path.read_bytes() if path.exists() else None)

    def verdict(self, digest: str) -> Verdict | None:
        """Return the verdict about a bundle; None if it was never validated.

        Raises:
            StoreError: The verdict's file cannot be read, is damaged, or about another bundle.
        """
        path = self.root / "verdicts" / f"{digest}.json"
        verdict = _read(path, Verdict, "verdict")
        if verdict is not None and not verdict.candidate.endswith(f"@{digest}"):
            raise StoreError(f"{path} is a verdict about {short(verdict.candidate)}")
        return verdict

    def verdicts(self) -> Iterator[Verdict]:
        """Yield all verdicts that can be read, by digest; of candidates that may be gone by now."""
        for path in sorted((self.root / "verdicts").glob("*.json")):
            with contextlib.suppress(StoreError):  # damaged, or of an older format: it says nothing any more
                verdict = self.verdict(path.stem)
                if verdict is not None:
                    yield verdict

    def write_verdict(self, verdict: Verdict) -> None:
        """Store a verdict; one that was there is replaced.

        Raises:
            StoreError: It is an off-line one, and the candidate has been judged in closed loop, which tells more; or it
                cannot be written.
        """
        self._check_replaceable(verdict)
        digest = verdict.candidate.rpartition("@")[2]
        with self._writing():
            write_atomically(self.root / "verdicts" / f"{digest}.json", verdict.model_dump_json(indent=1).encode())

    def _known_verdict(self, digest: str) -> Verdict | None:
        """Return the verdict about a bundle if it can be read; a damaged one, or an older format's, may be replaced."""
        with contextlib.suppress(StoreError):
            return self.verdict(digest)
        return None

    def _check_replaceable(self, verdict: Verdict) -> None:
        known = self._known_verdict(verdict.candidate.rpartition("@")[2])
        if verdict.offline and known is not None and not known.offline:
            raise StoreError(
                f"{short(verdict.candidate)} was judged in closed loop ({known.decision}), and an off-line check does "
                "not take the place of that"
            )

    def check_accepted(self, bundle: Bundle, *, allow_offline: bool = False) -> None:
        """Check that a bundle may be staged: it has no parent, or an accepted verdict.

        Args:
            bundle: The bundle.
            allow_offline: Whether a verdict will do for which no closed loop was run.

        Raises:
            NotAcceptedError: It may not.
        """
        if bundle.manifest.parent is None:
            return
        verdict = self.verdict(bundle.digest)
        who = f"{short(bundle.reference)} cannot be staged: it was pruned from {short(bundle.manifest.parent)}"
        if verdict is None:
            raise NotAcceptedError(
                f"{who} and was never validated, as far as the store {self.root} tells; run `nncontrol-prune validate "
                f"--store {self.root}` on it first, or name the store that it was validated in with --store, or "
                "the parameter store"
            )
        if verdict.against != bundle.manifest.parent:
            raise NotAcceptedError(f"{who} and was judged against another, {short(verdict.against)}")
        if not verdict.accepted:
            found = "rejected it" if verdict.decision == "reject" else "could not tell whether it is as good"
            raise NotAcceptedError(f"{who} and the gate {found}: {'; '.join(verdict.reasons)}")
        if verdict.offline and not allow_offline:
            raise NotAcceptedError(
                f"{who} and was accepted on rollouts alone, without a closed loop; validate it with an environment, or "
                "set allow_offline of the controller to true"
            )

    def slot(self, slot: str) -> SlotRecord | None:
        """Return what a slot runs; None if it never ran anything.

        Raises:
            StoreError: The slot's file cannot be read, or is damaged.
        """
        return _read(self.root / "slots" / f"{slot}.json", SlotRecord, "slot record")

    def write_slot(self, slot: str, record: SlotRecord) -> None:
        """Record what a slot runs.

        Raises:
            StoreError: It cannot be written.
        """
        with self._writing():
            write_atomically(self.root / "slots" / f"{slot}.json", record.model_dump_json(indent=1).encode())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"the store {self.root} cannot be written: {error.strerror or error}") from error

    @contextlib.contextmanager
    def held_slot(self, slot: str) -> Iterator[None]:
        """Hold a slot against every other loop, which would write its own controllers over this one's.

        Where the store cannot be written, nothing can be written over, and nothing is held.

        Raises:
            StoreError: Another loop has the slot.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(held_file(self.root / "slots" / f"{slot}.lock"))
            except BlockingIOError as error:
                raise StoreError(
                    f"another loop has slot {slot} of the store {self.root}; end that one, or give this one a store of "
                    "its own with --store, or the parameter store"
                ) from error
            except OSError:
                pass
            yield

    def remove_unfinished(self) -> None:
        """Remove what processes that were killed had half written."""
        for directory in ("bundles", "verdicts", "slots", "reports"):
            remove_unfinished(self.root / directory)


def _read(path: Path, model: type[Record], what: str) -> Record | None:
    """Read one of the store's files, which the message calls so; None if it is not there."""
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"the {what} {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise StoreError(f"{path} is not a {what}: {problem_of(error)}") from error
