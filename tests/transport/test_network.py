from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
from pydantic import TypeAdapter

from nncontrol_prune.transport.messages import PlantRequest, Status
from nncontrol_prune.transport.network import MAX_MESSAGE_BYTES, Network, TransportError, is_loopback, make_keys
from nncontrol_prune.transport.requests import Client, RequestServer, answers


def serve(network: Network) -> RequestServer:
    handlers = {Status: answers(lambda _: {"fine": True})}
    server = RequestServer(network, "plant", TypeAdapter(PlantRequest), handlers, errors=())
    server.start()
    return server


@pytest.mark.parametrize("keys", [False, True])
def test_taken_port_is_named_and_nothing_is_left_behind(network: Network, tmp_path: Path, keys: bool) -> None:
    if keys:
        make_keys(tmp_path / "keys")
        network = network.model_copy(update={"keys": tmp_path / "keys"})
    server = serve(network)
    threads = threading.enumerate()
    try:
        with pytest.raises(TransportError, match=rf"port {network.port + 2} is taken.*--port"):
            serve(network)
        assert threading.enumerate() == threads
    finally:
        server.close()


def test_sockets_take_no_message_that_would_fill_the_memory_and_end_at_once(network: Network) -> None:
    context = zmq.Context()
    for open_socket in (network.bind, network.connect):
        opened = open_socket(context, "plant", zmq.REP)
        assert (opened.maxmsgsize, opened.linger) == (MAX_MESSAGE_BYTES, 0)
    context.destroy()


def test_address_of_the_sixth_version_stands_in_brackets() -> None:
    assert Network(port=5550, host="::1").endpoint("controller") == "tcp://[::1]:5553"


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_loopback_by_another_name_works(network: Network, host: str) -> None:
    if host == "::1" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    other = network.model_copy(update={"host": host})
    server = serve(other)
    try:
        with Client(other, "plant") as client:
            assert client.request(Status()) == {"fine": True}
    finally:
        server.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "robot.local"])
def test_anything_but_loopback_needs_keys(network: Network, host: str) -> None:
    open_network = network.model_copy(update={"host": host})
    with pytest.raises(TransportError, match=f"listening on {host}.*CURVE keys.*nncontrol-prune keys"):
        open_network.bind(zmq.Context.instance(), "plant", zmq.REP)


def test_loopback_is_recognized() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.5.5.5", "::1", "localhost", "10.0.0.1")] == [
        True,
        True,
        True,
        True,
        False,
    ]


def test_with_keys_only_their_holder_gets_an_answer(network: Network, tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    make_keys(tmp_path / "other")
    # A stranger who knows the server's public key, but has a client key of his own.
    (tmp_path / "other" / "server.key").write_bytes((tmp_path / "keys" / "server.key").read_bytes())
    server = serve(network.model_copy(update={"keys": tmp_path / "keys"}))
    try:
        with Client(network.model_copy(update={"keys": tmp_path / "keys"}), "plant") as friend:
            assert friend.request(Status()) == {"fine": True}
        for stranger, hint in (
            (network, r"does it want keys \(--keys\)\?"),
            (network.model_copy(update={"keys": tmp_path / "other"}), "are the keys in .*other not its own"),
        ):
            with (
                Client(stranger, "plant", timeout=0.5) as client,
                pytest.raises(TransportError, match=f"no answer.*{hint}"),
            ):
                client.request(Status())
    finally:
        server.close()


@pytest.mark.parametrize(
    "content",
    [
        lambda keys: (keys / "server.key").read_text(),
        lambda keys: (keys / "client.key_secret").read_text()[:-5],
        lambda keys: (keys / "server.key_secret").read_text().replace('secret-key = "', "#"),
        lambda keys: (keys / "server.key_secret").read_text().replace('key = "', 'key = "#####'),
        lambda _: "no key",
    ],
)
def test_file_without_a_pair_of_keys_is_named(network: Network, tmp_path: Path, content: Callable[[Path], str]) -> None:
    keys = tmp_path / "keys"
    make_keys(keys)
    (keys / "server.key_secret").write_text(content(keys))
    with pytest.raises(TransportError, match="keys/server.key_secret is not a file with a secret key; make keys with"):
        serve(network.model_copy(update={"keys": keys}))


def test_server_key_that_is_none_is_named_to_the_client(network: Network, tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    server = serve(network.model_copy(update={"keys": tmp_path / "keys"}))
    path = tmp_path / "keys" / "server.key"
    path.write_text(path.read_text().rstrip()[:-3] + '~~"')
    try:
        with (
            Client(network.model_copy(update={"keys": tmp_path / "keys"}), "plant") as client,
            pytest.raises(TransportError, match=r"server\.key is not a file with a public key"),
        ):
            client.request(Status())
    finally:
        server.close()


def test_nobody_is_listened_to_without_the_key_of_any_client(network: Network, tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    (tmp_path / "keys" / "clients" / "client.key").unlink()
    with pytest.raises(TransportError, match=r"clients holds no client's key, so nobody could connect"):
        serve(network.model_copy(update={"keys": tmp_path / "keys"}))


def test_two_files_are_enough_for_the_other_machine(network: Network, tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    (tmp_path / "there").mkdir()
    for name in ("server.key", "client.key_secret"):
        (tmp_path / "there" / name).write_bytes((tmp_path / "keys" / name).read_bytes())
    server = serve(network.model_copy(update={"keys": tmp_path / "keys"}))
    try:
        with Client(network.model_copy(update={"keys": tmp_path / "there"}), "plant") as client:
            assert client.request(Status()) == {"fine": True}
    finally:
        server.close()


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    assert (tmp_path / "keys").stat().st_mode & 0o077 == 0
    assert (tmp_path / "keys" / "server.key_secret").stat().st_mode & 0o077 == 0
    with pytest.raises(TransportError, match="never overwritten"):
        make_keys(tmp_path / "keys")


def test_missing_keys_are_named(network: Network, tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="server.key_secret is not a file with a secret key"):
        network.model_copy(update={"keys": tmp_path}).bind(zmq.Context.instance(), "plant", zmq.REP)
