"""Bundles between machines: in chunks, checked before they are stored."""

from __future__ import annotations

from typing import Any

from nncontrol_prune.controllers.bundle import MANIFEST, MAX_MANIFEST_BYTES, Bundle, check_bundle, parse_manifest
from nncontrol_prune.controllers.errors import BundleError
from nncontrol_prune.controllers.verdict import Verdict
from nncontrol_prune.runtime.store import BundleStore
from nncontrol_prune.transport.messages import CHUNK_BYTES, GetChunk, PutChunk, PutDone
from nncontrol_prune.transport.requests import Client, Handler

MAX_UPLOAD_BYTES = 128 * 1024 * 1024
"""Of one bundle: it is held in the memory of the process that runs the loop until it is whole."""

MAX_UPLOADS = 2
"""Unfinished uploads held at once; a further one drops the oldest."""


class BundleTransfer:
    """The receiving and giving side: answers transfer requests from a store."""

    def __init__(self, store: BundleStore) -> None:
        self._store = store
        self._uploads: dict[str, dict[str, bytearray]] = {}

    def handlers(self) -> dict[type, Handler]:
        """Return what to do for each transfer request."""
        return {GetChunk: self._get, PutChunk: self._put, PutDone: self._done}

    def _get(self, request: GetChunk, _: bytes) -> tuple[dict[str, Any], bytes]:
        path = self._store.directory(self._store.find(request.reference)) / request.file
        try:
            with path.open("rb") as file:
                file.seek(request.offset)
                data = file.read(CHUNK_BYTES)
        except OSError as error:
            raise BundleError(f"{request.file} of {request.reference} cannot be read: {error.strerror}") from error
        return {"size": path.stat().st_size}, data

    def _put(self, request: PutChunk, payload: bytes) -> tuple[dict[str, Any], bytes]:
        if request.file == MANIFEST and request.offset == 0:
            while len(self._uploads) >= MAX_UPLOADS:
                self._uploads.pop(next(iter(self._uploads)))
            self._uploads[request.digest] = {}
        upload = self._uploads.get(request.digest)
        if upload is None:
            raise BundleError(f"an upload begins with {MANIFEST}, not with {request.file}")
        data = upload.setdefault(request.file, bytearray())
        if len(data) != request.offset:
            raise BundleError(
                f"{request.file}: {len(data)} bytes have arrived, so the next offset is not {request.offset}"
            )
        limit = MAX_MANIFEST_BYTES
        if request.file != MANIFEST:
            declared = parse_manifest(bytes(upload[MANIFEST])).files
            limit = declared[request.file].bytes
            if sum(entry.bytes for entry in declared.values()) > MAX_UPLOAD_BYTES:
                raise BundleError(f"the bundle is larger than the {MAX_UPLOAD_BYTES} bytes that may be sent")
        if len(data) + len(payload) > limit:
            raise BundleError(f"{request.file} is larger than the {limit} bytes it may have")
        data += payload
        return {"received": len(data)}, b""

    def _done(self, request: PutDone, _: bytes) -> tuple[dict[str, Any], bytes]:
        files = self._uploads.pop(request.digest, None)
        if files is None:
            raise BundleError("nothing was uploaded under this digest")
        received = {name: bytes(data) for name, data in files.items()}
        reference = self._store.receive(received, request.digest, request.verdict)
        return {"reference": reference}, b""


def push_bundle(client: Client, bundle: Bundle, verdict: Verdict | None) -> None:
    """Send a bundle, and what the gate said of it, to the store on the other side.

    Raises:
        TransportError: There is no answer.
        RequestFailedError: The other side refuses it.
    """
    for name, data in sorted(bundle.files.items(), key=lambda item: item[0] != MANIFEST):
        for offset in range(0, len(data), CHUNK_BYTES):
            chunk = PutChunk.model_validate({"digest": bundle.digest, "file": name, "offset": offset})
            client.exchange(chunk, data[offset : offset + CHUNK_BYTES])
    client.request(PutDone(digest=bundle.digest, verdict=verdict))


def pull_bundle(client: Client, reference: str) -> Bundle:
    """Fetch a bundle from the store on the other side, and check it.

    Raises:
        TransportError: There is no answer.
        RequestFailedError: The other side does not have it.
        BundleError: What arrived fails a check, or is another bundle.
    """
    files = {MANIFEST: _pull_file(client, reference, MANIFEST, MAX_MANIFEST_BYTES)}
    for name, entry in parse_manifest(files[MANIFEST]).files.items():
        files[name] = _pull_file(client, reference, name, entry.bytes)
    bundle = check_bundle(files)
    if bundle.reference != reference:
        raise BundleError(f"asked for {reference}, but {bundle.reference} arrived")
    return bundle


def _pull_file(client: Client, reference: str, name: str, limit: int) -> bytes:
    data = bytearray()
    while True:
        request = GetChunk.model_validate({"reference": reference, "file": name, "offset": len(data)})
        result, chunk = client.exchange(request)
        data += chunk
        if len(data) > limit:
            raise BundleError(f"{name} is larger than the {limit} bytes it may have")
        if not chunk or len(data) >= int(result["size"]):
            return bytes(data)
