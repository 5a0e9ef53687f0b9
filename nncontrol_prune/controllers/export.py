"""From torch modules to ONNX."""

from __future__ import annotations

import io
import warnings

import torch
from torch import nn


def export_onnx(module: nn.Module, observation_size: int) -> bytes:
    """Return `module` as an ONNX model from `observation` (batch, n) to `action` (batch, m), batch being free."""
    buffer = io.BytesIO()
    training = module.training
    module.eval()
    with warnings.catch_warnings():
        # The newer exporter needs onnxscript and takes seconds; for these networks both give the same graph.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        torch.onnx.export(
            module,
            (torch.zeros(1, observation_size),),
            buffer,  # type: ignore[arg-type]  # its annotation forgets the buffers its documentation allows
            dynamo=False,
            input_names=["observation"],
            output_names=["action"],
            dynamic_axes={"observation": {0: "batch"}, "action": {0: "batch"}},
        )
    module.train(training)
    return buffer.getvalue()
