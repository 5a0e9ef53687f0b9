"""A controller's network as it is deployed: `policy.onnx` through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from nncontrol_prune.controllers.errors import BundleError
from nncontrol_prune.controllers.specs import POLICY, MlpArchitecture, TdMpcArchitecture

PLANS_AT_ONCE = 16
"""Observations that a planner is run on at once: memory grows with them times the plans that it tries."""


@contextmanager
def refusing_model(what: str) -> Iterator[None]:
    """Within the block, turn what ONNX Runtime raises, a different class for every way a model can be wrong.

    Raises:
        BundleError: It raised something; the message says `what` of the model, and why.
    """
    try:
        yield
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"{POLICY} {what}: {(str(error) or type(error).__name__).splitlines()[0]}") from error


class Policy(Protocol):
    """Computes actions from observations; both in the plant's units.

    What a planner carries from tick to tick changes with `advance` alone, so `act` may be called to try things out.
    """

    def act(self, observation: NDArray[np.float64], action: NDArray[np.float64]) -> None:
        """Compute the action (m,) for one observation (n,), in place."""
        ...

    def advance(self) -> None:
        """Go on to the next tick: what the last `act` computed was done."""
        ...

    def reset(self) -> None:
        """Forget what was carried from tick to tick, as at the start of an episode."""
        ...

    def take_over(self, previous: Policy) -> None:
        """Go on where another policy is, as far as the two have that in common."""
        ...

    def batch(self, observations: ArrayLike) -> NDArray[np.float32]:
        """Return the actions (batch, m) for observations (batch, n), each as after a reset."""
        ...


def load_policy(
    model: bytes, architecture: MlpArchitecture | TdMpcArchitecture, observation_size: int, action_size: int
) -> Policy:
    """Load `policy.onnx`, on one thread.

    Args:
        model: Its contents.
        architecture: The controller's.
        observation_size: n.
        action_size: m.

    Raises:
        BundleError: The model is no ONNX model that ONNX Runtime can load, or has other inputs or outputs.
    """
    if isinstance(architecture, TdMpcArchitecture):
        return PlannerPolicy(model, observation_size, action_size, architecture.planner.horizon)
    return OnnxPolicy(model, observation_size, action_size)


class OnnxPolicy:
    """Runs a policy without memory, a tick at a time in preallocated buffers, or many observations at once.

    Args:
        model: The contents of `policy.onnx`: float32 `observation` (batch, n) to float32 `action` (batch, m).
        observation_size: n.
        action_size: m.

    Raises:
        BundleError: The model is no ONNX model that ONNX Runtime can load, or has other inputs or outputs.
    """

    def __init__(self, model: bytes, observation_size: int, action_size: int) -> None:
        self._session = _session(model, {"observation": observation_size}, {"action": action_size})
        self._observation = np.zeros((1, observation_size), dtype=np.float32)
        self._action = np.zeros((1, action_size), dtype=np.float32)
        self._observation_row, self._action_row = self._observation[0], self._action[0]
        self._binding = _bound(self._session, {"observation": self._observation}, {"action": self._action})

    def act(self, observation: NDArray[np.float64], action: NDArray[np.float64]) -> None:
        """Compute the action (m,) for one observation (n,), in place; both in the plant's units."""
        self._observation_row[:] = observation
        self._session.run_with_iobinding(self._binding)
        action[:] = self._action_row

    def advance(self) -> None:
        """Do nothing: there is nothing to carry on."""

    def reset(self) -> None:
        """Do nothing: there is nothing to forget."""

    def take_over(self, previous: Policy) -> None:
        """Do nothing: there is nothing to go on from."""

    def batch(self, observations: ArrayLike) -> NDArray[np.float32]:
        """Return the actions (batch, m) for observations (batch, n); row by row the same bits as `act`."""
        (actions,) = self._session.run(None, {"observation": np.asarray(observations, dtype=np.float32)})
        return np.asarray(actions, dtype=np.float32)


