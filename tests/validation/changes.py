"""Controllers made from others by changing their networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from nncontrol_prune.controllers.bundle import Bundle, make_bundle

Change = Callable[[nn.Module], None]
"""Changes a network in place."""


def changed(bundle: Bundle, change: Change) -> Bundle:
    """Return a bundle whose network was changed."""
    module, manifest = bundle.module(), bundle.manifest
    with torch.no_grad():
        change(module)
    return make_bundle(
        module,
        name="changed",
        observation=manifest.observation,
        action=manifest.action,
        rate=manifest.rate,
        reference_observations=bundle.reference_observations,
    )


def last_layer(module: nn.Module) -> nn.Linear:
    """Return the layer that gives out the action, before it is squashed."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]


def amplify(factor: float) -> Change:
    """Return a change to so many times the gain, as far as the action is not squashed."""

    def change(module: nn.Module) -> None:
        last_layer(module).weight.mul_(factor)
        last_layer(module).bias.mul_(factor)

    return change
