"""What a codec does to held-out sounds, at several bitrates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.metrics import (
    codebook_perplexity,
    codebook_usage,
    entropy_bits_per_second,
    log_mel_l1,
    multi_resolution_stft_distance,
    si_sdr,
)
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel

_QUIETEST = 1e-4  # rms: softer targets have no signal-to-noise ratio worth a mean


@dataclasses.dataclass
class CodecFindings:
    """What was measured.

    Args:
        metrics: `mel_l1/R_kbps`, `mr_stft/R_kbps`, `si_sdr/R_kbps` (dB), `entropy_kbps/R_kbps` per nominal bitrate R;
            `usage` and `perplexity_share` (mean over levels, all levels), `score` (mean of mel_l1 + mr_stft).
        bitrates: the nominal ones, in kbit/s.
        examples: the first sound and what became of it, (channel, sample), by name.
    """

    metrics: dict[str, float]
    bitrates: list[float]
    examples: dict[str, torch.Tensor]


class CodecMeasures:
    """Encodes and decodes the same sounds again and again.

    Args:
        waveforms: (channel, sample) each.
        mel: in which log-mel distances are measured.
    """

    def __init__(self, waveforms: Sequence[torch.Tensor], mel: MelConfig) -> None:
        self.waveforms, self.mel = list(waveforms), mel

    @torch.no_grad()
    def __call__(self, model: SoundStreamModel, levels: Sequence[int]) -> CodecFindings:
        """Measure at numbers of levels.

        Args:
            model: in evaluation mode.
            levels: of the quantizer, rising.
        """
        device, config = next(model.parameters()).device, model.config
        codes = [model.encode(waveform[None].to(device)).audio_codes for waveform in self.waveforms]
        metrics, bitrates, examples = {}, [], {"true": self.waveforms[0]}
        for count in levels:
            kbps = round(config.bandwidth(count), 3)
            decoded = [
                model.decode(row[:, :count]).audio_values[0, :, : waveform.shape[-1]].float().cpu()
                for row, waveform in zip(codes, self.waveforms, strict=True)
            ]
            found = self._distances(decoded)
            found["entropy_kbps"] = (
                sum(
                    entropy_bits_per_second(self._level(codes, level), config.codebook_sizes[level], config.frame_rate)
                    for level in range(count)
                )
                / 1000
            )
            metrics |= {f"{name}/{kbps:g}_kbps": value for name, value in found.items()}
            examples[f"{kbps:g}_kbps"] = decoded[0]
            bitrates.append(kbps)
        tables = [(self._level(codes, level), size) for level, size in enumerate(config.codebook_sizes)]
        metrics["usage"] = sum(codebook_usage(*table).item() for table in tables) / len(tables)
        metrics["perplexity_share"] = sum(codebook_perplexity(*table).item() / table[1] for table in tables) / len(
            tables
        )
        metrics["score"] = sum(metrics[f"{name}/{kbps:g}_kbps"] for kbps in bitrates for name in ("mel_l1", "mr_stft"))
        metrics["score"] /= len(bitrates)
        return CodecFindings(metrics, bitrates, examples)

    @staticmethod
    def _level(codes: Sequence[torch.Tensor], level: int) -> torch.Tensor:
        """(1, 1, all frames of all sounds)."""
        return torch.cat([row[:, level : level + 1] for row in codes], dim=-1)

    def _distances(self, decoded: Sequence[torch.Tensor]) -> dict[str, float]:
        """Means over the sounds; channels count as sounds."""
        pairs = list(zip(decoded, self.waveforms, strict=True))
        mel = [log_mel_l1(made, true, self.mel).item() for made, true in pairs]
        stft = [multi_resolution_stft_distance(made, true).item() for made, true in pairs]
        loud = [(made, true) for made, true in pairs if true.square().mean().sqrt() > _QUIETEST]
        ratio = [si_sdr(made, true).mean().item() for made, true in loud]
        found = {"mel_l1": sum(mel) / len(mel), "mr_stft": sum(stft) / len(stft)}
        return {**found, "si_sdr": sum(ratio) / len(ratio)} if ratio else found


__all__ = ["CodecFindings", "CodecMeasures"]
