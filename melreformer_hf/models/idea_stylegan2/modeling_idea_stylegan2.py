"""StyleGAN2 for ideas: a picture of a mel, and how long the music is.

Karras et al., Analyzing and improving the image quality of StyleGAN (arXiv 1912.04958), in the form of the original
repository rosinality/stylegan2-pytorch; the duration, told by the style code, is the scheme of the README of
TariqAHassan/MelReformer. Its discriminator is `StyleGan2Discriminator` of
`melreformer_hf.training.discriminators.stylegan2`, its losses are in `melreformer_hf.training.losses.stylegan2`.

Deviations: pictures need not be square (the learned constant has their proportions); styles scale the activations in
place of the weights, which is the same function without a weight per picture; the mean style is kept as a buffer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.idea_stylegan2.configuration_idea_stylegan2 import IdeaStyleGan2Config
from melreformer_hf.models.idea_stylegan2.weights_idea_stylegan2 import ORIGINAL_FORMAT
from melreformer_hf.nn.equalized import EqualizedLinear, scaled_leaky_relu
from melreformer_hf.nn.ideas import IdeaSample, check_lengths, row_generators_of
from melreformer_hf.nn.resample2d import FirFilter2d, filter_after_transposed, upsampling_filter
from melreformer_hf.originals.formats import OriginalCheckpointMixin

_EPSILON = 1e-8
_MEAN_SAMPLES = 4096


@dataclass
class IdeaStyleGan2Output(ModelOutput):
    """Output of `IdeaStyleGan2Model`.

    Args:
        sample: (batch, channel, mel, column) idea, normalized (see `denormalize_idea`).
        log2_num_frames: (batch,) log2 of the duration in frames, not clipped; `None` without a duration head.
        styles: (batch, num_styles, style_size) as used, the coarsest first.
    """

    sample: torch.FloatTensor | None = None
    log2_num_frames: torch.FloatTensor | None = None
    styles: torch.FloatTensor | None = None


class MappingNetwork(nn.Module):
    """Latent to style: normalization to unit power, then linear layers with leaky ReLUs."""

    def __init__(self, style_size: int, num_layers: int, rate_multiplier: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EqualizedLinear(style_size, style_size, rate_multiplier) for _ in range(num_layers)
        )

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """(batch, style_size) -> (batch, style_size)."""
        # Onto a sphere: a normal latent's length says nothing, its direction everything.
        hidden = latents * torch.rsqrt(latents.square().mean(1, keepdim=True) + _EPSILON)
        for layer in self.layers:
            hidden = scaled_leaky_relu(layer(hidden))
        return hidden


class ModulatedConv2d(nn.Module):
    """Convolution whose input channels are scaled by a style, with outputs brought back to unit variance.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd taps of either axis.
        style_size: width of the style.
        demodulate: whether to divide by the scaled weights' norm.
        blur_taps: filter after upsampling; `None` does not upsample.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style_size: int,
        demodulate: bool = True,
        blur_taps: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.demodulate = demodulate
        # Weights have unit variance and are scaled here, so that Adam changes all layers at the same relative rate.
        self.scale = 1.0 / math.sqrt(in_channels * kernel_size**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.modulation = EqualizedLinear(style_size, in_channels, bias_value=1.0)
        self.blur = None if blur_taps is None else filter_after_transposed(blur_taps, kernel_size)

    def _gains(self, weight: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # sums of squares lose too much in half precision
            wide = torch.promote_types(weight.dtype, torch.float32)
            # Equation 3 of arXiv 1912.04958: 1 / sqrt(sum of (s_i w_ijk)^2), with the taps' squares summed first.
            power = weight.to(wide).square().sum((2, 3))
            gains = torch.rsqrt(modulation.to(wide).square() @ power.T + _EPSILON)
        return gains.to(modulation.dtype)[:, :, None, None]

    def forward(self, hidden: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """(batch, in_channel, row, column), (batch, style_size) -> (batch, out_channel, row', column')."""
        modulation = self.modulation(style)
        # Scaling the input channels by the style is the same as scaling the weights of every picture, in one
        # convolution.
        weight = self.weight * self.scale
        hidden = hidden * modulation[:, :, None, None]
        if self.blur is None:
            hidden = conv2d(hidden, weight, padding=weight.shape[-1] // 2)
        else:
            # (out, in, tap, tap) -> (in, out, tap, tap), as the transposed convolution wants it
            hidden = self.blur(conv_transpose2d(hidden, weight.transpose(0, 1), stride=2))
        return hidden * self._gains(weight, modulation) if self.demodulate else hidden


class StyledConv2d(nn.Module):
    """Modulated convolution, noise of one learned strength, bias, leaky ReLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        style_size: width of the style.
        shape: (bands, columns) of the output.
        blur_taps: filter after upsampling; `None` does not upsample.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style_size: int,
        shape: tuple[int, int],
        blur_taps: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, style_size, blur_taps=blur_taps)
        self.noise_strength = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("constant_noise", torch.randn(1, 1, *shape))

    def forward(self, hidden: torch.Tensor, style: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """(batch, in_channel, row, column), (batch, style_size), (batch or 1, 1, row', column') -> the output."""
        # One strength for all channels and places: where the noise matters, the next layers decide.
        hidden = self.conv(hidden, style) + self.noise_strength * noise
        return scaled_leaky_relu(hidden + self.bias[:, None, None])


class ToPicture(nn.Module):
    """What a resolution adds to the picture: a modulated pointwise convolution."""

    def __init__(self, in_channels: int, num_channels: int, style_size: int) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, num_channels, 1, style_size, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, hidden: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """(batch, channel, row, column), (batch, style_size) -> (batch, num_channels, row, column)."""
        return self.conv(hidden, style) + self.bias[:, None, None]


class SynthesisBlock(GradientCheckpointingLayer):
    """One resolution: an upsampling convolution (but for the coarsest), another, and the addition to the picture."""

    def __init__(
        self,
        in_channels: int | None,
        out_channels: int,
        num_channels: int,
        style_size: int,
        shape: tuple[int, int],
        blur_taps: Sequence[float],
    ) -> None:
        super().__init__()
        coarsest = in_channels is None
        self.up = None if coarsest else StyledConv2d(in_channels, out_channels, style_size, shape, blur_taps)
        self.conv = StyledConv2d(out_channels, out_channels, style_size, shape)
        self.to_picture = ToPicture(out_channels, num_channels, style_size)
        self.enlarge = None if coarsest else upsampling_filter(blur_taps)

    @property
    def convs(self) -> list[StyledConv2d]:
        """The convolutions in order."""
        return [self.conv] if self.up is None else [self.up, self.conv]

    def forward(
        self,
        hidden: torch.Tensor,
        picture: torch.Tensor | None,
        styles: torch.Tensor,
        noises: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden state and picture of the resolution before -> of this one.

        Args:
            hidden: (batch, in_channel, row, column).
            picture: (batch, num_channels, row, column), `None` at the coarsest.
            styles: (batch, one per convolution and one for the picture, style_size).
            noises: one per convolution.
        """
        for index, conv in enumerate(self.convs):
            hidden = conv(hidden, styles[:, index], noises[index])
        # Every resolution adds its details to the enlarged picture (the paper's skip architecture).
        added = self.to_picture(hidden, styles[:, len(self.convs)])
        return hidden, added if picture is None else added + self.enlarge(picture)


class SynthesisNetwork(nn.Module):
    """Styles and noises to a picture, from a learned constant up."""

    def __init__(self, config: IdeaStyleGan2Config) -> None:
        super().__init__()
        rows, columns = config.coarsest_shape
        self.constant = nn.Parameter(torch.randn(1, config.channels[0], rows, columns))
        self.blocks = nn.ModuleList(
            SynthesisBlock(
                config.channels[level - 1] if level else None,
                width,
                config.num_channels,
                config.style_size,
                (rows * 2**level, columns * 2**level),
                config.blur_taps,
            )
            for level, width in enumerate(config.channels)
        )

    @property
    def convs(self) -> list[StyledConv2d]:
        """All convolutions with noise, the coarsest first."""
        return [conv for block in self.blocks for conv in block.convs]

    def forward(self, styles: torch.Tensor, noises: Sequence[torch.Tensor]) -> torch.Tensor:
        """(batch, num_styles, style_size), one noise per convolution -> (batch, num_channels, mel, column)."""
        hidden, picture, first = self.constant.expand(styles.shape[0], -1, -1, -1), None, 0
        for block in self.blocks:
            count = len(block.convs)
            used = styles[:, first : first + count + 1]  # the picture's style is the next resolution's first
            hidden, picture = block(hidden, picture, used, noises[first : first + count])
            first += count
        return picture


class IdeaStyleGan2PreTrainedModel(HubMixin, PreTrainedModel):
    """Initial values and loading."""

    config_class = IdeaStyleGan2Config
    base_model_prefix = "idea_stylegan2"
    main_input_name = "latents"
    _no_split_modules = ["SynthesisBlock"]
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, EqualizedLinear):
            # A slow layer's weights are stored larger by as much as they are scaled down in use.
            init.normal_(module.weight, std=1.0 / module.rate_multiplier)
            init.constant_(module.bias, module.bias_value)
        elif isinstance(module, ModulatedConv2d):
            init.normal_(module.weight)
        elif isinstance(module, StyledConv2d):
            init.zeros_(module.noise_strength)
            init.zeros_(module.bias)
            init.normal_(module.constant_noise)
        elif isinstance(module, ToPicture):
            init.zeros_(module.bias)
        elif isinstance(module, SynthesisNetwork):
            init.normal_(module.constant)
        elif isinstance(module, FirFilter2d):
            init.copy_(module.kernel, module.initial_kernel())
        elif isinstance(module, IdeaStyleGan2Model):
            init.zeros_(module.style_mean)


class IdeaStyleGan2Model(OriginalCheckpointMixin, IdeaStyleGan2PreTrainedModel):
    """Draws ideas with their durations in one step.

    Args:
        config: sizes, mel contract, scaling.

    Example:

        >>> import torch
        >>> from melreformer_hf import IdeaStyleGan2Config, IdeaStyleGan2Model
        >>> model = IdeaStyleGan2Model(IdeaStyleGan2Config.preset("tiny")).eval()
        >>> drawn = model.sample(2, generator=torch.Generator().manual_seed(0), truncation_psi=0.7)
        >>> tuple(drawn.ideas.shape), tuple(drawn.num_frames.shape)
        ((2, 128, 256), (2,))
    """

    original_format = ORIGINAL_FORMAT

    def __init__(self, config: IdeaStyleGan2Config) -> None:
        super().__init__(config)
        self.mapping = MappingNetwork(config.style_size, config.num_mapping_layers, config.mapping_rate_multiplier)
        self.synthesis = SynthesisNetwork(config)
        self.duration = EqualizedLinear(config.style_size, 1) if config.predict_duration else None
        self.register_buffer("style_mean", torch.zeros(config.style_size))
        self.post_init()

    @torch.no_grad()
    def measure_style_mean(
        self, num_samples: int = _MEAN_SAMPLES, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Set `style_mean` to the mean style of random latents, and return it, (style_size,)."""
        latents = _randn((num_samples, self.config.style_size), generator, self.style_mean)
        # In one go instead of as a running mean: loaded originals have measured none.
        self.style_mean.copy_(self.mapping(latents).mean(0))
        return self.style_mean

    def normalize_idea(self, idea: torch.Tensor) -> torch.Tensor:
        """(batch, mel, column) log-mel to the (batch, 1, mel, column) that the model makes."""
        return ((idea - self.config.mel_mean) / self.config.mel_std)[:, None]

    def denormalize_idea(self, sample: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize_idea`."""
        return sample[:, 0] * self.config.mel_std + self.config.mel_mean

    def normalize_duration(self, log2_num_frames: torch.Tensor) -> torch.Tensor:
        """Log2 of frames to the standardized duration that the discriminator is told; any shape."""
        return (log2_num_frames - self.config.log2_frames_mean) / self.config.log2_frames_std

    def draw_noise(self, batch_size: int = 1, generator: torch.Generator | None = None) -> list[torch.Tensor]:
        """Fresh noise for every convolution: (batch, 1, row, column) each, the coarsest first."""
        return [
            _randn((batch_size, *conv.constant_noise.shape[1:]), generator, conv.constant_noise)
            for conv in self.synthesis.convs
        ]

    def _noises(self, noise: str | Sequence[torch.Tensor] | None, batch: int) -> Sequence[torch.Tensor]:
        convs = self.synthesis.convs
        if noise is None:
            noise = "random" if self.training else "constant"
        if isinstance(noise, str):
            if noise not in ("random", "constant"):
                raise ValueError(f'noise must be "random", "constant" or a list of tensors, got {noise!r}.')
            return self.draw_noise(batch) if noise == "random" else [conv.constant_noise for conv in convs]
        if len(noise) != len(convs):
            raise ValueError(f"noise must hold {len(convs)} tensors, one per convolution, got {len(noise)}.")
        for index, (tensor, conv) in enumerate(zip(noise, convs, strict=True)):
            _, _, rows, columns = conv.constant_noise.shape
            if tuple(tensor.shape[1:]) != (1, rows, columns) or tensor.shape[0] not in (1, batch):
                raise ValueError(
                    f"noise[{index}] must have shape ({batch} or 1, 1, {rows}, {columns}), got {tuple(tensor.shape)}."
                )
        return noise

    def _mapped(self, latents: torch.Tensor, name: str) -> torch.Tensor:
        size = self.config.style_size
        if latents.ndim != 2 or latents.shape[1] != size:
            raise ValueError(f"{name} must be (batch, {size}), got {tuple(latents.shape)}.")
        return self.mapping(latents)

    def _styles(
        self, latents: torch.Tensor, mixing_latents: torch.Tensor | None, mixing_index: int | None
    ) -> torch.Tensor:
        count = self.config.num_styles
        if (mixing_latents is None) != (mixing_index is None):
            raise ValueError("mixing_latents and mixing_index must be given together.")
        styles = self._mapped(latents, "latents")
        if self.training:
            with torch.no_grad():
                # As batch normalization does: a mean of styles, which are never a function of data that could be
                # broken.
                self.style_mean.lerp_(styles.mean(0).to(self.style_mean.dtype), 1 - self.config.style_mean_decay)
        if mixing_latents is None:
            # (batch, style_size) -> (batch, num_styles, style_size), one memory for all
            return styles[:, None].expand(-1, count, -1)
        if not 1 <= mixing_index <= count:
            raise ValueError(f"mixing_index must be in 1..{count}, got {mixing_index}.")
        others = self._mapped(mixing_latents, "mixing_latents")
        return torch.cat(
            [styles[:, None].expand(-1, mixing_index, -1), others[:, None].expand(-1, count - mixing_index, -1)], dim=1
        )

    def forward(
        self,
        latents: torch.Tensor | None = None,
        mixing_latents: torch.Tensor | None = None,
        mixing_index: int | None = None,
        styles: torch.Tensor | None = None,
        truncation_psi: float | None = None,
        noise: str | Sequence[torch.Tensor] | None = None,
        return_dict: bool | None = None,
    ) -> IdeaStyleGan2Output | tuple:
        """Make pictures and durations.

        Args:
            latents: (batch, style_size) standard normal.
            mixing_latents: (batch, style_size) whose styles are used from `mixing_index` on; the duration is that of
                `latents`, as the coarse layers are.
            mixing_index: number of styles, of `config.num_styles`, that come from `latents`.
            styles: (batch, num_styles, style_size) in place of latents.
            truncation_psi: how far styles (and with them durations) keep from their mean: 1 or `None` changes nothing,
                0 makes all pictures the mean's.
            noise: `"random"`, `"constant"` (the buffers), or one tensor (batch or 1, 1, row, column) per convolution;
                `None` is random in training, else constant.
            return_dict: `False` gives a tuple.

        Raises:
            ValueError: shapes that do not fit; neither latents nor styles, or both.
        """
        size, count = self.config.style_size, self.config.num_styles
        if (latents is None) == (styles is None):
            raise ValueError("Exactly one of latents and styles must be given.")
        if styles is None:
            styles = self._styles(latents, mixing_latents, mixing_index)
        elif styles.ndim != 3 or tuple(styles.shape[1:]) != (count, size):
            raise ValueError(f"styles must be (batch, {count}, {size}), got {tuple(styles.shape)}.")
        if truncation_psi is not None:
            styles = self.style_mean + truncation_psi * (styles - self.style_mean)
        sample = self.synthesis(styles, self._noises(noise, styles.shape[0]))
        log2_num_frames = None
        if self.duration is not None:
            standardized = self.duration(styles[:, 0])[:, 0]
            # log2 of 10^4 frames in bfloat16 would be off by hundreds of frames.
            standardized = standardized.to(torch.promote_types(standardized.dtype, torch.float32))
            log2_num_frames = standardized * self.config.log2_frames_std + self.config.log2_frames_mean
        output = IdeaStyleGan2Output(sample=sample, log2_num_frames=log2_num_frames, styles=styles)
        return output.to_tuple() if return_dict is False else output

    @property
    def mel_config(self) -> MelConfig:
        """The mel contract of ideas."""
        return self.config.mel_config

    @torch.no_grad()
    def sample(
        self,
        batch_size: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_frames: int | torch.Tensor | None = None,
        truncation_psi: float = 1.0,
        latents: torch.Tensor | None = None,
        device: torch.device | str | None = None,
        module: Callable[..., IdeaStyleGan2Output] | None = None,
    ) -> IdeaSample:
        """Draw ideas and durations for the expansion.

        Args:
            batch_size: ideas.
            generator: drives latents and noise, row after row, so that a row stays when others follow; or one per row.
            num_frames: durations in frames, one or (batch,), in place of the predicted ones.
            truncation_psi: see `forward`.
            latents: (batch, style_size) standard normal, in place of those that would be drawn.
            device: where the model runs; default: where it is.
            module: called in place of the model: the model in a wrapper, such as `torch.compile(model)`.

        Raises:
            ValueError: the model makes no mels (several channels), or knows no durations and was given none; an
                argument breaks its rule.
        """
        config, device = self.config, self.device if device is None else torch.device(device)
        if config.num_channels != 1:
            raise ValueError(f"sample makes mels of num_channels=1, this model has {config.num_channels}.")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
        rows = row_generators_of(generator, batch_size)
        if num_frames is None and self.duration is None:
            raise ValueError("num_frames must be given: this model was built with predict_duration=False.")
        lengths = None if num_frames is None else check_lengths(num_frames, batch_size, device)
        drawn, noises = [], []
        # Row after row, latents before noise: a row then has the same idea in any batch.
        for row in rows:
            if latents is None:
                drawn.append(_randn((1, config.style_size), row, self.style_mean))
            noises.append(self.draw_noise(1, row))
        # Lists of layers per row -> per layer (batch, 1, row, column)
        noise = [torch.cat(layer).to(device) for layer in zip(*noises, strict=True)]
        latents = torch.cat(drawn) if latents is None else latents.to(self.style_mean.dtype)
        run = self if module is None else module
        output = run(latents.to(device), truncation_psi=truncation_psi, noise=noise, return_dict=True)
        if lengths is None:
            limited = output.log2_num_frames.clamp(config.log2_frames_min, config.log2_frames_max)
            lengths = limited.exp2().round().long().clamp(min=1)
        ideas = self.denormalize_idea(output.sample.float()).clamp(min=config.mel_config.floor_value)
        return IdeaSample(ideas, lengths)


def _randn(shape: tuple[int, ...], generator: torch.Generator | None, like: torch.Tensor) -> torch.Tensor:
    """Standard normal numbers drawn where the generator lives, in the type and place of `like`."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device).to(like)


__all__ = [
    "IdeaStyleGan2Model",
    "IdeaStyleGan2Output",
    "IdeaStyleGan2PreTrainedModel",
]
