from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from nncontrol_prune.controllers.bundle import MANIFEST, Bundle
from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.runtime.store import BundleStore, StoreError
from nncontrol_prune.transport.bundles import BundleTransfer, pull_bundle, push_bundle
from nncontrol_prune.transport.messages import (
    CHUNK_BYTES,
    ControllerRequest,
    PutChunk,
    PutDone,
    RequestError,
    parse_request,
)
from nncontrol_prune.transport.network import Network
from nncontrol_prune.transport.requests import Client, RequestFailedError, RequestServer


@pytest.fixture
def far(tmp_path: Path) -> BundleStore:
    """The store on the other machine."""
    return BundleStore(tmp_path / "far")


@pytest.fixture
def client(network: Network, far: BundleStore):
    handlers = BundleTransfer(far).handlers()
    server = RequestServer(network, "controller", TypeAdapter(ControllerRequest), handlers, errors=(ControllerError,))
    server.start()
    with Client(network, "controller") as client:
        yield client
    server.close()


def test_bundle_arrives_whole_with_its_verdict(
    client: Client, far: BundleStore, shipped_bundle: Bundle, make_cartpole_bundle, make_verdict
) -> None:
    pruned = make_cartpole_bundle(hidden=(600, 600), parent=shipped_bundle)
    assert max(len(data) for data in pruned.files.values()) > CHUNK_BYTES
    push_bundle(client, pruned, make_verdict(pruned))
    assert far.load(pruned.reference).files == pruned.files
    far.check_accepted(pruned)


def test_bundle_can_be_fetched(client: Client, far: BundleStore, shipped_bundle: Bundle) -> None:
    reference = far.add(shipped_bundle)
    assert pull_bundle(client, reference).files == shipped_bundle.files


def test_unknown_bundle_is_refused(client: Client) -> None:
    with pytest.raises(RequestFailedError, match="no bundle"):
        pull_bundle(client, "nobody@" + "0" * 64)


def test_bundle_damaged_on_its_way_is_not_stored(client: Client, far: BundleStore, small_bundle: Bundle) -> None:
    damaged = bytearray(small_bundle.files["policy.onnx"])
    damaged[random.Random(0).randrange(len(damaged))] ^= 255
    broken = Bundle(
        small_bundle.manifest,
        small_bundle.digest,
        {**small_bundle.files, "policy.onnx": bytes(damaged)},
        small_bundle.policy,
    )
    with pytest.raises(RequestFailedError, match=r"policy\.onnx is damaged"):
        push_bundle(client, broken, None)
    with pytest.raises(StoreError):
        far.load(small_bundle.reference)


def test_bundle_under_a_wrong_digest_is_not_stored(client: Client, far: BundleStore, small_bundle: Bundle) -> None:
    wrong = Bundle(small_bundle.manifest, "0" * 64, small_bundle.files, small_bundle.policy)
    with pytest.raises(RequestFailedError, match="has digest"):
        push_bundle(client, wrong, None)
    assert not (far.root / "bundles").exists()


def test_verdict_about_another_bundle_is_refused(
    client: Client, small_bundle: Bundle, make_cartpole_bundle, make_verdict
) -> None:
    other = make_cartpole_bundle(hidden=(4, 4), parent=small_bundle)
    with pytest.raises(RequestFailedError, match="about another"):
        push_bundle(client, small_bundle, make_verdict(other))


def test_verdict_that_accepts_what_this_store_rejects_is_refused(
    client: Client, far: BundleStore, shipped_bundle: Bundle, make_cartpole_bundle, make_verdict
) -> None:
    pruned = make_cartpole_bundle(hidden=(4, 4), parent=shipped_bundle)
    far.write_verdict(make_verdict(pruned, accepted=False))
    with pytest.raises(RequestFailedError, match="accepts what this store's own rejects"):
        push_bundle(client, pruned, make_verdict(pruned))


@pytest.mark.parametrize("request_", ["get_chunk", "put_chunk"])
@pytest.mark.parametrize(("offset", "allowed"), [(10**19, "less than"), (-1, "greater than or equal to 0")])
def test_offset_that_no_file_has_is_refused(request_: str, offset: int, allowed: str) -> None:
    data = {"request": request_, "reference": "a@" + "0" * 64, "digest": "0" * 64, "file": MANIFEST, "offset": offset}
    del data["digest" if request_ == "get_chunk" else "reference"]
    with pytest.raises(RequestError, match=f"offset: Input should be {allowed}"):
        parse_request(TypeAdapter(ControllerRequest), json.dumps(data).encode())


def test_upload_out_of_order_is_refused(client: Client, small_bundle: Bundle) -> None:
    digest = small_bundle.digest
    with pytest.raises(RequestFailedError, match=r"begins with manifest\.json"):
        client.exchange(PutChunk(digest=digest, file="policy.onnx"), b"x")
    client.exchange(PutChunk(digest=digest, file="manifest.json"), small_bundle.files[MANIFEST])
    with pytest.raises(RequestFailedError, match="next offset is not 100"):
        client.exchange(PutChunk(digest=digest, file="policy.onnx", offset=100), b"x")
    with pytest.raises(RequestFailedError, match="larger than"):
        client.exchange(PutChunk(digest=digest, file="reference.npz"), bytes(1_000_000))
    with pytest.raises(RequestFailedError, match="is missing"):
        client.request(PutDone(digest=digest))
    with pytest.raises(RequestFailedError, match="nothing was uploaded"):
        client.request(PutDone(digest=digest))
