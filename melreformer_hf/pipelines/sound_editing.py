"""What a pipeline of tokens does with recordings: tokens of them and back, gaps repaired, one turned into another."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch.nn.functional import pad

from melreformer_hf.audio.io import read_audio
from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.nn.token_drawing import TokenSampling, draw_tokens, order_around
from melreformer_hf.pipelines.outputs import SoundPipelineOutput
from melreformer_hf.pipelines.pipeline_utils import bare, check_count, check_number, row_generators
from melreformer_hf.pipelines.splicing import FADE_FRAMES, crossfade, join_mels
from melreformer_hf.processing.feature_extraction_mel import check_waveform

# A path, or a waveform (sample,) and its rate.
Recording: TypeAlias = "str | os.PathLike | tuple[np.ndarray | torch.Tensor, int]"
# Columns next to a gap, on both sides together, without which there is nothing that it could be filled from.
_LEAST_CONTEXT = 2


class SoundEditing:
    """Part of `TokenGenerationPipeline` that begins with recordings."""

    def waveform_of(self, recording: Recording) -> torch.Tensor:
        """A recording (sample,) at the pipeline's rate.

        Raises:
            ValueError: no mono floating point waveform, or of another rate.
        """
        rate = self.sampling_rate
        if isinstance(recording, (str, os.PathLike)):
            recording = read_audio(recording, rate)
        waveform, given = recording
        if given != rate:
            raise ValueError(
                f"recording must have {rate} samples per second, the rate of this pipeline, got {given}. Read it with "
                "melreformer_hf.audio.io.read_audio(path, rate)."
            )
        return check_waveform(waveform).to(self._execution_device)

    def mel_of(self, recording: Recording) -> torch.Tensor:
        """Log-mel (mel, frame) of a recording, in whole frames.

        Raises:
            ValueError: as `waveform_of`, or shorter than a column of tokens.
        """
        waveform, hop = self.waveform_of(recording), self.mel_config.hop_length
        frames = len(waveform) // hop
        if frames < self.column_frames:
            least = self.column_frames / self.mel_config.frame_rate
            raise ValueError(
                f"recording must last at least {least:.2f} s, got {frames / self.mel_config.frame_rate:.2f}."
            )
        return log_mel_spectrogram(waveform[: frames * hop].float(), self.mel_config)[:, :frames]

    @torch.no_grad()
    def codes_of(self, mel: torch.Tensor) -> torch.Tensor:
        """Codes (1, row, column) of a log-mel (mel, frame) of whole columns."""
        vqvae = bare(self.mel_vqvae)
        return vqvae.encode(mel[None].to(vqvae.device, vqvae.dtype))

    @torch.no_grad()
    def mel_of_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Log-mel (batch, mel, frame) float32 of codes (batch, row, column)."""
        return bare(self.mel_vqvae).decode(codes).float().clamp(min=self.mel_config.floor_value)

    def sounds_of(
        self,
        codes: torch.Tensor,
        mels: torch.Tensor | None = None,
        output_type: str = "pt",
        peak_db: float | None = -1.0,
    ) -> SoundPipelineOutput:
        """Make codes (batch, row, column) audible; `mels` are theirs, where they were decoded already."""
        mels = self.mel_of_codes(codes) if mels is None else mels
        frames = torch.full((len(mels),), mels.shape[-1])
        kinds = {"mel": mels, "tokens": codes}
        audios = kinds.get(output_type)
        if audios is None:
            audios = torch.cat(list(self.calmly(self.make_audible([mels], frames))), dim=-1)
        return SoundPipelineOutput(
            audios=audios.cpu().numpy() if output_type == "np" else audios,
            num_samples=frames * self.mel_config.hop_length,
            sampling_rate=self.sampling_rate,
            peak_db=peak_db,
            mels=mels,
            codes=codes,
            num_frames=frames,
        )

    def reconstruct(self, recording: Recording) -> SoundPipelineOutput:
        """A recording as its tokens say it: what the pipeline can hear at all.

        Raises:
            ValueError: as `mel_of`.
        """
        mel = self.mel_of(recording)
        return self.sounds_of(self.codes_of(self._whole_columns(mel)), peak_db=None)

    def _whole_columns(self, mel: torch.Tensor) -> torch.Tensor:
        """(mel, frame) with silence behind it, up to a whole column."""
        missing = -mel.shape[-1] % self.column_frames
        return pad(mel, (0, missing), value=self.mel_config.floor_value)

    # Latents

    def check_has_latents(self) -> None:
        """Raise ValueError where the pipeline has no latents."""
        if self.gpt_vae is None:
            raise ValueError("This pipeline has no gpt_vae, which latents belong to: it was saved without one.")

    def sample_latents(
        self, count: int = 1, generator: torch.Generator | list[torch.Generator] | None = None
    ) -> torch.Tensor:
        """Latents (count, hidden) of the prior, for `latents=`.

        Raises:
            ValueError: the pipeline has none.
        """
        self.check_has_latents()
        check_count("count", count)
        width = bare(self.gpt_vae).config.hidden_size
        rows = [torch.randn(width, generator=row) for row in row_generators(generator, count)]
        return torch.stack(rows).to(self._execution_device)

    @torch.no_grad()
    def latents_of(self, recording: Recording) -> torch.Tensor:
        """Latent (1, hidden) of a recording: the middle of what the encoder thinks of it.

        What is longer than the encoder sees is cut, what is shorter ends in silence.

        Raises:
            ValueError: the pipeline has no latents, or as `mel_of`.
        """
        self.check_has_latents()
        vae = bare(self.gpt_vae)
        frames = self.max_columns(vae) * self.column_frames
        mel = self.mel_of(recording)[:, :frames]
        mel = pad(mel, (0, frames - mel.shape[-1]), value=self.mel_config.floor_value)
        return vae.encode(bare(self.mel_vqvae).codes_to_tokens(self.codes_of(mel))).mean

    def interpolate(
        self,
        first: Recording,
        second: Recording,
        steps: int = 5,
        *,
        sampling: TokenSampling | None = None,
        generator: torch.Generator | None = None,
    ) -> SoundPipelineOutput:
        """Sounds on the way from one recording to another, both ends as the latent says them.

        Args:
            first: where it begins.
            second: where it ends.
            steps: sounds, at least 2.
            sampling: how tokens are drawn; `None` takes the likeliest. Every step draws with the same numbers.
            generator: of the drawing.

        Raises:
            ValueError: the pipeline has no latents, too few steps, or as `mel_of`.
        """
        check_count("steps", steps)
        ends = [self.latents_of(end) for end in (first, second)]
        latents = bare(self.gpt_vae).interpolate(*ends, steps)
        (row,) = row_generators(generator, 1)
        seed = None if row is None else int(torch.randint(2**62, (1,), generator=row))
        same = None if seed is None else [torch.Generator().manual_seed(seed) for _ in range(steps)]
        return self(latents=latents, sampling=sampling or TokenSampling(do_sample=False), generator=same)

    # Gaps

    def repair(
        self,
        recording: Recording,
        spans: Sequence[tuple[float, float]],
        class_label: str | int | None = None,
        *,
        sampling: TokenSampling | None = None,
        generator: torch.Generator | None = None,
    ) -> SoundPipelineOutput:
        """Fill seconds of a recording from what is on both of their sides, and keep the rest.

        Outside the spans the result has the recording's own samples, but for a crossfade of 4 frames on each side.

        Args:
            recording: of any length; what is in the spans is not listened to.
            spans: (from, to) in seconds, in any order.
            class_label: what it is, where that is known.
            sampling: how tokens are drawn.
            generator: of the drawing.

        Raises:
            ValueError: an argument breaks its rule, a span that is longer than the model sees, or a model that was not
                trained for gaps.
        """
        if self.class_gpt is None or not bare(self.class_gpt).config.any_order:
            raise ValueError("This pipeline cannot repair: that takes a class_gpt with any_order=True.")
        labels, hop = self.class_labels(class_label), self.mel_config.hop_length
        waveform = self.waveform_of(recording).float()
        mel = self.mel_of((waveform, self.sampling_rate))
        waveform = waveform[: mel.shape[-1] * hop].clone()
        places = self._places(spans, mel.shape[-1])
        (row,) = row_generators(generator, 1)
        for begin, end in places:
            mel[:, begin:end] = _bridged(mel, begin, end)
        for begin, end in places:
            self._fill(waveform, mel, (begin, end), places, labels, sampling or TokenSampling(), row)
        frames = torch.tensor([mel.shape[-1]])
        return SoundPipelineOutput(
            audios=waveform[None, None],
            num_samples=frames * hop,
            sampling_rate=self.sampling_rate,
            peak_db=None,
            mels=mel[None],
            codes=self.codes_of(self._whole_columns(mel)),
            num_frames=frames,
        )

    def _places(self, spans: Sequence[tuple[float, float]], frames: int) -> list[tuple[int, int]]:
        """Spans in frames, in order."""
        rate, places = self.mel_config.frame_rate, []
        longest = self.max_columns(self.class_gpt) - _LEAST_CONTEXT
        for start, end in spans:
            for name, value in (("from", start), ("to", end)):
                check_number(f"spans' {name}", value, 0, frames / rate + 1 / rate, "which lies within the recording")
            # Whole frames that have anything of the gap in their windows' middles.
            begin, last = math.floor(start * rate), min(math.ceil(end * rate), frames)
            if last <= begin:
                raise ValueError(f"spans must end after they begin, got {start!r} to {end!r}.")
            columns = -(-last // self.column_frames) - begin // self.column_frames
            if columns > longest:
                raise ValueError(
                    f"A span must be shorter than {(longest - 1) * self.column_frames / rate:.2f} s, got {end - start:.2f}: "
                    "the model sees no more at once."
                )
            places.append((begin, last))
        places.sort()
        if not places or any(second[0] < first[1] for first, second in zip(places, places[1:], strict=False)):
            raise ValueError(f"spans must be at least one and must not overlap, got {list(spans)}.")
        return places

    @torch.no_grad()
    def _fill(
        self,
        waveform: torch.Tensor,
        mel: torch.Tensor,
        span: tuple[int, int],
        places: list[tuple[int, int]],
        labels: torch.Tensor,
        sampling: TokenSampling,
        row: torch.Generator | None,
    ) -> None:
        """Fill one span of a waveform (sample,) and of its mel (mel, frame), both in place."""
        size, hop, (begin, end) = self.column_frames, self.mel_config.hop_length, span
        width = self.max_columns(self.class_gpt) * size
        # As much on either side, and all of it inside the recording where that is long enough.
        first = max(0, min((begin + end - width) // 2, mel.shape[-1] - width))
        near = pad(
            mel[:, first : first + width],
            (0, max(width - (mel.shape[-1] - first), 0)),
            value=self.mel_config.floor_value,
        )
        hidden = torch.zeros(width, dtype=torch.bool, device=mel.device)
        for start, stop in places:
            # Spans before this one are filled already.
            if start >= begin:
                hidden[max(start - first, 0) : max(stop - first, 0)] = True
        vqvae = bare(self.mel_vqvae)
        tokens = vqvae.codes_to_tokens(self.codes_of(near))  # (1, token)
        missing = hidden.unflatten(0, (-1, size)).any(1).repeat_interleave(self.num_rows)
        order = order_around(missing)
        given = tokens[:, order[: int((~missing).sum())]]
        config = bare(self.class_gpt).config
        without = {"class_labels": torch.full_like(labels, config.num_classes)} if config.null_class else None
        drawn = draw_tokens(
            self.class_gpt, {"class_labels": labels}, given, int(missing.sum()), sampling,
            None if row is None else [row], without, order[None],
        )  # fmt: skip
        tokens[:, missing] = torch.stack(list(drawn), 1)
        made = self.mel_of_codes(vqvae.tokens_to_codes(tokens))
        length = min(width, mel.shape[-1] - first)
        inner, floor = (begin - first, end - first), self.mel_config.floor_value
        joined = torch.cat(list(join_mels(near[:, :length], [made[..., :length]], inner, floor)), dim=-1)[0]
        mel[:, begin:end] = joined[:, inner[0] : inner[1]]
        sound = torch.cat(list(self.make_audible([joined[None]], torch.tensor([length]))), dim=-1)[0, 0]
        self._splice(waveform, sound.to(waveform), span, first * hop)

    def _splice(self, waveform: torch.Tensor, sound: torch.Tensor, span: tuple[int, int], offset: int) -> None:
        """Put a part of a sound into a waveform, in place, with crossfades outside of the span."""
        hop = self.mel_config.hop_length
        begin, end = (place * hop for place in span)
        fade = FADE_FRAMES * hop
        before, after = max(begin - fade, offset), min(end + fade, offset + len(sound))
        waveform[before:begin] = crossfade(waveform[before:begin], sound[before - offset : begin - offset])
        waveform[begin:end] = sound[begin - offset : end - offset]
        waveform[end:after] = crossfade(sound[end - offset : after - offset], waveform[end:after])


def _bridged(mel: torch.Tensor, begin: int, end: int) -> torch.Tensor:
    """Frames of a mel (mel, frame) from one border of a span to the other, on straight lines: (mel, end - begin)."""
    left = mel[:, max(begin - 1, 0)] if begin else mel[:, min(end, mel.shape[-1] - 1)]
    right = mel[:, end] if end < mel.shape[-1] else left
    share = (torch.arange(end - begin, device=mel.device) + 1) / (end - begin + 1)
    return left[:, None] + (right - left)[:, None] * share


__all__ = ["Recording", "SoundEditing"]
