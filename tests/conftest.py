"""Small controllers that tests share."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from nncontrol_prune.controllers.bundle import Bundle, load_bundle, make_bundle
from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.controllers.observations import ObservationSpec, ObservationTerm
from nncontrol_prune.controllers.specs import ActionSpec, MlpArchitecture, Provenance
from nncontrol_prune.controllers.verdict import Criterion, EpisodeSummary, Verdict
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.environments import environment_specs
from nncontrol_prune.resources import shipped_controllers
from nncontrol_prune.runtime.store import BundleStore
from nncontrol_prune.transport.network import PORT_OFFSETS
from nncontrol_prune.validation.evidence import Evidence, gather
from nncontrol_prune.validation.settings import GateSettings, RobustnessSettings
from tests.validation.changes import amplify, changed

os.environ.setdefault("MUJOCO_GL", "egl")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts into the background like that, and all that tests start would not hear of Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)

MakeBundle = Callable[..., Bundle]


@pytest.fixture(scope="session")
def make_cartpole_bundle() -> MakeBundle:
    """Return a function that makes a small cart-pole controller with random weights."""
    specs = environment_specs(CARTPOLE)

    def make(
        hidden: tuple[int, ...] = (16, 12), seed: int = 0, parent: Bundle | None = None, name: str = "small", **changes
    ) -> Bundle:
        torch.manual_seed(seed)
        module = Mlp.for_action(MlpArchitecture(hidden=hidden), specs.observation.size, specs.action)
        made = Provenance(rollouts="none", method="uniform", importance="l2", coefficients={}, sparsity=0.5)
        arguments = {
            "name": name,
            "observation": specs.observation,
            "action": specs.action,
            "rate": specs.rate,
            "reference_observations": np.random.default_rng(seed).normal(size=(300, specs.observation.size)),
            "parent": None if parent is None else parent.reference,
            "provenance": None if parent is None else made,
        }
        return make_bundle(module, **{**arguments, **changes})

    return make


@pytest.fixture(scope="session")
def small_bundle(make_cartpole_bundle: MakeBundle) -> Bundle:
    """A small cart-pole controller that controls nothing well."""
    return make_cartpole_bundle()


@pytest.fixture(scope="session")
def shipped_bundle() -> Bundle:
    """The controller that ships for the cart-pole."""
    return load_bundle(shipped_controllers()["cartpole_swingup_sac"])


@pytest.fixture(scope="session")
def pendulum() -> Bundle:
    """A double pendulum's actor, whose loop comes to rest."""
    return load_bundle(Path(__file__).resolve().parents[1] / "benchmarks" / "controllers" / "double_pendulum_sac")


@pytest.fixture(scope="session")
def wrong_way(shipped_bundle: Bundle) -> Bundle:
    """The cart-pole's controller, but that it pushes the wrong way."""
    return changed(shipped_bundle, amplify(-1.0))


@pytest.fixture(scope="session")
def wrong_way_evidence(wrong_way: Bundle, shipped_bundle: Bundle) -> Evidence:
    """What is shown of it beside the one that ships."""
    return gather(wrong_way, shipped_bundle, CARTPOLE, GateSettings(attraction_starts=36))


@pytest.fixture(scope="session")
def pendulum_evidence(pendulum: Bundle) -> Evidence:
    """What is shown of the double pendulum's actor beside itself."""
    return gather(pendulum, pendulum, "InvertedDoublePendulum-v5", GateSettings())


@pytest.fixture
def lenient_gate() -> GateSettings:
    """Asks for little, so that jobs are short where the verdict is not what is tested."""
    return GateSettings(
        robustness=RobustnessSettings(enabled=False),
        attraction_starts=0,
        min_episodes=20,
        max_episodes=40,
        success_margin=0.3,
        return_ratio=0.7,
    )


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    """An empty store."""
    return BundleStore(tmp_path / "store")


@pytest.fixture(scope="session")
def make_verdict() -> Callable[..., Verdict]:
    """Return a function that makes a verdict about a bundle."""

    def make(bundle: Bundle, *, accepted: bool = True, offline: bool = False) -> Verdict:
        summary = EpisodeSummary(controller=bundle.reference, episodes=1, successes=1, return_mean=1.0, return_std=0.0)
        return Verdict(
            candidate=bundle.reference,
            against=bundle.manifest.parent or "none",
            decision="accept" if accepted else "reject",
            criteria=(Criterion(name="test", outcome="passed" if accepted else "failed", reason="a test said so"),),
            environment=None if offline else CARTPOLE,
            thresholds={},
            seed=None if offline else 0,
            dense=None if offline else summary,
            pruned=None if offline else summary,
            created="2026-01-01T00:00:00+00:00",
        )

    return make


@pytest.fixture(scope="session")
def two_joint_specs() -> tuple[ObservationSpec, ActionSpec]:
    """An observation of three values and an action of two, with asymmetric limits."""
    observation = ObservationSpec(terms=(ObservationTerm(name="a", size=2), ObservationTerm(name="b", size=1)))
    return observation, ActionSpec(joints=("one", "two"), lower=(-1.0, 0.0), upper=(2.0, 5.0))


@pytest.fixture
def port() -> int:
    """The first of five consecutive ports that are free."""
    for first in range(21_000 + os.getpid() % 1000 * 10, 60_000, 10):
        try:
            for offset in PORT_OFFSETS.values():
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", first + offset))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")
