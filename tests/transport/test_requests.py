from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import zmq
from pydantic import TypeAdapter

from nncontrol_prune.transport.messages import Pause, PlantRequest, Reset, Status
from nncontrol_prune.transport.network import Network, TransportError
from nncontrol_prune.transport.requests import (
    LONGEST_REST,
    SHORTEST_REST,
    Client,
    RequestFailedError,
    RequestServer,
    answers,
)


class KnownError(Exception):
    pass


def status(_: Status) -> dict[str, Any]:
    return {"fine": True}


def refuse(_: Reset) -> dict[str, Any]:
    raise KnownError("not now")


def break_down(_: Pause) -> dict[str, Any]:
    raise ZeroDivisionError("oops")


@pytest.fixture
def server(network: Network):
    handlers = {Status: answers(status), Reset: answers(refuse), Pause: answers(break_down)}
    server = RequestServer(network, "plant", TypeAdapter(PlantRequest), handlers, errors=(KnownError,))
    server.start()
    yield server
    server.close()


def raw(network: Network, *frames: bytes) -> dict[str, Any]:
    """Send bytes as they are and return the reply."""
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.connect(network.endpoint("plant"))
        socket.send_multipart(frames)
        assert socket.poll(3000)
        return json.loads(socket.recv_multipart()[0])


@pytest.mark.usefixtures("server")
def test_message_of_more_frames_than_a_request_and_its_payload_gets_an_error(network: Network) -> None:
    reply = raw(network, b'{"request": "status"}', b"payload", b"more")
    assert (reply["ok"], reply["error"]) == (False, "a message has two frames at the most, and this one has 3")


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", None),
        (b"\xff\x00", None),
        (b"[1, 2]", None),
        (b"[" * 3_000_000, None),
        (b'{"request": "explode"}', None),
        (b'{"request": "pause"}', "paused"),
        (b'{"request": "pause", "paused": "perhaps"}', "paused"),
        (b'{"request": "status", "colour": "red"}', "colour"),
    ],
)
def test_request_that_does_not_parse_gets_an_error_and_nothing_breaks(
    network: Network, data: bytes, field: str | None
) -> None:
    reply = raw(network, data)
    assert not reply["ok"]
    assert reply["error"]
    if field is not None:
        assert reply["field"] == field
        assert field in reply["error"]
    with Client(network, "plant") as client:
        assert client.request(Status()) == {"fine": True}


@pytest.mark.usefixtures("server")
def test_error_of_a_handler_is_the_answer(network: Network) -> None:
    with Client(network, "plant") as client:
        with pytest.raises(RequestFailedError, match="^not now$"):
            client.request(Reset())
        with pytest.raises(RequestFailedError, match="internal error: ZeroDivisionError: oops"):
            client.request(Pause(paused=True))
        assert client.request(Status()) == {"fine": True}


def test_nobody_there_is_said_and_the_client_recovers(network: Network) -> None:
    with Client(network, "plant", timeout=0.3) as client:
        with pytest.raises(TransportError, match=r"no answer from the plant process.* or `run` running there"):
            client.request(Status())
        handlers = {Status: answers(status)}
        server = RequestServer(network, "plant", TypeAdapter(PlantRequest), handlers, errors=())
        server.start()
        try:
            assert client.request(Status()) == {"fine": True}
        finally:
            server.close()


def test_fault_between_requests_is_printed_once_and_requests_are_answered(
    network: Network, capfd: pytest.CaptureFixture[str]
) -> None:
    calls = 0

    def break_down() -> None:
        nonlocal calls
        calls += 1
        raise ZeroDivisionError("oops")

    handlers = {Status: answers(status)}
    server = RequestServer(network, "plant", TypeAdapter(PlantRequest), handlers, errors=(), between=break_down)
    server.start()
    with Client(network, "plant") as client:
        for _ in range(5):
            assert client.request(Status()) == {"fine": True}
    server.close()
    assert calls >= 5
    assert capfd.readouterr().err.count("Traceback") == 1


