"""Controllers as torch modules, of any architecture: built, asked, and exported."""

from __future__ import annotations

import io
import warnings
from typing import TypeAlias

import torch
from torch import Tensor, nn

from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.controllers.specs import MlpArchitecture, TdMpcArchitecture
from nncontrol_prune.controllers.tdmpc import TdMpc

ControllerModule: TypeAlias = Mlp | TdMpc


def build_module(
    architecture: MlpArchitecture | TdMpcArchitecture, observation_size: int, action_size: int
) -> ControllerModule:
    """Return a module with random weights."""
    kind = TdMpc if isinstance(architecture, TdMpcArchitecture) else Mlp
    return kind(architecture, observation_size, action_size)  # type: ignore[arg-type]


@torch.no_grad()
def first_actions(module: ControllerModule, observations: Tensor) -> Tensor:
    """Return the actions (batch, m) for observations (batch, n), a planner's as from a fresh start."""
    inputs = _example_inputs(module, observations)
    outputs = module(*inputs)
    actions: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
    return actions


def export_onnx(module: ControllerModule, observation_size: int) -> bytes:
    """Return a controller as an ONNX model, the batch being free; policy.py has its inputs and outputs."""
    planner = isinstance(module, TdMpc)
    inputs = ["observation", *(["plan"] if planner else [])]
    outputs = ["action", *(["next_plan"] if planner else [])]
    buffer = io.BytesIO()
    training = module.training
    module.eval()
    with warnings.catch_warnings():
        # The newer exporter needs onnxscript and takes seconds; for these networks both give the same graph.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", torch.jit._trace.TracerWarning)
        torch.onnx.export(
            module,
            _example_inputs(module, torch.zeros(1, observation_size)),
            buffer,  # type: ignore[arg-type]  # its annotation forgets the buffers its documentation allows
            dynamo=False,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in (*inputs, *outputs)},
        )
    module.train(training)
    return buffer.getvalue()


def _example_inputs(module: nn.Module, observations: Tensor) -> tuple[Tensor, ...]:
    if isinstance(module, TdMpc):
        horizon = module.architecture.planner.horizon
        return observations, torch.zeros(len(observations), horizon, module.action_size)
    return (observations,)
