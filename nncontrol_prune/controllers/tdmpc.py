"""The `tdmpc` architecture as a torch module: TD-MPC2's world model, and the planner that acts with it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nncontrol_prune.controllers.mlp import ActionScale, Normalizer
from nncontrol_prune.controllers.specs import TDMPC_PARTS, ActionSpec, TdMpcArchitecture


class SimNorm(nn.Module):
    """Softmax within simplices of a few entries each, as many as there are."""

    def __init__(self, simplex: int) -> None:
        super().__init__()
        self.simplex = simplex

    def forward(self, inputs: Tensor) -> Tensor:
        simplices = inputs.unflatten(-1, (-1, self.simplex))
        return torch.softmax(simplices, dim=-1).flatten(-2)


class Mish(nn.Module):
    """`x · tanh(softplus(x))`, written as `x · (1 - s²) / (1 + s²)` with s = σ(-x).

    The same function as torch's; the runtimes have a fast σ and a slow softplus, which took a third of a plan's time.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        square = torch.sigmoid(-inputs).square()
        return inputs * ((1.0 - square) / (1.0 + square))


def normed_layers(widths: Sequence[int], last: nn.Module | None = None) -> nn.Sequential:
    """Return linear layers, each with LayerNorm and Mish; the last with LayerNorm and `last`, or alone without one."""
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(inputs, outputs))
        activation = Mish() if index < len(widths) - 2 else last
        if activation is not None:
            layers += [nn.LayerNorm(outputs), activation]
    return nn.Sequential(*layers)