def test_flood_of_requests_leaves_most_of_the_time_to_others(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    sleep = time.sleep

    def rest(seconds: float) -> None:
        rests.append(seconds)
        sleep(seconds)

    times = [0.02, 0.05]

    def take_long(_: Reset) -> dict[str, Any]:
        end = time.thread_time() + times.pop(0)
        while time.thread_time() < end:
            pass
        return {}

    handlers = {Status: answers(status), Reset: answers(take_long)}
    server = RequestServer(network, "plant", TypeAdapter(PlantRequest), handlers, errors=())
    monkeypatch.setattr("nncontrol_prune.transport.requests.time.sleep", rest)
    server.start()
    with Client(network, "plant") as client:
        for _ in range(3):
            client.request(Status())
        for _ in range(2):
            client.request(Reset())
    server.close()
    assert len(rests) == 5, "one after each answer"
    assert min(rests) >= SHORTEST_REST
    assert 0.08 <= rests[3] <= LONGEST_REST, "longer than the answer took"
    assert rests[4] == LONGEST_REST, "and not as long as four times that"


@pytest.mark.usefixtures("server")
def test_another_process_of_ours_at_the_port_is_noticed(network: Network) -> None:
    off_by_one = network.model_copy(update={"port": network.port - 1})
    message = "the plant process answers at .*, where the controller process should be; is the port"
    with Client(off_by_one, "controller") as client, pytest.raises(TransportError, match=message):
        client.request(Status())


@contextmanager
def stranger(network: Network, answer: bytes) -> Iterator[None]:
    """Answer one request at the plant's port, whatever it is."""
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        socket.linger = 0
        socket.bind(network.endpoint("plant"))

        def serve() -> None:
            socket.recv_multipart()
            socket.send(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize("answer", [b"hello", b"{}", b'{"ok": "perhaps"}'])
def test_answer_of_something_else_is_told(network: Network, answer: bytes) -> None:
    with (
        stranger(network, answer),
        Client(network, "plant") as client,
        pytest.raises(TransportError, match="no process of ours answers at"),
    ):
        client.request(Status())


def test_answer_of_an_older_version_which_does_not_say_who_it_is_is_taken(network: Network) -> None:
    with stranger(network, b'{"ok": true, "result": {"fine": true}}'), Client(network, "plant") as client:
        assert client.request(Status()) == {"fine": True}


@pytest.mark.usefixtures("server")
def test_request_that_nobody_takes_is_not_waited_for_for_ever(network: Network) -> None:
    with Client(network, "plant", timeout=0.2) as client:
        assert client.request(Status()) == {"fine": True}
        assert client._socket is not None
        client._socket.disconnect(network.endpoint("plant"))  # as ZeroMQ does when a handshake fails
        with pytest.raises(TransportError, match="no answer .* within 0.2 s"):
            client.request(Status())
        assert client.request(Status()) == {"fine": True}


@pytest.mark.usefixtures("server")
def test_client_that_leaves_before_its_answer_disturbs_nobody(network: Network) -> None:
    for _ in range(5):
        with zmq.Context() as context, context.socket(zmq.REQ) as socket:
            socket.linger = 0
            socket.connect(network.endpoint("plant"))
            socket.send(b'{"request": "status"}')
    assert raw(network, b'{"request": "status"}')["ok"]


def test_file_whose_name_is_no_text_does_not_end_the_answering(network: Network) -> None:
    def tell(_: Status) -> dict[str, Any]:
        return {"bag": "bags/f\udcfcnf"}

    def fail(_: Reset) -> dict[str, Any]:
        raise KnownError("bags/f\udcfcnf is no bag")

    server = RequestServer(
        network, "plant", TypeAdapter(PlantRequest), {Status: answers(tell), Reset: answers(fail)}, errors=(KnownError,)
    )
    server.start()
    try:
        with Client(network, "plant", timeout=2.0) as client:
            for _ in range(2):
                assert client.request(Status()) == {"bag": r"bags/f\udcfcnf"}
                with pytest.raises(RequestFailedError, match=r"bags/f\\udcfcnf is no bag"):
                    client.request(Reset())
    finally:
        server.close()


def test_name_that_no_host_can_have_is_refused(network: Network) -> None:
    with (
        Client(network.model_copy(update={"host": "robot..local"}), "plant") as client,
        pytest.raises(TransportError, match=r"no answer from the plant process at .*robot\.\.local"),
    ):
        client.request(Status())
