"""Sockets: where each process listens, and who may speak to it.

Everything listens on loopback. Anything else needs CURVE keys, so that nobody who merely reaches the port can
command a robot: `nncontrol-prune keys DIRECTORY` makes them.
"""

from __future__ import annotations

import ipaddress
import os
import struct
from pathlib import Path
from typing import Annotated, Literal

import zmq
import zmq.auth
from pydantic import Field
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85

from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.runtime.scheduling import real_time_granted

Service = Literal["state", "command", "plant", "controller", "pruning"]
PORT_OFFSETS: dict[Service, int] = {"state": 0, "command": 1, "plant": 2, "controller": 3, "pruning": 4}
"""`state` and `command` are the streams of the loop; the others answer requests."""

DEFAULT_PORT = 5550
LOOPBACK = "127.0.0.1"
KEY_BYTES = 32
MAX_MESSAGE_BYTES = 4 * 1024 * 1024


class TransportError(Exception):
    """Nobody answers, or a socket cannot be had; the message says which and what to do."""


class Network(Spec):
    """Where the processes of one setup find each other.

    Attributes:
        port: The first of five consecutive TCP ports.
        host: Address to listen on and to connect to.
        keys: Directory with CURVE keys; needed unless the host is loopback.
    """

    port: Annotated[int, Field(ge=1024, le=65_530)] = DEFAULT_PORT
    host: str = LOOPBACK
    keys: Path | None = None

    def endpoint(self, service: Service) -> str:
        """Return where a service is, as ZeroMQ wants it."""
        host, port = self.address(service)
        return f"tcp://[{host}]:{port}" if _is_ipv6(host) else f"tcp://{host}:{port}"

    def address(self, service: Service) -> tuple[str, int]:
        """Return host and port of a service."""
        return self.host, self.port + PORT_OFFSETS[service]

    def real_time_context(self, priority: int) -> zmq.Context[zmq.Socket[bytes]]:
        """Return a context whose own thread hands on messages in real time, where the operating system grants it."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        # Asked beforehand: libzmq aborts the process if it lacks the right.
        if real_time_granted(priority):
            context.set(zmq.THREAD_SCHED_POLICY, os.SCHED_FIFO)
            context.set(zmq.THREAD_PRIORITY, priority)
        return context

    def bind(self, context: zmq.Context[zmq.Socket[bytes]], service: Service, kind: int) -> zmq.Socket[bytes]:
        """Open a socket that listens.

        Raises:
            TransportError: The port is taken, or the address is not loopback and there are no keys.
        """
        if self.keys is None and not is_loopback(self.host):
            raise TransportError(
                f"listening on {self.host} lets others in, so it needs CURVE keys: make them with "
                f"`nncontrol-prune keys DIRECTORY` and give --keys DIRECTORY on both machines"
            )
        socket = self._open(context, kind)
        if self.keys is not None:
            public, secret = _certificate(self.keys, "server", secret=True)
            socket.curve_publickey, socket.curve_secretkey = public, secret
            socket.curve_server = True
        try:
            socket.bind(self.endpoint(service))
        except zmq.ZMQError as error:
            socket.close()
            if error.errno == zmq.EADDRINUSE:
                raise TransportError(
                    f"port {self.port + PORT_OFFSETS[service]} is taken, probably by another simulation; "
                    f"end that one, or choose other ports with --port"
                ) from error
            raise TransportError(f"cannot listen on {self.endpoint(service)}: {error}") from error
        return socket

    def connect(self, context: zmq.Context[zmq.Socket[bytes]], service: Service, kind: int) -> zmq.Socket[bytes]:
        """Open a socket that connects to a service, now or when it appears."""
        socket = self._open(context, kind)
        if self.keys is not None:
            socket.curve_serverkey, _ = _certificate(self.keys, "server", secret=False)
            socket.curve_publickey, socket.curve_secretkey = _certificate(self.keys, "client", secret=True)
        socket.connect(self.endpoint(service))
        return socket

    def _open(self, context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
        socket = context.socket(kind)
        socket.linger = 0
        socket.ipv6 = _is_ipv6(self.host)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        return socket

    def authenticate(self, context: zmq.Context[zmq.Socket[bytes]]) -> ThreadAuthenticator | None:
        """Admit only the holder of the client key to the sockets of a context; stop the result in the end.

        Raises:
            TransportError: There is no client's key.
        """
        if self.keys is None:
            return None
        if not list((self.keys / "clients").glob("*.key")):
            raise TransportError(
                f"{self.keys / 'clients'} holds no client's key, so nobody could connect; who listens needs all of the "
                "directory that `nncontrol-prune keys DIRECTORY` makes"
            )
        authenticator = ThreadAuthenticator(context)
        authenticator.start()
        authenticator.configure_curve(domain="*", location=str(self.keys / "clients"))
        return authenticator


def is_loopback(host: str) -> bool:
    """Return whether an address is this machine's loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_ipv6(host: str) -> bool:
    return ":" in host


def make_keys(directory: Path) -> None:
    """Make the key pairs of server and client in a new directory.

    Raises:
        TransportError: The directory exists already; keys are never overwritten.
    """
    if directory.exists():
        raise TransportError(f"{directory} exists already; keys are never overwritten")
    clients = directory / "clients"
    clients.mkdir(parents=True, mode=0o700)
    directory.chmod(0o700)
    for name in ("server", "client"):
        zmq.auth.create_certificates(directory, name)
        (directory / f"{name}.key_secret").chmod(0o600)
    (clients / "client.key").write_bytes((directory / "client.key").read_bytes())


def _certificate(keys: Path, name: str, *, secret: bool) -> tuple[bytes, bytes | None]:
    path = keys / f"{name}.key{'_secret' if secret else ''}"
    try:
        public, private = zmq.auth.load_certificate(path)
        if len(z85.decode(public)) != KEY_BYTES or (secret and zmq.curve_public(private or b"") != public):
            raise ValueError("the keys do not go together")
    except (OSError, ValueError, KeyError, struct.error, zmq.ZMQError) as error:
        what = f"a file with a {'secret' if secret else 'public'} key"
        raise TransportError(f"{path} is not {what}; make keys with `nncontrol-prune keys DIRECTORY`") from error
    return public, private
