"""A controller's network as it is deployed: `policy.onnx` through ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from nncontrol_prune.controllers.errors import BundleError
from nncontrol_prune.controllers.specs import POLICY


class OnnxPolicy:
    """Runs a policy on one thread, a tick at a time in preallocated buffers, or many observations at once.

    Args:
        model: The contents of `policy.onnx`: float32 `observation` (batch, n) to float32 `action` (batch, m).
        observation_size: n.
        action_size: m.

    Raises:
        BundleError: The model is no ONNX model that ONNX Runtime can load, or has other inputs or outputs.
    """

    def __init__(self, model: bytes, observation_size: int, action_size: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises a different class for every way a model can be wrong
            reason = str(error).splitlines()[0]
            raise BundleError(f"{POLICY} is not a model that ONNX Runtime can load: {reason}") from error
        expected = ([("observation", observation_size)], [("action", action_size)])
        found = tuple(
            [(value.name, value.shape[-1] if value.shape else 0) for value in values]
            for values in (self._session.get_inputs(), self._session.get_outputs())
        )
        if found != expected:
            raise BundleError(
                f"{POLICY} maps {found[0]} to {found[1]}, the manifest says {expected[0]} to {expected[1]}"
            )
        self._observation = np.zeros((1, observation_size), dtype=np.float32)
        self._action = np.zeros((1, action_size), dtype=np.float32)
        self._observation_row, self._action_row = self._observation[0], self._action[0]
        binding = self._session.io_binding()
        for bind, name, array in (
            (binding.bind_input, "observation", self._observation),
            (binding.bind_output, "action", self._action),
        ):
            bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        self._binding = binding

    def act(self, observation: NDArray[np.float64], action: NDArray[np.float64]) -> None:
        """Compute the action (m,) for one observation (n,), in place; both in the plant's units."""
        self._observation_row[:] = observation
        self._session.run_with_iobinding(self._binding)
        action[:] = self._action_row

    def batch(self, observations: ArrayLike) -> NDArray[np.float32]:
        """Return the actions (batch, m) for observations (batch, n); row by row the same bits as `act`."""
        (actions,) = self._session.run(None, {"observation": np.asarray(observations, dtype=np.float32)})
        return np.asarray(actions, dtype=np.float32)
