"""Answering requests, and making them."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import zmq
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from zmq.auth.thread import ThreadAuthenticator

from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.transport.messages import Reply, RequestError, parse_request
from nncontrol_prune.transport.network import Network, Service, TransportError

Handler = Callable[[Any, bytes], tuple[dict[str, Any], bytes]]
"""Takes a parsed request and its payload; returns the result and a payload."""

POLL_MILLISECONDS = 50

REST, SHORTEST_REST, LONGEST_REST = 4.0, 0.002, 0.1
"""How long no request is answered after one was: as a multiple of the processor time that took, and in seconds at least
and most."""

Request = TypeVar("Request", bound=Spec)


def answers(function: Callable[[Request], dict[str, Any]]) -> Handler:
    """Make a handler of a function that neither takes nor returns a payload."""
    return lambda request, _: (function(request), b"")


class RequestServer:
    """Answers the requests to one process, one after the other, in a thread of its own.

    A request that does not parse, or that cannot be carried out, gets an error; nothing that arrives ends the thread.

    Args:
        network: Where to listen.
        service: As what.
        requests: Parses the requests.
        handlers: What to do, by the class of the request.
        errors: Exceptions of handlers that are answers to the user; others are reported as faults of ours.
        between: Called between requests, at least every 50 ms.

    Raises:
        TransportError: The port is taken, or keys are missing.
    """

    def __init__(
        self,
        network: Network,
        service: Service,
        requests: TypeAdapter[Any],
        handlers: Mapping[type[Spec], Handler],
        *,
        errors: tuple[type[Exception], ...],
        between: Callable[[], object] = lambda: None,
    ) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authenticator: ThreadAuthenticator | None = None
        try:
            self._authenticator = network.authenticate(self._context)
            self._socket = network.bind(self._context, service, zmq.REP)
        except TransportError:
            self._end_context()
            raise
        self._service = service
        self._requests = requests
        self._handlers = handlers
        self._errors = errors
        self._between = between
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"{service} requests", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering, and free the port."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()
        self._end_context()

    def _end_context(self) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(linger=0)

    def _serve(self) -> None:
        told = ""
        while not self._stop.is_set():
            try:
                self._between()
            except Exception as error:  # what runs between requests may not end the answering of requests
                if repr(error) != told:  # once, and not 20 times a second
                    told = repr(error)
                    traceback.print_exc(file=sys.stderr)
            if not self._socket.poll(POLL_MILLISECONDS):
                continue
            began = time.thread_time()
            frames = self._socket.recv_multipart()
            reply, payload = self._answer(*frames)
            self._socket.send_multipart([self._encoded(reply), payload])
            # The loop runs in the same interpreter, and whoever asks as fast as he can must not keep it from that: this
            # thread has no real-time priority, so other work may take the processor from it while it has the lock.
            time.sleep(min(max(SHORTEST_REST, REST * (time.thread_time() - began)), LONGEST_REST))

    def _answer(self, data: bytes, payload: bytes = b"", *more: bytes) -> tuple[Reply, bytes]:
        if more:
            return Reply(ok=False, error=f"a message has two frames at the most, and this one has {2 + len(more)}"), b""
        try:
            request = parse_request(self._requests, data)
            result, attached = self._handlers[type(request)](request, payload)
        except RequestError as error:
            return Reply(ok=False, error=str(error), field=error.field), b""
        except self._errors as error:
            return Reply(ok=False, error=str(error)), b""
        except Exception as error:  # a fault of ours must not take the process down with it
            traceback.print_exc(file=sys.stderr)
            return Reply(ok=False, error=f"internal error: {type(error).__name__}: {error}"), b""
        return Reply(ok=True, result=result), attached

    def _encoded(self, reply: Reply) -> bytes:
        """Return a reply as JSON, with escapes for what is no text, as parts of a file's name may be."""
        reply.service = self._service
        try:
            return reply.model_dump_json().encode()
        except PydanticSerializationError:
            told = json.dumps(reply.model_dump(mode="json"), ensure_ascii=False)
            # The backslash is escaped itself: JSON has no way to say what these escapes stand for.
            return re.sub("[\ud800-\udfff]", lambda found: rf"\\u{ord(found[0]):x}", told).encode()


class RequestFailedError(Exception):
    """The other side answered with an error."""


class Client:
    """Makes requests to one process.

    Args:
        network: Where it is.
        service: Which.
        timeout: How long to wait for an answer, in seconds.
    """

    def __init__(self, network: Network, service: Service, *, timeout: float = 5.0) -> None:
        self._network = network
        self._service = service
        self._timeout = timeout
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the socket."""
        self._drop_socket()
        self._context.destroy(linger=0)

    def request(self, request: Spec) -> dict[str, Any]:
        """Make a request and return its result; see `exchange`."""
        result, _ = self.exchange(request)
        return result

    def exchange(self, request: Spec, payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Make a request, with a payload, and return its result and payload.

        Raises:
            TransportError: There is no answer, or it is another process's.
            RequestFailedError: The answer is an error.
        """
        if self._socket is None:
            self._check_listening()
            self._socket = self._network.connect(self._context, self._service, zmq.REQ)
            self._socket.sndtimeo = int(1000 * self._timeout)
        try:
            self._socket.send_multipart([request.model_dump_json().encode(), payload])
            answered = bool(self._socket.poll(int(1000 * self._timeout)))
        except zmq.Again:  # whoever listens has closed the connection, which he does over wrong keys
            answered = False
        if not answered:
            # A REQ socket without its answer is of no further use.
            self._drop_socket()
            keys = self._network.keys
            raise self._no_answer(
                f"within {self._timeout:g} s, though somebody listens; is it busy, or "
                + ("does it want keys (--keys)?" if keys is None else f"are the keys in {keys} not its own?")
            )
        frames = self._socket.recv_multipart()
        try:
            reply = Reply.model_validate_json(frames[0])
        except ValidationError as error:
            raise self._another("something that is no process of ours") from error
        if reply.service not in (None, self._service):  # an older version does not say who it is
            raise self._another(f"the {reply.service} process")
        if not reply.ok:
            raise RequestFailedError(reply.error or "the request failed without a reason")
        return reply.result, frames[1] if len(frames) > 1 else b""

    def _check_listening(self) -> None:
        """Find out at once that nobody listens; ZeroMQ itself would wait for somebody to come."""
        try:
            socket.create_connection(self._network.address(self._service), self._timeout).close()
        except (OSError, UnicodeError) as error:  # the latter of a name that no host can have
            reason = getattr(error, "strerror", None) or error
            detail = f"({reason}); is `nncontrol-prune sim` or `run` running there?"
            raise self._no_answer(detail) from error

    def _no_answer(self, detail: str) -> TransportError:
        return TransportError(
            f"no answer from the {self._service} process at {self._network.endpoint(self._service)} {detail}"
        )

    def _another(self, who: str) -> TransportError:
        return TransportError(
            f"{who} answers at {self._network.endpoint(self._service)}, where the {self._service} process should be; "
            "is the port (--port) the simulation's?"
        )

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
