from __future__ import annotations

import socket

import pytest

from nncontrol_prune.transport.network import PORT_OFFSETS, Network


def free_port() -> int:
    """Return the first of five consecutive ports that are free."""
    for port in range(21_000, 60_000, 10):
        try:
            for offset in PORT_OFFSETS.values():
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        return port
    raise AssertionError("no free ports")


@pytest.fixture
def network() -> Network:
    return Network(port=free_port())
