"""Networks with every kind of coupling, and the dense network with its channels masked: what pruned ones must equal."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional

from nncontrol_prune.pruning.groups import LINEAR, TRANSPOSED, Group, weighted_norms


class SimNorm(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        simplices = inputs.view(*inputs.shape[:-1], -1, 4)
        return torch.softmax(simplices, dim=-1).view(*inputs.shape)


def normed(inputs: int, outputs: int, activation: nn.Module) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), activation]


class NormedLinear(nn.Linear):
    """A linear layer with norm and activation in its forward pass, as TD-MPC2 has it."""

    def __init__(self, *args: Any, act: nn.Module | None = None, **named: Any) -> None:
        super().__init__(*args, **named)
        self.ln = nn.LayerNorm(self.out_features)
        self.act = act or nn.Mish()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.act(self.ln(super().forward(inputs)))

    def composed(self) -> nn.Sequential:
        """The same parameters in layers of torch's own, one after another."""
        layer = nn.Linear(self.in_features, self.out_features)
        layer.weight, layer.bias = self.weight, self.bias
        return nn.Sequential(layer, self.ln, self.act)


class WorldModel(nn.Module):
    """The shape of TD-MPC: one latent that encoder, dynamics, reward, policy and every Q share."""

    components = {name: (name,) for name in ("encoder", "dynamics", "reward", "policy", "q")}  # noqa: RUF012
    steps = 2

    def __init__(self) -> None:
        super().__init__()
        latent, action = 24, 2
        self.encoder = nn.Sequential(*normed(5, 20, nn.Mish()), *normed(20, latent, SimNorm()))
        self.dynamics = nn.Sequential(*normed(latent + action, 18, nn.Mish()), *normed(18, latent, SimNorm()))
        self.reward = nn.Sequential(*normed(latent + action, 14, nn.Mish()), nn.Linear(14, 11))
        self.policy = nn.Sequential(*normed(latent, 16, nn.Mish()), nn.Linear(16, 2 * action))
        self.q = nn.ModuleList(
            nn.Sequential(*normed(latent + action, 12, nn.Mish()), nn.Linear(12, 11)) for _ in range(3)
        )

    def forward(self, observation: Tensor, actions: Tensor) -> dict[str, Tensor]:
        latent = self.encoder(observation)
        outputs = {}
        for step in range(self.steps):
            both = torch.cat([latent, actions[:, step]], dim=-1)
            mean, log_std = self.policy(latent).chunk(2, dim=-1)
            outputs[f"action{step}"] = torch.tanh(mean) + 0.0 * log_std
            outputs[f"reward{step}"] = self.reward(both)
            outputs[f"value{step}"] = torch.stack([member(both) for member in self.q]).mean(dim=0)
            latent = self.dynamics(both)
        return outputs


class ResidualNet(nn.Module):
    """Residuals, concatenated inputs, an RMSNorm written out beside torch's, layers without bias, squashed outputs."""

    components = {"trunk": ("first", "inner", "norm", "second"), "head": ("head",)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(5))
        self.first = nn.Linear(5, 20, bias=False)
        self.inner = nn.Linear(20, 20)
        self.norm = nn.RMSNorm(20)
        self.second = nn.Linear(20 + 5, 12)
        self.head = nn.Linear(12 + 20, 2)

    def forward(self, observation: Tensor) -> Tensor:
        observation = (observation - self.mean).clamp(-3, 3)
        hidden = functional.silu(self.first(observation))
        hidden = hidden + torch.tanh(self.inner(hidden))
        normed = self.norm(hidden)
        second = functional.elu(self.second(torch.cat([observation, normed], dim=1)))
        return 2.0 * torch.tanh(self.head(torch.cat([second, hidden], dim=-1)))


class ConvNet(nn.Module):
    """An autoencoder of images with batch and group norms, flatten and unflatten."""

    components = {"encoder": ("encoder",), "decoder": ("decoder",)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=1),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 9, 10),
        )
        self.decoder = nn.Sequential(
            nn.Linear(10, 8 * 9),
            nn.ReLU(),
            nn.Unflatten(1, (-1, 3, 3)),
            nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1),
            nn.GroupNorm(3, 6),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 1, 3, stride=2, padding=1, output_padding=1),
            nn.Sigmoid(),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.decoder(self.encoder(image))