class PlannerPolicy:
    """Runs a planner, which carries its plan from tick to tick.

    Args:
        model: The contents of `policy.onnx`: float32 `observation` (batch, n) and `plan` (batch, horizon, m) to float32
            `action` (batch, m) and `next_plan` (batch, horizon, m).
        observation_size: n.
        action_size: m.
        horizon: Steps of the plan.

    Raises:
        BundleError: The model is no ONNX model that ONNX Runtime can load, or has other inputs or outputs.
    """

    def __init__(self, model: bytes, observation_size: int, action_size: int, horizon: int) -> None:
        self._session = _session(
            model,
            {"observation": observation_size, "plan": action_size},
            {"action": action_size, "next_plan": action_size},
        )
        self._observation = np.zeros((1, observation_size), dtype=np.float32)
        self._action = np.zeros((1, action_size), dtype=np.float32)
        self._plan = np.zeros((1, horizon, action_size), dtype=np.float32)
        self._next_plan = np.zeros_like(self._plan)
        self._observation_row, self._action_row = self._observation[0], self._action[0]
        self._binding = _bound(
            self._session,
            {"observation": self._observation, "plan": self._plan},
            {"action": self._action, "next_plan": self._next_plan},
        )

    def act(self, observation: NDArray[np.float64], action: NDArray[np.float64]) -> None:
        """Plan from one observation (n,) on, and give out the first action (m,), in place."""
        self._observation_row[:] = observation
        self._session.run_with_iobinding(self._binding)
        action[:] = self._action_row

    def advance(self) -> None:
        """Make what was planned last the start of the next plan, unless an observation spoilt it."""
        if np.isfinite(self._next_plan).all():
            self._plan[:] = self._next_plan
        else:
            self._plan[:] = 0.0

    def reset(self) -> None:
        """Start the next plan from nothing."""
        self._plan[:] = 0.0
        self._next_plan[:] = 0.0

    def take_over(self, previous: Policy) -> None:
        """Start the next plan from another planner's, if it has the same shape, otherwise from nothing."""
        if isinstance(previous, PlannerPolicy) and previous._plan.shape == self._plan.shape:
            self._plan[:] = previous._plan
        else:
            self.reset()

    def batch(self, observations: ArrayLike) -> NDArray[np.float32]:
        """Return the first actions (batch, m) of plans from observations (batch, n), each started from nothing."""
        rows = np.asarray(observations, dtype=np.float32)
        fresh = np.zeros((PLANS_AT_ONCE, *self._plan.shape[1:]), dtype=np.float32)
        starts = range(0, len(rows), PLANS_AT_ONCE)
        parts = [rows[start : start + PLANS_AT_ONCE] for start in starts]
        return np.concatenate([self.batch_from(part, fresh[: len(part)])[0] for part in parts])

    def batch_from(
        self, observations: NDArray[np.float32], plans: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return actions (batch, m) and next plans for observations (batch, n) and plans (batch, horizon, m)."""
        actions, following = self._session.run(None, {"observation": observations, "plan": plans})
        return np.asarray(actions, dtype=np.float32), np.asarray(following, dtype=np.float32)


def _session(model: bytes, inputs: dict[str, int], outputs: dict[str, int]) -> onnxruntime.InferenceSession:
    """Make a session on one thread, and check the names and the last dimension of inputs and outputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with refusing_model("is not a model that ONNX Runtime can load"):
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found = tuple(
        [(value.name, value.shape[-1] if value.shape else 0) for value in values]
        for values in (session.get_inputs(), session.get_outputs())
    )
    expected = (list(inputs.items()), list(outputs.items()))
    if found != expected:
        raise BundleError(f"{POLICY} maps {found[0]} to {found[1]}, the manifest says {expected[0]} to {expected[1]}")
    return session


def _bound(
    session: onnxruntime.InferenceSession,
    inputs: dict[str, NDArray[np.float32]],
    outputs: dict[str, NDArray[np.float32]],
) -> onnxruntime.IOBinding:
    """Bind a session's inputs and outputs to arrays, so that a run allocates none."""
    binding = session.io_binding()
    for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, array in arrays.items():
            bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    return binding
