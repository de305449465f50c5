"""Patch discriminator of pictures such as mels, with batch normalization.

Source: Isola et al., Image-to-Image Translation with Conditional Adversarial Networks (arXiv 1611.07004), in the form of
taming-transformers (arXiv 2012.09841) and karchkha/MelSpec_VQVAE, whose checkpoints `from_original` reads.
"""

from __future__ import annotations

import torch
from torch import nn

from melreformer_hf.originals.arguments import SIZE, take_arguments
from melreformer_hf.originals.formats import OriginalCheckpointMixin, OriginalFormat
from melreformer_hf.originals.renaming import rename_keys
from melreformer_hf.training.discriminators.stacks import DiscriminatorOutput

ORIGIN = "original patch discriminator"
_SLOPE = 0.2
_TABLE = [("discriminator.main.", "main.")]
_NAMES = {
    "disc_in_channels": ("in_channels", SIZE),
    "disc_ndf": ("base_channels", SIZE),
    "disc_num_layers": ("num_layers", SIZE),
}


class PatchDiscriminator(OriginalCheckpointMixin, nn.Module):
    """One logit per overlapping patch; 2,763,585 parameters at the published size.

    Args:
        in_channels: channels of the picture.
        base_channels: width of the first layer; doubled per layer up to eight times.
        num_layers: convolutions with stride 2.

    Raises:
        ValueError: a size is not positive.
    """

    original_format = OriginalFormat(
        ORIGIN,
        lambda arguments, state_dict: take_arguments(arguments, _NAMES, {}, ORIGIN),
        lambda tensors, model: rename_keys(tensors, _TABLE, ORIGIN),
        lambda tensors, model: rename_keys(tensors, _TABLE, ORIGIN, reverse=True),
        container="state_dict",
        # It is stored with the VQ-VAE, whose tensors are not read.
        part=lambda tensors: {key: value for key, value in tensors.items() if key.startswith("discriminator.")},
    )

    def __init__(self, in_channels: int = 1, base_channels: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        if min(in_channels, base_channels, num_layers) < 1:
            raise ValueError(
                "in_channels, base_channels and num_layers must be positive, got "
                f"{in_channels}, {base_channels} and {num_layers}."
            )
        self.in_channels, self.num_layers = in_channels, num_layers
        layers: list[nn.Module] = [nn.Conv2d(in_channels, base_channels, 4, 2, 1), nn.LeakyReLU(_SLOPE)]
        width = base_channels
        for index in range(1, num_layers + 1):
            before, width = width, base_channels * min(2**index, 8)
            # The last hidden layer keeps the resolution: a patch is 70 rows wide at three strided layers.
            stride = 2 if index < num_layers else 1
            layers += [nn.Conv2d(before, width, 4, stride, 1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(_SLOPE)]
        layers.append(nn.Conv2d(width, 1, 4, 1, 1))
        self.main = nn.Sequential(*layers)
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, pictures: torch.Tensor) -> DiscriminatorOutput:
        """Judge.

        Args:
            pictures: (batch, mel, frame), or (batch, in_channels, height, width).

        Returns:
            (logits, feature maps), lists of one entry: (batch, position), and the layers' outputs, the logit map
            (batch, 1, patch rows, patch columns) last.

        Raises:
            ValueError: another shape, or too small for one patch.
        """
        pictures = pictures.unsqueeze(1) if pictures.ndim == 3 else pictures
        # After the halvings two 4 x 4 layers without stride take one row and column each; one must be left.
        smallest = 3 * 2**self.num_layers
        if pictures.ndim != 4 or pictures.shape[1] != self.in_channels or min(pictures.shape[2:]) < smallest:
            raise ValueError(
                f"pictures must be (batch, mel, frame) or (batch, {self.in_channels}, height, width) with at least "
                f"{smallest} rows and columns, got {tuple(pictures.shape)}."
            )
        hidden, maps = pictures, []
        for layer in self.main:
            hidden = layer(hidden)
            # Features are taken behind the rectifiers, one map per block.
            if isinstance(layer, nn.LeakyReLU):
                maps.append(hidden)
        maps.append(hidden)
        return [hidden.flatten(1)], [maps]


__all__ = ["PatchDiscriminator"]
