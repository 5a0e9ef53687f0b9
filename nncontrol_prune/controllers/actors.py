"""Actors out of other libraries' tensors: linear layers in a row, that fit the environment, become an `mlp`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nncontrol_prune.controllers.errors import ImportFailedError, refusing
from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.controllers.specs import ActionSpec, Activation, MlpArchitecture, Squash
from nncontrol_prune.controllers.vecnormalize import Statistics

Layers = Sequence[tuple[Tensor, Tensor]]
"""Weight (outputs, inputs) and bias (outputs,) of each layer, in the order they are run."""


def check_sizes(layers: Layers, observation_size: int, action: ActionSpec) -> None:
    """Check that layers take an environment's observation and give out its action.

    Raises:
        ImportFailedError: They do not.
    """
    check_numbers(layers[0][0].shape[1], layers[-1][0].shape[0], observation_size, action)


def check_numbers(observed: int, commanded: int, observation_size: int, action: ActionSpec) -> None:
    """Check that what a policy observes and commands are as many numbers as an environment's.

    Raises:
        ImportFailedError: They are not.
    """
    for what, found, expected in (
        ("observes", observed, observation_size),
        ("commands", commanded, action.size),
    ):
        if found != expected:
            raise ImportFailedError(
                f"it {what} {found} numbers, the environment has {expected}; name the environment it was trained in"
            )


def mlp_of(
    layers: Layers,
    statistics: Statistics,
    action: ActionSpec,
    *,
    activation: Activation,
    squash: Squash,
) -> Mlp:
    """Return the layers as a controller.

    Args:
        layers: Sizes and values that fit, see `check_sizes`.
        statistics: What the observation is normalized with.
        action: The environment's action vector.
        activation: Of the hidden layers.
        squash: `clip` where the last layer gives out the action, in its own units; `tanh` where it gives out what is
            squashed and then scaled to the action's limits.

    Raises:
        ImportFailedError: They make no `mlp` controller.
    """
    with refusing("its layers make no mlp controller"):
        architecture = MlpArchitecture(
            hidden=tuple(int(weight.shape[0]) for weight, _ in layers[:-1]),
            activation=activation,
            squash=squash,
            observation_clip=statistics.clip,
        )
    if squash == "clip":
        # The action is in its own units and clipped to its limits; ours is clipped to ±1 and then scaled.
        weight, bias = (tensor.to(torch.float64) for tensor in layers[-1])
        lower, upper = torch.tensor([action.lower, action.upper], dtype=torch.float64)
        center, half_range = (upper + lower) / 2, (upper - lower) / 2
        layers = [*layers[:-1], (weight / half_range[:, None], (bias - center) / half_range)]
    module = Mlp.for_action(architecture, len(statistics.mean), action)
    tensors = module.state_dict()
    tensors["normalizer.mean"] = torch.from_numpy(statistics.mean)
    tensors["normalizer.inverse_std"] = torch.from_numpy(statistics.inverse_std)
    for index, (weight, bias) in enumerate(layers):
        tensors[f"layers.{index}.weight"], tensors[f"layers.{index}.bias"] = weight, bias
    module.load_state_dict(tensors)
    return module.eval()