class Mixer(nn.Module):
    """An MLP-mixer over (batch, positions, channels): one of its layers takes positions in, for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 2)
        self.norms = nn.ModuleList(nn.RMSNorm(16) for _ in range(2))
        self.positions = nn.Sequential(nn.Linear(5, 24), nn.GELU(), nn.Linear(24, 5))
        self.channels = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        hidden = hidden + self.positions(self.norms[0](hidden).transpose(1, 2)).transpose(1, 2)
        return self.last((hidden + self.channels(self.norms[1](hidden))).mean(1))


class StackedEnsemble(nn.Module):
    """Members in one tensor each, run by vmap."""

    components = {"q": ("member",)}  # noqa: RUF012

    def __init__(self, members: int = 3) -> None:
        super().__init__()
        widths = (5, 10, 8, 4)
        self.member = nn.Module()
        for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            self.member.register_parameter(f"weight{index}", nn.Parameter(torch.randn(members, outputs, inputs)))
            self.member.register_parameter(f"bias{index}", nn.Parameter(torch.randn(members, outputs)))

    def forward(self, inputs: Tensor) -> Tensor:
        def one(tensors: dict[str, Tensor]) -> Tensor:
            hidden = inputs
            for index in range(3):
                hidden = functional.linear(hidden, tensors[f"weight{index}"], tensors[f"bias{index}"])
                hidden = functional.mish(hidden) if index < 2 else hidden
            return hidden

        return vmap(one)(dict(self.member.named_parameters()))


class WithoutDerivative(torch.autograd.Function):
    """An operation that no gradient gets through."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return torch.relu(inputs)


@contextmanager
def masked(module: nn.Module, groups: Sequence[Group], keep: Sequence[Tensor]) -> Iterator[None]:
    """Within the block the dense module ignores the channels that are not kept; norms do so in their statistics."""
    with weighted_norms(module), _masked(module, groups, keep):
        yield


@contextmanager
def _masked(module: nn.Module, groups: Sequence[Group], keep: Sequence[Tensor]) -> Iterator[None]:
    gone: dict[tuple[str, int], Tensor] = {}
    for group, indices in zip(groups, keep, strict=True):
        leaves = torch.ones(group.channels, dtype=torch.bool).index_fill(0, indices, False)
        for member in group.members:
            size = _tensor(module, member.tensor).shape[member.dim]
            mask = gone.setdefault((member.tensor, member.dim), torch.ones(size))
            mask[member.positions[leaves].flatten()] = 0.0
    hooks = []
    saved: list[tuple[Tensor, Tensor]] = []
    for (tensor, dim), mask in gone.items():
        owner = module.get_submodule(tensor.rpartition(".")[0])
        if isinstance(owner, (nn.LayerNorm, nn.RMSNorm)) or getattr(owner, "num_groups", None) == 1:
            if tensor.endswith("weight"):
                hooks.append(owner.register_forward_hook(_norm_over(mask)))
            continue
        inward = (isinstance(owner, LINEAR) and dim == 1) or (isinstance(owner, TRANSPOSED) and dim == 0)
        if inward or not isinstance(owner, (*LINEAR, *TRANSPOSED, nn.modules.batchnorm._NormBase, nn.GroupNorm)):
            weight = _tensor(module, tensor)
            saved.append((weight, weight.detach().clone()))
            with torch.no_grad():
                weight.mul_(mask.view([-1 if d == dim else 1 for d in range(weight.dim())]))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for weight, before in reversed(saved):
                weight.copy_(before)


def _tensor(module: nn.Module, name: str) -> Tensor:
    tensors: Mapping[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return tensors[name]


def _norm_over(mask: Tensor) -> Callable[..., Tensor]:
    def hook(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept = mask.bool()
        bias = norm.bias[kept] if getattr(norm, "bias", None) is not None else None
        if isinstance(norm, nn.GroupNorm):
            result = torch.zeros_like(output)
            result[:, kept] = functional.group_norm(inputs[0][:, kept], 1, norm.weight[kept], bias, norm.eps)
            return result
        if isinstance(norm, nn.RMSNorm):
            found = functional.rms_norm(inputs[0][..., kept], (int(kept.sum()),), norm.weight[kept], norm.eps)
        else:
            found = functional.layer_norm(inputs[0][..., kept], (int(kept.sum()),), norm.weight[kept], bias, norm.eps)
        result = torch.zeros_like(output)
        result[..., kept] = found
        return result

    return hook
