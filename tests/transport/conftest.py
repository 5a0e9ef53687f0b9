from __future__ import annotations

import pytest

from nncontrol_prune.transport.network import Network


@pytest.fixture
def network(port: int) -> Network:
    """Ports that are free."""
    return Network(port=port)
