from __future__ import annotations

import pytest
import torch

from nncontrol_prune.controllers.autoencoder import Autoencoder
from nncontrol_prune.pruning.groups import find_groups
from nncontrol_prune.pruning.surgery import remove_channels


@pytest.mark.parametrize("size", [12, 28, 30])
def test_reconstructions_have_the_shape_and_range_of_the_images(size: int) -> None:
    module = Autoencoder(size, channels=(3, 4, 5), latent=6)
    images = torch.rand(7, 1, size, size)
    reconstructions = module(images)
    assert reconstructions.shape == images.shape
    assert ((reconstructions >= 0) & (reconstructions <= 1)).all()
    assert module.encoder(images).shape == (7, 6)


def test_the_latent_vector_is_the_one_group_that_couples_the_components() -> None:
    module = Autoencoder(28, channels=(3, 4, 5), latent=6)
    groups = find_groups(module, module.components(), lambda m: m(torch.rand(2, 1, 28, 28)))
    assert [(group.name, group.components, group.channels) for group in groups] == [
        ("encoder.0", ("encoder",), 3),
        ("encoder.2", ("encoder",), 4),
        ("encoder.4", ("encoder",), 5),
        ("encoder.7", ("encoder", "decoder"), 6),
        ("decoder.0", ("decoder",), 5),
        ("decoder.3", ("decoder",), 4),
        ("decoder.5", ("decoder",), 3),
    ]
    assert [group.name for group in groups if group.kind == "inter-component"] == ["encoder.7"]


def test_a_channel_before_the_latent_takes_its_pixels_along() -> None:
    module = Autoencoder(28, channels=(3, 4, 5), latent=6)
    groups = find_groups(module, module.components(), lambda m: m(torch.rand(2, 1, 28, 28)))
    pruned = remove_channels(module, groups, [torch.arange(2)] * len(groups))
    assert pruned.encoder[7].weight.shape == (2, 2 * 16)
    assert pruned.decoder[0].weight.shape == (2 * 16, 2)
    assert pruned(torch.rand(3, 1, 28, 28)).shape == (3, 1, 28, 28)
