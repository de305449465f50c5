"""Recipe `codec_lm`: how likely a codec's codes are, so that files of them become smaller.

EnCodec's language model (arXiv 2210.13438, section 3.4) on codes of a frozen codec, made anew from every crop. With
`frame_code_size` codes are also predicted from the earlier ones of their own frame.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import nn

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.data.streams import ItemStream
from melreformer_hf.models.codec_lm.configuration_codec_lm import CodecLMConfig
from melreformer_hf.models.codec_lm.modeling_codec_lm import CodecLMModel
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel
from melreformer_hf.pipelines.codecs import load_codec
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.recipes.audio import AudioOptions, AudioRecipe, length_of
from melreformer_hf.training.recipes.base import Phase, StepContext, Trainable, Validation

_POSITIONS = 1 << 16  # frames from which the clock of a crop is drawn: streams are long


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecLMOptions(AudioOptions):
    """Settings of the codec_lm recipe.

    Raises:
        ValueError: a field breaks its rule.
    """

    codec: str = option("codec-tiny", "the codec: bundled name, folder or Hub id of a SoundStreamModel")
    preset: str = option("small", "preset of CodecLMConfig that --model.NAME values change")
    crop_frames: int = option(250, "codec frames per training crop")
    whole_share: float = option(0.5, "share of the batches with all levels of codes; others have fewer, drawn evenly")
    gain_augmentation_db: float = option(12.0, "crops are scaled by a random gain of up to this many dB down")
    validation_crops: int = option(12, "held-out crops that are measured")
    validation_frames: int = option(500, "length of each in codec frames")
    validation_kbps: tuple[float, ...] = option(
        (), "nominal bitrates that are measured; default: a quarter, half, and all levels"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop_frames", "validation_crops", "validation_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"options.{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.whole_share <= 1:
            raise ValueError(f"options.whole_share must be in [0, 1], got {self.whole_share}.")
        if self.gain_augmentation_db < 0:
            raise ValueError(f"options.gain_augmentation_db must not be negative, got {self.gain_augmentation_db}.")


class CodecLMRecipe(AudioRecipe):
    """Train the language model of a codec's codes (CodecLMModel) on crops of recordings."""

    name = "codec_lm"
    best_metric = "share"
    Options = CodecLMOptions

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        codec = load_codec(self.options.codec)
        if not isinstance(codec, SoundStreamModel):
            raise ValueError(f"options.codec must be a SoundStreamModel, got {self.options.codec}, which is none.")
        self._codec = codec.requires_grad_(False)
        self.codec_config = codec.config
        sizes = set(self.codec_config.codebook_sizes)
        if len(sizes) > 1:
            raise ValueError(f"options.codec must have codebooks of one size, got {sorted(sizes)}.")
        told = {"num_quantizers": self.codec_config.num_quantizers, "codebook_size": sizes.pop()}
        self.model_config = CodecLMConfig.preset(self.options.preset, **{**told, **config.model})
        for name, value in told.items():
            if getattr(self.model_config, name) != value:
                raise ValueError(f"model.{name} must be the codec's, {value}, got {getattr(self.model_config, name)}.")
        self.channels = self.codec_config.audio_channels
        self.mel = MelConfig(sampling_rate=self.codec_config.sampling_rate)
        self._waveforms: list[torch.Tensor] | None = None

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_codec": None}  # worker processes cut crops only

    def trainables(self) -> dict[str, Trainable]:
        return {"model": Trainable(CodecLMModel(self.model_config))}

    def frozen(self) -> dict[str, nn.Module]:
        return {"codec": self._codec}

    def stream(self, rank: int, world_size: int) -> ItemStream:
        recordings, hop = self.recordings("train"), self.codec_config.hop_length
        samples = self.options.crop_frames * hop
        with length_of("crop_frames", self.options.crop_frames):
            return recordings.crops(
                samples, samples, seed=self.config.seed, multiple=hop, rank=rank, world_size=world_size
            )

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        decibels = -self.options.gain_augmentation_db * torch.rand((), generator=generator)
        return {"waveform": item["waveform"].reshape(self.channels, -1) * 10 ** (decibels / 20)}

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        waveform, draw = batch["waveform"], context.generator
        depth = self.codec_config.num_quantizers
        if torch.rand((), generator=draw) >= self.options.whole_share:
            depth = int(torch.randint(1, depth + 1, (), generator=draw))
        with torch.no_grad():
            codes = self.modules["codec"].encode(waveform, num_quantizers=depth).audio_codes
        first = torch.randint(_POSITIONS, (len(codes),), generator=draw).to(codes.device)
        loss = self.modules["model"](labels=codes, position_offset=first).loss
        yield Phase("model", loss, {"loss": loss, "bits_per_code": loss.detach() / math.log(2)})

    def prepare_validation(self) -> None:
        if self._waveforms is None:
            samples = self.options.validation_frames * self.codec_config.hop_length
            with length_of("validation_frames", self.options.validation_frames):
                crops = self.recordings(self.validation_split).fixed_crops(samples, self.options.validation_crops)
            self._waveforms = [crop["waveform"].reshape(1, self.channels, -1) for crop in crops]

    def _levels(self) -> list[int]:
        config, levels = self.codec_config, self.codec_config.num_quantizers
        if self.options.validation_kbps:
            return sorted({config.quantizers_within(kbps) for kbps in self.options.validation_kbps})
        return sorted({max(1, levels // 4), max(1, levels // 2), levels})

    def validate(self, model: nn.Module) -> Validation:
        self.prepare_validation()
        codec, device = self.modules["codec"], next(model.parameters()).device
        codes = [codec.encode(waveform.to(device)).audio_codes for waveform in self._waveforms]
        metrics, shares = {}, []
        for count in self._levels():
            nats = sum(model(labels=row[:, :count]).loss.item() for row in codes) / len(codes)
            nominal = self.codec_config.bandwidth(count)
            bits = nats / math.log(2) * count * self.codec_config.frame_rate / 1000
            metrics[f"kbps/{nominal:g}_kbps"] = bits
            shares.append(bits / nominal)
        metrics["share"] = sum(shares) / len(shares)
        told = ", ".join(f"{value:.2f} for {name[5:-5]}" for name, value in metrics.items() if name != "share")
        return Validation(metrics, summary=f"kbit/s: {told}", counts={"crops": len(codes)})


__all__ = ["CodecLMOptions", "CodecLMRecipe"]
