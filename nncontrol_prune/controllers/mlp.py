"""The `mlp` architecture as a torch module."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nncontrol_prune.controllers.specs import ActionSpec, Activation, MlpArchitecture

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "selu": nn.SELU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
}


class Normalizer(nn.Module):
    """`clip((observation - mean) * inverse_std, ±clip)`, with fixed statistics."""

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, size: int, clip: float | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("inverse_std", torch.ones(size))
        self.clip = clip

    def forward(self, observation: Tensor) -> Tensor:
        normalized = (observation - self.mean) * self.inverse_std
        return normalized if self.clip is None else normalized.clamp(-self.clip, self.clip)


class ActionScale(nn.Module):
    """Squashes to ±1 and scales to the action's limits."""

    center: Tensor
    half_range: Tensor

    def __init__(self, size: int, squash: str) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("half_range", torch.ones(size))
        self.squash = squash

    def set_limits(self, lower: Sequence[float], upper: Sequence[float]) -> None:
        """Scale to these limits, in the action's units."""
        low, high = torch.tensor(lower, dtype=torch.float64), torch.tensor(upper, dtype=torch.float64)
        self.center.copy_((high + low) / 2)
        self.half_range.copy_((high - low) / 2)

    def forward(self, output: Tensor) -> Tensor:
        squashed = torch.tanh(output) if self.squash == "tanh" else output.clamp(-1.0, 1.0)
        return self.center + self.half_range * squashed


class Mlp(nn.Module):
    """Observation (batch, n), in the plant's units, to action (batch, m), within its limits.

    Args:
        architecture: Widths, activation, squashing.
        observation_size: n.
        action_size: m.
    """

    layers: nn.ModuleList
    """The linear layers; the last is the output layer."""

    def __init__(self, architecture: MlpArchitecture, observation_size: int, action_size: int) -> None:
        super().__init__()
        self.architecture = architecture
        widths = (observation_size, *architecture.hidden, action_size)
        self.normalizer = Normalizer(observation_size, architecture.observation_clip)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))
        self.activation = ACTIVATIONS[architecture.activation]()
        self.output = ActionScale(action_size, architecture.squash)

    @classmethod
    def for_action(cls, architecture: MlpArchitecture, observation_size: int, action: ActionSpec) -> Mlp:
        """Build a network with random weights whose output is scaled to the limits of `action`."""
        module = cls(architecture, observation_size, action.size)
        module.output.set_limits(action.lower, action.upper)
        return module

    def forward(self, observation: Tensor) -> Tensor:
        hidden = self.normalizer(observation)
        for layer in self.layers[:-1]:
            hidden = self.activation(layer(hidden))
        return self.output(self.layers[-1](hidden))

    def components(self) -> dict[str, list[str]]:
        """Return the component names and the names of the modules each holds."""
        return {"policy": ["layers"]}

    def current_architecture(self) -> MlpArchitecture:
        """Return the architecture with the widths the layers have now (they change when channels are removed)."""
        hidden = tuple(layer.out_features for layer in self.layers[:-1] if isinstance(layer, nn.Linear))
        return self.architecture.model_copy(update={"hidden": hidden})


def parameter_count(module: nn.Module) -> int:
    """Count weights and biases; fixed buffers such as normalization statistics do not count."""
    return sum(parameter.numel() for parameter in module.parameters())
