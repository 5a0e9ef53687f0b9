"""A convolutional autoencoder of images: an encoder and a decoder that share a latent vector.

It drives no loop and has no bundle. It is the other use case of the pruning method, beside controllers.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

CHANNELS = (16, 32, 48)
LATENT = 32


class Autoencoder(nn.Module):
    """Images (batch, 1, size, size) in 0..1 to their reconstructions, of the same shape and range.

    Args:
        size: Pixels of an image's side.
        channels: Of the encoder's convolutions, each of which halves the sides; the decoder has the same in turn.
        latent: Length of the latent vector.
    """

    encoder: nn.Sequential
    """Convolutions, and a linear layer that gives the latent vector."""
    decoder: nn.Sequential
    """A linear layer that takes the latent vector, and transposed convolutions."""

    def __init__(self, size: int = 28, channels: tuple[int, ...] = CHANNELS, latent: int = LATENT) -> None:
        super().__init__()
        widths = (1, *channels)
        sides = [size]
        for _ in channels:
            sides.append((sides[-1] + 1) // 2)
        flat = widths[-1] * sides[-1] ** 2
        encoder: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            encoder += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
        self.encoder = nn.Sequential(*encoder, nn.Flatten(), nn.Linear(flat, latent))
        # The number of channels is left to the tensor, so that it may change.
        decoder: list[nn.Module] = [nn.Linear(latent, flat), nn.ReLU(), nn.Unflatten(1, (-1, sides[-1], sides[-1]))]
        for inputs, outputs, side in zip(widths[:0:-1], widths[-2::-1], sides[-2::-1], strict=True):
            even = int(side % 2 == 0)
            decoder += [nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=even), nn.ReLU()]
        decoder[-1] = nn.Sigmoid()
        self.decoder = nn.Sequential(*decoder)

    def forward(self, image: Tensor) -> Tensor:
        reconstruction: Tensor = self.decoder(self.encoder(image))
        return reconstruction

    def components(self) -> dict[str, list[str]]:
        """Return the component names and the names of the modules each holds."""
        return {"encoder": ["encoder"], "decoder": ["decoder"]}
