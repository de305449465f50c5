"""The idea model: diffusion over fixed-size idea mels, told how long the music shall be; a UNet, or a transformer of columns.

Source: the idea stage of TariqAHassan/MelReformer's README (image diffusion over resized mels); blocks by diffusers'
`UNet2DModel`; space-to-depth patches keep it cheap on CPUs. The duration enters as an embedding added to the time
step's, and durations are drawn from a log-normal prior that training fits. A learned bias per frequency row tells the
convolutions, which would treat all bands alike, which band they are at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin, SchedulerMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from melreformer_hf._text import suggest
from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.idea_unet.calibration_idea import (
    MarginalCorrection,
    SpreadCorrection,
    measure_marginals,
    measure_spread,
)
from melreformer_hf.models.idea_unet.conditioning_idea import DurationEmbedding
from melreformer_hf.models.idea_unet.schedules_idea import make_scheduler, set_spaced_timesteps
from melreformer_hf.models.idea_unet.transformer_idea import ColumnTransformer
from melreformer_hf.models.idea_unet.whitening_idea import IdeaWhitening
from melreformer_hf.nn.configuration import mel_config_of
from melreformer_hf.nn.ideas import (
    IdeaCourse,
    IdeaEdit,
    IdeaSample,
    check_lengths,
    log2_of_lengths,
    row_generators_of,
)

# What `diffusers.training_utils.EMAModel.save_pretrained` writes into the config of the model that it averages.
EMA_KEYS = frozenset(
    {"decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"}
)

# (step, timestep, tensors) -> tensors to go on with, and whether to go on.
OnStep = Callable[[int, torch.Tensor, dict[str, torch.Tensor]], tuple[dict[str, torch.Tensor], bool]]

BACKBONES = ("unet", "transformer")
_EDITING_STEPS = 20
PRESETS: dict[str, dict] = {
    "tiny": {},
    "columns_tiny": {"backbone": "transformer", "whitening_knots": 7},
    "columns_base": {
        "backbone": "transformer",
        "whitening_knots": 7,
        "columns_per_token": 2,
        "hidden_size": 768,
        "num_layers": 12,
        "num_attention_heads": 12,
    },
    "base": {"patch_size": (4, 4), "block_out_channels": (128, 256, 384, 384), "layers_per_block": 2},
}


@dataclass
class IdeaUNetOutput(BaseOutput):
    """Output of `IdeaUNetModel`.

    Args:
        sample: (batch, 1, mel, column) what the scheduler's prediction type asks for.
    """

    sample: torch.Tensor


class IdeaUNetModel(HubMixin, ModelMixin, ConfigMixin):
    """Denoises ideas.

    Args:
        mel: the mel contract as `MelConfig.to_dict()`; `None` is the package's own.
        num_columns: columns of an idea.
        patch_size: (bands, columns) that become channels before the first convolution.
        block_out_channels: channels per level of the UNet; each further level halves both axes.
        layers_per_block: residual blocks per level.
        attention_levels: how many of the deepest levels attend.
        norm_num_groups: groups of the normalizations; divides all channels.
        dropout: of the residual blocks.
        mel_mean: subtracted from log-mels.
        mel_std: then divided by, so that ideas have about unit variance.
        log2_frames_mean: mean of the prior over log2 of the number of frames.
        log2_frames_std: its standard deviation.
        log2_frames_min: shortest duration of the prior.
        log2_frames_max: longest duration of the prior.
        noise_power: how noise levels are spaced, in training and in sampling: 1 evenly in the schedule's time, more puts
            more of them near pure noise, where an idea's loudness and outline are decided (see `set_spaced_timesteps`).
        leap_timestep: sampling's first step leaps from pure noise at least down to this time step, however many steps
            there are; `None` does not. Above it a network that was trained for a short time takes the mean of the noise
            for the idea's: every step there makes loud ideas louder and soft ones silent.
        backbone: `unet`, or `transformer` (of columns): the sizes from `patch_size` to `dropout` are the former's, those
            from `columns_per_token` to `num_attention_heads` the latter's.
        columns_per_token: columns that are one token.
        hidden_size: width.
        num_layers: blocks.
        num_attention_heads: heads; the width of each must be even.
        whitening_knots: durations whose statistics whiten ideas (`IdeaWhitening`, in place of `mel_mean` and `mel_std`);
            at least 2, or 0 to whiten nothing.
        calibrated_steps: numbers of steps, rising, after which whitened ideas are given back the spread that so few steps
            take (see `calibrated`); `None` changes nothing.
        log2_frames_quantiles: the prior over log2 of the number of frames by its values at even shares, from the shortest
            to the longest, in place of the normal one; `None` keeps that.
        sampling_steps: denoising steps of an idea that is drawn from noise alone, where `sample` is not told.

    Raises:
        ValueError: sizes that do not fit one another; the message names the rule.

    Example:
        >>> import torch
        >>> from melreformer_hf import IdeaUNetModel
        >>> unet = IdeaUNetModel().eval()
        >>> noise = torch.randn(1, 1, 128, 256)
        >>> unet(noise, torch.tensor([999]), torch.tensor([11.0])).sample.shape
        torch.Size([1, 1, 128, 256])
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        mel: dict | None = None,
        num_columns: int = 256,
        patch_size: tuple[int, int] = (8, 4),
        block_out_channels: tuple[int, ...] = (64, 80, 96),
        layers_per_block: int = 1,
        attention_levels: int = 2,
        norm_num_groups: int = 16,
        dropout: float = 0.0,
        mel_mean: float = -5.5,
        mel_std: float = 3.0,
        log2_frames_mean: float = 11.0,
        log2_frames_std: float = 1.0,
        log2_frames_min: float = 8.0,
        log2_frames_max: float = 14.0,
        noise_power: float = 1.0,
        leap_timestep: int | None = None,
        backbone: str = "unet",
        columns_per_token: int = 4,
        hidden_size: int = 192,
        num_layers: int = 6,
        num_attention_heads: int = 4,
        whitening_knots: int = 0,
        log2_frames_quantiles: tuple[float, ...] | None = None,
        calibrated_steps: tuple[int, ...] | None = None,
        sampling_steps: int = 20,
    ) -> None:
        super().__init__()
        if sampling_steps < 1:
            raise ValueError(f"sampling_steps must be at least 1, got {sampling_steps}.")
        self._check_statistics()
        self._check_prior()
        self.num_mel_bins = self.mel_config.num_mel_bins
        self.whitening = IdeaWhitening(self.num_mel_bins, num_columns, whitening_knots) if whitening_knots else None
        self.correction = None
        if calibrated_steps is not None:
            self.correction = SpreadCorrection(calibrated_steps, whitening_knots, self.num_mel_bins, num_columns)
            self.marginals = MarginalCorrection(len(calibrated_steps), self.num_mel_bins)
        if backbone not in BACKBONES:
            raise ValueError(f"backbone must be one of {BACKBONES}, got {backbone!r}.")
        if backbone == "transformer":
            self._check_tokens()
            self.duration = DurationEmbedding(hidden_size)
            self.transformer = ColumnTransformer(
                self.num_mel_bins, num_columns, columns_per_token, hidden_size, num_layers, num_attention_heads
            )
            return
        self._check_sizes(num_columns, patch_size, block_out_channels, layers_per_block, norm_num_groups)
        rows = self.num_mel_bins // patch_size[0]
        channels = patch_size[0] * patch_size[1]
        levels = len(block_out_channels)
        # Attention is quadratic in positions: only the deepest, smallest levels have it.
        attending = [levels - index <= attention_levels for index in range(levels)]
        self.frequency_bias = nn.Parameter(torch.zeros(channels, rows, 1))
        self.duration = DurationEmbedding(4 * block_out_channels[0])
        self.unet = UNet2DModel(
            sample_size=(rows, num_columns // patch_size[1]),
            in_channels=channels,
            out_channels=channels,
            layers_per_block=layers_per_block,
            block_out_channels=tuple(block_out_channels),
            down_block_types=tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in attending),
            up_block_types=tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attending)),
            attention_head_dim=32,
            norm_num_groups=norm_num_groups,
            dropout=dropout,
            class_embed_type="identity",
        )

    def _check_sizes(self, columns: int, patch: tuple, channels: tuple, layers: int, groups: int) -> None:
        bins = self.mel_config.num_mel_bins
        if len(patch) != 2 or min(patch) < 1:
            raise ValueError(f"patch_size must hold two positive numbers (bands, columns), got {patch}.")
        if not channels or layers < 1:
            raise ValueError(f"block_out_channels and layers_per_block must not be empty, got {channels}, {layers}.")
        for name, size, step in (("num_mel_bins", bins, patch[0]), ("num_columns", columns, patch[1])):
            whole = step * 2 ** (len(channels) - 1)
            if size < whole or size % whole:
                raise ValueError(
                    f"{name} must be a multiple of {whole} (patch_size times two per further level), got {size}."
                )
        if groups < 1 or any(width < 1 or width % groups for width in channels):
            raise ValueError(f"norm_num_groups={groups} must divide every one of block_out_channels={channels}.")
        if not 0 <= self.config.attention_levels <= len(channels):
            raise ValueError(
                f"attention_levels must be between 0 and the {len(channels)} levels of block_out_channels, "
                f"got {self.config.attention_levels}."
            )

    def _check_tokens(self) -> None:
        config = self.config
        for name in ("columns_per_token", "hidden_size", "num_layers", "num_attention_heads"):
            if getattr(config, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}.")
        if config.num_columns % config.columns_per_token:
            raise ValueError(
                f"columns_per_token must divide num_columns={config.num_columns}, got {config.columns_per_token}."
            )
        if config.hidden_size % (2 * config.num_attention_heads):
            raise ValueError(
                "hidden_size must be a multiple of twice num_attention_heads="
                f"{config.num_attention_heads}, got {config.hidden_size}."
            )

    def _check_prior(self) -> None:
        knots, quantiles = self.config.whitening_knots, self.config.log2_frames_quantiles
        if knots < 0 or knots == 1:
            raise ValueError(f"whitening_knots must be 0 or at least 2, got {knots}.")
        if knots and self.config.log2_frames_min == self.config.log2_frames_max:
            raise ValueError("log2_frames_min must be below log2_frames_max where whitening_knots lie between them.")
        steps = self.config.calibrated_steps
        if steps is not None and (not knots or not steps or steps[0] < 1 or list(steps) != sorted(set(steps))):
            raise ValueError(
                f"calibrated_steps must hold positive numbers that rise, with whitening_knots, got {steps} and {knots}."
            )
        if quantiles is None:
            return
        rising = all(first <= second for first, second in itertools.pairwise(quantiles))
        if len(quantiles) < 2 or not all(map(math.isfinite, quantiles)) or not rising:
            raise ValueError(f"log2_frames_quantiles must hold at least 2 finite numbers that rise, got {quantiles}.")

    def _check_statistics(self) -> None:
        names = ("mel_mean", "mel_std", "log2_frames_mean", "log2_frames_std", "log2_frames_min", "log2_frames_max")
        values = {name: getattr(self.config, name) for name in names}
        if not all(math.isfinite(value) for value in values.values()):
            raise ValueError(f"mel_* and log2_frames_* must be finite numbers, got {values}.")
        if values["mel_std"] <= 0 or values["log2_frames_std"] <= 0:
            raise ValueError(
                f"mel_std and log2_frames_std must be positive, got {values['mel_std']} and "
                f"{values['log2_frames_std']}."
            )
        if values["log2_frames_min"] > values["log2_frames_max"]:
            raise ValueError(
                "log2_frames_min must not exceed log2_frames_max, got "
                f"{values['log2_frames_min']} and {values['log2_frames_max']}."
            )
        power = self.config.noise_power
        if not (math.isfinite(power) and power >= 1.0):
            raise ValueError(f"noise_power must be a number of at least 1, got {power!r}.")
        leap = self.config.leap_timestep
        if leap is not None and (isinstance(leap, bool) or not isinstance(leap, int) or leap < 1):
            raise ValueError(f"leap_timestep must be a positive whole number or None, got {leap!r}.")

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **kwargs: object) -> tuple[dict, dict, dict]:
        """What a config file gives to `__init__`; a key that is no argument raises, where diffusers would ignore it.

        Raises:
            ValueError: `config_dict` holds an unknown key.
        """
        known = cls._get_init_keys(cls) - {"self"}
        for key in config_dict:
            if key in known or key in EMA_KEYS or key.startswith("_") or key == "quantization_config":
                continue
            message = f"{cls.__name__} has no argument {key!r} (received {config_dict[key]!r})."
            raise ValueError(f"{message} {suggest(key, known)}".rstrip())
        return super().extract_init_dict(config_dict, **kwargs)

    @classmethod
    def preset(cls, name: str, **overrides: object) -> IdeaUNetModel:
        """A size by name (`tiny` or `base`), with single arguments replaced by `overrides`."""
        if name not in PRESETS:
            raise ValueError(f"IdeaUNetModel.preset: name must be one of {sorted(PRESETS)}, got {name!r}.")
        return cls(**{**PRESETS[name], **overrides})

    @property
    def mel_config(self) -> MelConfig:
        """The mel contract of ideas."""
        return mel_config_of(self.config.mel)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        log2_num_frames: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> IdeaUNetOutput | tuple:
        """Predict what the scheduler asks for.

        Args:
            sample: (batch, 1, mel, column) noisy idea, normalized.
            timestep: scalar or (batch,).
            log2_num_frames: (batch,) log2 of the durations in frames, NaN where unknown; `None` if all are.
            return_dict: whether to return a named output.

        Raises:
            ValueError: `sample` or the durations have another shape.
        """
        bins, columns = self.num_mel_bins, self.config.num_columns
        if sample.ndim != 4 or tuple(sample.shape[1:]) != (1, bins, columns):
            raise ValueError(f"sample must have shape (batch, 1, {bins}, {columns}), got {tuple(sample.shape)}.")
        if log2_num_frames is None:
            log2_num_frames = sample.new_full(sample.shape[:1], math.nan, dtype=torch.float32)
        if log2_num_frames.shape != sample.shape[:1]:
            raise ValueError(
                f"log2_num_frames must have shape ({sample.shape[0]},), got {tuple(log2_num_frames.shape)}."
            )
        # Standard units of the prior, so that the Fourier features cover what occurs.
        duration = (log2_num_frames.float() - self.config.log2_frames_mean) / self.config.log2_frames_std
        told = self.duration(duration)
        if self.config.backbone == "transformer":
            predicted = self.transformer(sample[:, 0], timestep, told)[:, None]
        else:
            patches = self._to_patches(sample) + self.frequency_bias
            predicted = self._from_patches(self.unet(patches, timestep, class_labels=told).sample)
        return IdeaUNetOutput(predicted) if return_dict else (predicted,)

    def _to_patches(self, sample: torch.Tensor) -> torch.Tensor:
        high, wide = self.config.patch_size
        batch, _, bins, columns = sample.shape
        # (batch, row, high, column, wide) -> (batch, high * wide, row, column): a patch becomes channels.
        split = sample.reshape(batch, bins // high, high, columns // wide, wide)
        return split.permute(0, 2, 4, 1, 3).reshape(batch, high * wide, bins // high, columns // wide)

    def _from_patches(self, patches: torch.Tensor) -> torch.Tensor:
        high, wide = self.config.patch_size
        batch, _, rows, columns = patches.shape
        # (batch, high, wide, row, column) -> (batch, row, high, column, wide): the inverse.
        split = patches.reshape(batch, high, wide, rows, columns).permute(0, 3, 1, 4, 2)
        return split.reshape(batch, 1, rows * high, columns * wide)

    def place_of(self, log2_num_frames: torch.Tensor | None, batch: int) -> torch.Tensor:
        """(batch,) places of durations between the shortest (0) and the longest (1), NaN where unknown."""
        if log2_num_frames is None:
            return torch.full((batch,), math.nan)
        low, high = self.config.log2_frames_min, self.config.log2_frames_max
        return (log2_num_frames.float() - low) / (high - low)

    def normalize_idea(self, idea: torch.Tensor, log2_num_frames: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, mel, column) log-mel to the (batch, 1, mel, column) that the diffusion works on.

        Args:
            idea: log-mels.
            log2_num_frames: (batch,) log2 of their durations, which whitening depends on; NaN or `None` where unknown.
        """
        if self.whitening is not None:
            place = self.place_of(log2_num_frames, len(idea)).to(idea.device)
            return self.whitening.whiten(idea, place)[:, None]
        return ((idea - self.config.mel_mean) / self.config.mel_std)[:, None]

    def denormalize_idea(self, sample: torch.Tensor, log2_num_frames: torch.Tensor | None = None) -> torch.Tensor:
        """The inverse of `normalize_idea` for the same durations."""
        if self.whitening is not None:
            return self.whitening.color(sample[:, 0], self.place_of(log2_num_frames, len(sample)).to(sample.device))
        return sample[:, 0] * self.config.mel_std + self.config.mel_mean

    def sample_log2_num_frames(self, batch: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Durations from the prior, (batch,) float32, on the generator's device."""
        device, quantiles = generator.device if generator is not None else None, self.config.log2_frames_quantiles
        if quantiles is not None:
            places = torch.rand(batch, generator=generator, device=device) * (len(quantiles) - 1)
            table = torch.tensor(quantiles, dtype=torch.float32, device=device)
            below = places.long().clamp(max=len(quantiles) - 2)
            return torch.lerp(table[below], table[below + 1], places - below)
        drawn = torch.randn(batch, generator=generator, device=device)
        drawn = drawn * self.config.log2_frames_std + self.config.log2_frames_mean
        return drawn.clamp(self.config.log2_frames_min, self.config.log2_frames_max)

    def _draw(
        self, rows: list[torch.Generator | None], latents: torch.Tensor | None, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise (batch, 1, mel, column) and log2 durations (batch,), row after row from the row's own generator."""
        shape = (1, 1, self.mel_config.num_mel_bins, self.config.num_columns)
        if latents is not None and (
            tuple(latents.shape) != (len(rows), *shape[1:]) or not latents.is_floating_point()
        ):
            raise ValueError(
                f"latents must be floating point of shape {(len(rows), *shape[1:])}, got {tuple(latents.shape)} of "
                f"{latents.dtype}."
            )
        noise, durations = [], []
        for row in rows:
            if latents is None:
                noise.append(torch.randn(shape, generator=row, device=row.device if row is not None else "cpu"))
            durations.append(self.sample_log2_num_frames(1, row))
        drawn = torch.cat(noise) if latents is None else latents.float()
        return drawn.to(device), torch.cat(durations).to(device)

    @torch.no_grad()
    def calibrated(
        self,
        scheduler: SchedulerMixin,
        steps: Sequence[int] = (4, 8, 20),
        ideas_per_duration: int = 32,
        seed: int = 0,
        ideas: torch.Tensor | None = None,
        num_frames: torch.Tensor | None = None,
    ) -> IdeaUNetModel:
        """A copy that gives its ideas back the spread that few steps of this scheduler take, as measured by drawing.

        Args:
            scheduler: that ideas are drawn with.
            steps: numbers of steps that are measured; between them it is interpolated.
            ideas_per_duration: ideas that are drawn for each of them and every knot of the whitening.
            seed: of what is drawn.
            ideas: (idea, mel, column) log-mels of what it was trained on, whose values every band shall have; `None`
                leaves the values as they are.
            num_frames: (idea,) durations of these.

        Raises:
            ValueError: the model does not whiten, `steps` do not rise, or `ideas` have no durations.
        """
        if (ideas is None) != (num_frames is None):
            raise ValueError(
                "ideas and num_frames must be given together: ideas are drawn for the durations of these."
            )
        model = type(self)(**{**self.config, "calibrated_steps": tuple(steps)}).eval().to(self.device)
        fresh = {
            name: value for name, value in model.state_dict().items() if name.startswith(("correction.", "marginals."))
        }
        model.load_state_dict(self.state_dict() | fresh)
        measure_spread(model, model.correction, model.whitening, scheduler, ideas_per_duration, seed)
        if ideas is not None:
            measure_marginals(model, scheduler, ideas, num_frames, seed)
        return model

    def steps_of(self, edit: IdeaEdit | None = None) -> int:
        """Denoising steps where nobody says how many."""
        # Few steps are calibrated for ideas drawn from noise alone; what is denoised half-way has no calibration.
        return self.config.sampling_steps if edit is None else max(self.config.sampling_steps, _EDITING_STEPS)

    @torch.no_grad()
    def sample(
        self,
        batch_size: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_frames: int | torch.Tensor | None = None,
        *,
        scheduler: SchedulerMixin,
        num_inference_steps: int | None = None,
        latents: torch.Tensor | None = None,
        device: torch.device | str | None = None,
        module: Callable[..., IdeaUNetOutput] | None = None,
        on_step: OnStep | None = None,
        edit: IdeaEdit | None = None,
    ) -> IdeaSample:
        """Draw ideas and durations for the expansion.

        Args:
            batch_size: ideas.
            generator: drives noise and durations, row after row; or one per row.
            num_frames: durations in frames, one or (batch,), in place of drawn ones.
            scheduler: takes the steps; `make_scheduler()` or its like.
            num_inference_steps: denoising steps; default `steps_of(edit)`.
            latents: (batch, 1, mel, column) noise of unit variance to begin with, in place of noise that is drawn.
            device: where the model runs; default: where it is.
            module: called in place of the model: the model in a wrapper, such as `torch.compile(model)`.
            on_step: told `(step, timestep, tensors)` after every step, where `tensors` holds `latents` and
                `num_frames`; gives tensors to go on with, and whether to.
            edit: given ideas, which are noised and denoised in place of noise alone, in all columns or in some. A
                scheduler that cannot be told single time steps (DDIM) rounds the strength down to one of its own.

        Raises:
            ValueError: an argument breaks its rule.
        """
        device = self.device if device is None else torch.device(device)
        noise, told = self._draw(row_generators_of(generator, batch_size), latents, device)
        if num_frames is None:
            lengths = told.exp2().round().long().clamp(min=1)
        else:
            lengths = check_lengths(num_frames, batch_size, device)
            told = log2_of_lengths(lengths)
        config, run = self.config, self if module is None else module
        steps = self.steps_of(edit) if num_inference_steps is None else num_inference_steps
        set_spaced_timesteps(scheduler, steps, config.noise_power, device, config.leap_timestep)
        edit = None if edit is None else edit.checked((batch_size, *noise.shape[2:]), device)
        course = IdeaCourse(noise, scheduler, edit, None if edit is None else self.normalize_idea(edit.ideas, told))
        latents = course.begin()
        for step, timestep in enumerate(course.timesteps):
            model_input = scheduler.scale_model_input(latents, timestep).to(self.dtype)
            predicted = run(model_input, timestep, told, return_dict=True).sample.float()
            latents = course.keep(scheduler.step(predicted, timestep, latents, return_dict=False)[0], step)
            if on_step is None:
                continue
            tensors, go_on = on_step(step, timestep, {"latents": latents, "num_frames": lengths})
            latents = tensors["latents"]
            if tensors["num_frames"] is not lengths:
                lengths = check_lengths(tensors["num_frames"], batch_size, device)
                told = log2_of_lengths(lengths)
            if not go_on:
                break
        ideas = self._corrected(latents, told, steps if course.strength == 1 else None)
        return IdeaSample(course.finish(ideas.clamp(min=self.mel_config.floor_value)), lengths)

    def _corrected(self, latents: torch.Tensor, told: torch.Tensor, steps: int | None) -> torch.Tensor:
        """(batch, mel, column) log-mels of latents that so many steps drew; `None`: not from noise alone."""
        if self.correction is None or steps is None:
            return self.denormalize_idea(latents, told)
        hats = self.whitening.hats(self.place_of(told, len(latents)))
        corrected = self.correction(latents[:, 0], steps, hats, self.whitening.cosine.float())
        return self.marginals(self.denormalize_idea(corrected[:, None], told), self.correction.between(steps))


__all__ = ["IdeaUNetModel", "IdeaUNetOutput", "make_scheduler", "set_spaced_timesteps"]