class TdMpc(nn.Module):
    """World model, policy, value functions and planner.

    Observations are in the plant's units; latents (batch, latent); actions inside in ±1, (batch, m).

    Args:
        architecture: Sizes and the planner's settings.
        observation_size: n.
        action_size: m.
    """

    noise: Tensor
    """Standard normal noise (iterations, samples, horizon, m) that action sequences are drawn with."""
    policy_noise: Tensor
    """The same for the policy's proposals, (policy samples, horizon, m)."""
    support: Tensor
    """The bins of reward and value, in symlog space."""

    def __init__(self, architecture: TdMpcArchitecture, observation_size: int, action_size: int) -> None:
        super().__init__()
        self.architecture = architecture
        self.action_size = action_size
        widths = architecture.layer_widths(observation_size, action_size)
        self.normalizer = Normalizer(observation_size, architecture.observation_clip)
        self.encoder = normed_layers(widths["encoder"], SimNorm(architecture.simplex))
        self.dynamics = normed_layers(widths["dynamics"], SimNorm(architecture.simplex))
        self.reward = normed_layers(widths["reward"])
        self.policy = normed_layers(widths["policy"])
        self.q = nn.ModuleList(normed_layers(widths[f"q.{member}"]) for member in range(architecture.q_members))
        self.output = ActionScale(action_size, "clip")
        planner = architecture.planner
        generator = torch.Generator().manual_seed(planner.seed)
        self.register_buffer(
            "noise",
            torch.randn(planner.iterations, planner.samples, planner.horizon, action_size, generator=generator),
            persistent=False,
        )
        self.register_buffer(
            "policy_noise",
            torch.randn(planner.policy_samples, planner.horizon, action_size, generator=generator),
            persistent=False,
        )
        self.register_buffer(
            "support", torch.linspace(architecture.v_min, architecture.v_max, architecture.bins), persistent=False
        )

    @classmethod
    def for_action(cls, architecture: TdMpcArchitecture, observation_size: int, action: ActionSpec) -> TdMpc:
        """Build a network with random weights whose actions are scaled to the limits of `action`."""
        module = cls(architecture, observation_size, action.size)
        module.output.set_limits(action.lower, action.upper)
        return module

    def encode(self, observation: Tensor) -> Tensor:
        """Return the latent of an observation."""
        latent: Tensor = self.encoder(self.normalizer(observation))
        return latent

    def predict(self, latent: Tensor, action: Tensor) -> Tensor:
        """Return the latent one step after an action."""
        following: Tensor = self.dynamics(torch.cat([latent, action], dim=-1))
        return following

    def reward_logits(self, latent: Tensor, action: Tensor) -> Tensor:
        """Return the reward's distribution over the bins, as logits."""
        logits: Tensor = self.reward(torch.cat([latent, action], dim=-1))
        return logits

    def value_logits(self, latent: Tensor, action: Tensor) -> Tensor:
        """Return each member's distribution of the value over the bins, (members, batch, bins), as logits."""
        both = torch.cat([latent, action], dim=-1)
        return torch.stack([member(both) for member in self.q])

    def decode(self, logits: Tensor) -> Tensor:
        """Return the expectation, in symlog space, of a distribution over the bins, in the reward's units."""
        expected = (torch.softmax(logits, dim=-1) * self.support).sum(dim=-1)
        return torch.sign(expected) * (torch.exp(expected.abs()) - 1.0)

    def policy_parameters(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of the policy, before it is squashed."""
        mean, log_std = self.policy(latent).chunk(2, dim=-1)
        low, high = self.architecture.log_std_min, self.architecture.log_std_max
        return mean, low + 0.5 * (high - low) * (torch.tanh(log_std) + 1.0)

    def act(self, latent: Tensor) -> Tensor:
        """Return the policy's mean action."""
        return torch.tanh(self.policy_parameters(latent)[0])

    def scaled(self, action: Tensor) -> Tensor:
        """Bring an action of the plant into ±1."""
        return (action - self.output.center) / self.output.half_range

    def forward(self, observation: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Plan.

        Args:
            observation: Observations (batch, n).
            mean: The plan so far, (batch, horizon, m) in ±1: what the last tick returned; zeros for a fresh start.

        Returns:
            The actions (batch, m) in the plant's units, and the plan for the next tick.
        """
        planner = self.architecture.planner
        latent = self.encode(observation)
        proposals = self._proposals(latent)
        std = torch.full_like(mean, planner.max_std)
        for noise in self.noise.unbind(0):
            drawn = (mean[:, None] + std[:, None] * noise).clamp(-1.0, 1.0)
            sequences = torch.cat([drawn, proposals], dim=1)
            returns, best = torch.topk(self.expected_return(latent[:, None], sequences), planner.elites, dim=1)
            elites = torch.gather(sequences, 1, best[:, :, None, None].expand(-1, -1, *sequences.shape[2:]))
            # The greatest of the sorted elites comes first, so no exponential overflows.
            weights = torch.softmax(planner.temperature * (returns - returns[:, :1]), dim=1)[:, :, None, None]
            mean = (weights * elites).sum(dim=1)
            std = (weights * (elites - mean[:, None]).square()).sum(dim=1).sqrt()
            std = std.clamp(planner.min_std, planner.max_std)
        # Not zeros_like, which the export would freeze to the batch it was traced with.
        return self.output(mean[:, 0]), torch.cat([mean[:, 1:], 0.0 * mean[:, :1]], dim=1)

    def _proposals(self, latent: Tensor) -> Tensor:
        """Return action sequences of the policy, (batch, policy samples, horizon, m)."""
        latents = latent[:, None].expand(-1, self.policy_noise.shape[0], -1)
        actions = []
        for noise in self.policy_noise.unbind(1):
            mean, log_std = self.policy_parameters(latents)
            actions.append(torch.tanh(mean + log_std.exp() * noise))
            latents = self.predict(latents, actions[-1])
        return torch.stack(actions, dim=2)

    def expected_return(self, latent: Tensor, sequences: Tensor) -> Tensor:
        """Return what the model expects of action sequences (batch, samples, horizon, m), as (batch, samples).

        Args:
            latent: Where they start, (batch, 1, latent).
            sequences: The actions, in ±1.
        """
        latents = latent.expand(-1, sequences.shape[1], -1)
        total, discount = torch.zeros_like(sequences[:, :, 0, 0]), 1.0
        for action in sequences.unbind(2):
            total = total + discount * self.decode(self.reward_logits(latents, action))
            latents = self.predict(latents, action)
            discount *= self.architecture.discount
        values = self.decode(self.value_logits(latents, self.act(latents))).mean(dim=0)
        return total + discount * values

    def components(self) -> dict[str, list[str]]:
        """Return the component names and the names of the modules each holds."""
        return {name: [name] for name in TDMPC_PARTS}

    def current_architecture(self) -> TdMpcArchitecture:
        """Return the architecture with the widths the layers have now (they change when channels are removed)."""

        def outputs(layers: nn.Module) -> tuple[int, ...]:
            return tuple(layer.out_features for layer in layers.children() if isinstance(layer, nn.Linear))

        *encoder, latent = outputs(self.encoder)
        return self.architecture.model_copy(
            update={
                "encoder": tuple(encoder),
                "latent": latent,
                **{name: outputs(getattr(self, name))[:-1] for name in ("dynamics", "reward", "policy")},
                "q": outputs(self.q[0])[:-1],
            }
        )


def symlog(value: Tensor) -> Tensor:
    """Return the symmetric logarithm, which the bins are even in."""
    return torch.sign(value) * torch.log1p(value.abs())


def two_hot(value: Tensor, support: Tensor) -> Tensor:
    """Spread values (batch,) over the two bins next to their symlog; returns (batch, bins)."""
    step = support[1] - support[0]
    position = ((symlog(value) - support[0]) / step).clamp(0, len(support) - 1)
    below = position.floor().long().clamp(max=len(support) - 2)
    share = (position - below)[..., None]
    lower = functional.one_hot(below, len(support))
    return (1 - share) * lower + share * lower.roll(1, dims=-1)
