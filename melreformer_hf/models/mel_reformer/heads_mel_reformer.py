"""Heads: how the columns that encoder and decoder draw become what might have been played.

A head is trained by `loss` and used by `sample`, whatever it is:

- `PostNet` ("l1") corrects the columns towards the middle of what might have been played; deterministic.
- `EnergyHead` ("energy") turns noise into corrections in one pass; the energy score teaches it to differ as music does
  (as in Shao et al., Continuous autoregressive language models, arXiv 2510.27688).
- `FlowHead` ("flow") moves noise to corrections in few steps (flow matching, Lipman et al., arXiv 2210.02747).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from melreformer_hf.audio.fold import fold, unfold
from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.nn.convnext import ConvNeXtBlock
from melreformer_hf.nn.energy_score import energy_score

_TIME_HARMONICS = 8
# Spread of what is left over after the drawing, in normalized log-mels: nets are trained on numbers of about one.
_RESIDUAL_SCALE = 0.15
_LEAST_TIME_LEFT = 0.1


@dataclasses.dataclass
class HeadInputs:
    """What a head is told of a stretch of `frame` columns, which are `token` times its token size.

    Args:
        mean: (batch, mel, frame) columns that it corrects.
        fields: (batch, channel, frame) whatever else is known of every frame.
        features: (batch, feature, token) whatever is known of every token.
        inside: (batch, 1, frame) one where the frame belongs to the piece, zero elsewhere.
        open: (batch, 1, frame) one where columns are to be made, zero where `mean` has what was made before.
    """

    mean: torch.Tensor
    fields: torch.Tensor
    features: torch.Tensor
    inside: torch.Tensor
    open: torch.Tensor

    def repeated(self, count: int) -> HeadInputs:
        """Every row `count` times in a row."""
        return HeadInputs(
            *(getattr(self, field.name).repeat_interleave(count, 0) for field in dataclasses.fields(self))
        )


class PostNet(nn.Module):
    """Convolutions over the unfolded columns, which see across the borders of decoder windows: the head "l1"."""

    noise_channels = 0

    def __init__(self, config: MelReformerConfig) -> None:
        super().__init__()
        size, kernel = config.postnet_size, config.postnet_kernel
        self.stem = nn.Conv1d(2 * config.num_mel_bins, size, kernel, padding=kernel // 2)
        self.blocks = nn.ModuleList(ConvNeXtBlock(size, 3 * size, kernel) for _ in range(config.postnet_layers))
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, config.num_mel_bins)

    @property
    def reach(self) -> int:
        """Frames to each side that an output frame depends on."""
        return self.stem.kernel_size[0] // 2 + sum(block.reach for block in self.blocks)

    @property
    def last_weight(self) -> torch.Tensor:
        """Weight of the last layer, where gradients of losses are compared."""
        return self.head.weight

    def forward(self, made: torch.Tensor, base: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Improve columns.

        Args:
            made: (batch, mel, frame) columns of the decoder.
            base: (batch, mel, frame) the encoder's drawing.
            inside: (batch, 1, frame) one where the frame belongs to the piece, zero elsewhere.

        Returns:
            (batch, mel, frame).
        """
        # Whatever lies outside a piece counts as the zero padding that a shorter batch would have there.
        hidden = self.stem(torch.cat([made, base], dim=1) * inside)
        for block in self.blocks:
            hidden = block(hidden * inside)
        return made + self.head(self.norm(hidden.transpose(1, 2))).transpose(1, 2)

    def sample(self, inputs: HeadInputs, noise: torch.Tensor | None = None) -> torch.Tensor:
        """The corrected columns, (batch, mel, frame); there is no noise in them. `fields` holds the drawing."""
        return self(inputs.mean, inputs.fields, inputs.inside)

    def loss(
        self, inputs: HeadInputs, target: torch.Tensor, counted: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean absolute error over the frames that count, and the corrected columns; arguments as of the others."""
        improved = self.sample(inputs)
        return mean_error(improved, target, counted), improved


def mean_error(made: torch.Tensor, target: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of (batch, mel, frame) over the frames where `counted` (batch, 1, frame) is one."""
    # A mean over the frames of all rows together: short pieces do not weigh more per frame.
    weight = counted / (counted.sum().clamp(min=1) * target.shape[1])
    return ((made - target).abs() * weight).sum()


def token_shares(token_frames: int) -> torch.Tensor:
    """Weights of what a token makes of its own frames and of the nearest half of its neighbors': all that tell of a frame
    add up to one. (token_frames + 2 * half,) float32."""
    half = token_frames // 2
    width = token_frames + 2 * half
    place = (torch.arange(width) + 0.5 - width / 2).abs()
    rising = (1 - place / token_frames).clamp(min=0)
    # The frames of the neighbors lie a token away.
    total = rising.clone()
    if half:
        total[-2 * half :] += rising[: 2 * half]
        total[: 2 * half] += rising[-2 * half :]
    return rising / total


class HeadNet(nn.Module):
    """ConvNeXt blocks over tokens of `token_frames` columns, all modulated alike by what they are told.

    Each token makes its own frames and the nearest half of its neighbors', which are crossfaded: tokens with noise of
    their own would differ at every border otherwise.

    Args:
        config: sizes.
        token_frames: columns per token.
        fields: channels that are known of every frame.
        told: channels that are known of every token.
    """

    def __init__(self, config: MelReformerConfig, token_frames: int, fields: int, told: int) -> None:
        super().__init__()
        size, self.token_frames = config.head_size, token_frames
        self.stem = nn.Linear(fields * token_frames, size)
        self.told = nn.Linear(told, size)
        self.modulation = nn.Linear(size, 2 * size)
        dilations = [config.head_dilations[index % len(config.head_dilations)] for index in range(config.head_layers)]
        self.blocks = nn.ModuleList(ConvNeXtBlock(size, 3 * size, config.head_kernel, each) for each in dilations)
        self.norm = nn.LayerNorm(size)
        self.half = token_frames // 2
        self.out = nn.Linear(size, config.num_mel_bins * (token_frames + 2 * self.half))

    @property
    def reach(self) -> int:
        """Frames to each side that an output frame depends on, those of its own token included."""
        return self.token_frames * (sum(block.reach for block in self.blocks) + 2)

    def forward(self, fields: torch.Tensor, told: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """(batch, channel, frame), (batch, told, token) and (batch, 1, frame) -> (batch, mel, frame)."""
        # A token is inside a piece when its first frame is; beyond it there is the zero padding of a shorter batch.
        whole = inside[..., :: self.token_frames]
        told = self.told(told.transpose(1, 2))  # (batch, token, size)
        hidden = (self.stem(fold(fields * inside, self.token_frames)) + told).transpose(1, 2)
        modulation = self.modulation(nn.functional.silu(told)).chunk(2, dim=-1)
        for block in self.blocks:
            hidden = block(hidden * whole, modulation=modulation)
        made = self.out(self.norm(hidden.transpose(1, 2))) * whole.transpose(1, 2)
        return self._joined(made)[..., : fields.shape[-1]]

    def _joined(self, made: torch.Tensor) -> torch.Tensor:
        # (batch, token, mel * width) -> (batch, mel, frame): what tokens tell of the same frame is added.
        half, size = self.half, self.token_frames
        made = made.unflatten(2, (-1, size + 2 * half)).transpose(1, 2)
        made = made * token_shares(size).to(made)
        if not half:
            return made.flatten(2)
        before, own, after = made.split([half, size, half], dim=-1)  # (batch, mel, token, frame)
        # A token's first frames are told by the token before it too, its last ones by the next.
        from_before = nn.functional.pad(after[:, :, :-1], (0, size - half, 1, 0))
        from_next = nn.functional.pad(before[:, :, 1:], (size - half, 0, 0, 1))
        return (own + from_before + from_next).flatten(2)


class EnergyHead(nn.Module):
    """Noise per token makes the difference between one draw and the next; trained by an energy score.

    Args:
        config: sizes, and the patches of the score.
        token_frames: columns per token.
        fields: channels that are known of every frame.
        features: channels that are known of every token.
    """

    def __init__(self, config: MelReformerConfig, token_frames: int, fields: int, features: int) -> None:
        super().__init__()
        self.noise_channels = config.head_noise * token_frames
        self.column_channels, self.patches = config.head_column_noise, config.energy_patches
        noise = self.noise_channels + self.column_channels
        self.net = HeadNet(config, token_frames, fields, features + noise)
        self.num_noise = noise

    @property
    def reach(self) -> int:
        """Frames to each side that an output frame depends on."""
        return self.net.reach

    @property
    def last_weight(self) -> torch.Tensor:
        """Weight of the last layer, where gradients of losses are compared."""
        return self.net.out.weight

    def sample(self, inputs: HeadInputs, noise: torch.Tensor) -> torch.Tensor:
        """A draw.

        Args:
            inputs: what is known.
            noise: (batch, num_noise, token); zeros are the draw of temperature 0.

        Returns:
            (batch, mel, frame).
        """
        told = torch.cat([inputs.features, noise.to(inputs.features.dtype)], dim=1)
        return inputs.mean + self.net(inputs.fields, told, inputs.inside) * inputs.open * _RESIDUAL_SCALE

    def loss(
        self, inputs: HeadInputs, target: torch.Tensor, counted: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Energy score of as many draws as there is noise.

        Args:
            inputs: what is known.
            target: (batch, mel, frame).
            counted: (batch, 1, frame) one where frames are scored.
            noise: (batch, draw, num_noise, token).

        Returns:
            the score, a mean over the frames that count, and the first draw (batch, mel, frame).
        """
        count = noise.shape[1]
        draws = self.sample(inputs.repeated(count), noise.flatten(0, 1)).float().unflatten(0, (-1, count))
        scores = energy_score(draws, target.float(), counted, self.patches)
        share = counted.sum((1, 2)) / counted.sum().clamp(min=1)
        return (scores * share).sum(), draws[:, 0]


class FlowHead(nn.Module):
    """Flow matching: noise is moved to what is left over after the drawing, in `flow_steps` equal steps.

    The net tells the end of the way, from which the direction follows; untrained it tells that nothing is left over.

    Args:
        config: sizes and steps.
        token_frames: columns per token.
        fields: channels that are known of every frame.
        features: channels that are known of every token.
    """

    column_channels = 0

    def __init__(self, config: MelReformerConfig, token_frames: int, fields: int, features: int) -> None:
        super().__init__()
        bins = config.num_mel_bins
        self.noise_channels = self.num_noise = bins * token_frames
        self.steps, self.token_frames = config.flow_steps, token_frames
        self.net = HeadNet(config, token_frames, fields + bins, features + 2 * _TIME_HARMONICS)

    @property
    def reach(self) -> int:
        """Frames to each side that an output frame depends on, through all steps."""
        return self.steps * self.net.reach

    @property
    def last_weight(self) -> torch.Tensor:
        """Weight of the last layer, where gradients of losses are compared."""
        return self.net.out.weight

    def end(self, inputs: HeadInputs, place: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Where the way from `place` (batch, mel, frame) at `time` (batch,) leads to: (batch, mel, frame)."""
        angles = time[:, None] * torch.pi * torch.arange(1, _TIME_HARMONICS + 1, device=time.device)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)[..., None].to(inputs.features.dtype)
        told = torch.cat([inputs.features, waves.expand(-1, -1, inputs.features.shape[-1])], dim=1)
        fields = torch.cat([inputs.fields, place.to(inputs.fields.dtype)], dim=1)
        return self.net(fields, told, inputs.inside) * inputs.open / _RESIDUAL_SCALE

    def _start(self, noise: torch.Tensor, inputs: HeadInputs) -> torch.Tensor:
        # (batch, mel * token_frames, token) -> (batch, mel, frame); what was made before has nothing left over.
        return unfold(noise.transpose(1, 2), self.token_frames, inputs.mean.shape[-1]) * inputs.open

    def sample(self, inputs: HeadInputs, noise: torch.Tensor) -> torch.Tensor:
        """A draw; arguments as of `EnergyHead.sample`."""
        place = self._start(noise, inputs).to(inputs.mean.dtype)
        for step in range(self.steps):
            time = place.new_full((len(place),), step / self.steps)
            # Of what is left of the way, this step's share: the last step arrives.
            place = place + (self.end(inputs, place, time) - place) / (self.steps - step)
        return inputs.mean + place * _RESIDUAL_SCALE

    def loss(
        self, inputs: HeadInputs, target: torch.Tensor, counted: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean squared error of the direction at a random time of every row, and where the way seems to lead to.

        Arguments as of `EnergyHead.loss`; every draw is another time. The first number of a draw's noise is its time's.
        """
        count = noise.shape[1]
        inputs, noise = inputs.repeated(count), noise.flatten(0, 1)
        target, counted = target.repeat_interleave(count, 0), counted.repeat_interleave(count, 0)
        wanted = (target - inputs.mean).float() / _RESIDUAL_SCALE
        # A uniform time from a normal number, so that one noise decides everything random.
        time = 0.5 * (1 + torch.erf(noise[:, 0, 0].float() / 2**0.5))
        start = self._start(noise, inputs).float()
        place = start + (wanted - start) * time[:, None, None]
        end = self.end(inputs, place, time).float()
        # The direction is what is left of the way over the time that is left; near the end that would be any number.
        left = (1 - time).clamp(min=_LEAST_TIME_LEFT)[:, None, None]
        weight = counted / (counted.sum().clamp(min=1) * target.shape[1])
        loss = (((end - wanted) / left).square() * weight).sum()
        reached = inputs.mean + end * _RESIDUAL_SCALE
        return loss, reached.unflatten(0, (-1, count))[:, 0]


SAMPLERS = {"energy": EnergyHead, "flow": FlowHead}

__all__ = ["SAMPLERS", "EnergyHead", "FlowHead", "HeadInputs", "HeadNet", "PostNet", "mean_error"]
