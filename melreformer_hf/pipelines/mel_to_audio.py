"""The part of pipelines that end in a vocoder: from seconds to frames, from mels to sound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.pipelines.pipeline_utils import bare, check_seconds

CHUNK_FRAMES = 128  # in shorter ones a vocoder's stages compute more of their surroundings than of the chunk
# Loudest sample that `live_gain` aims at: the piece's own peaks are higher than those of its summary.
_SUMMARY_PEAK = 0.35
_MAX_GAIN = 100.0


class MelToAudio:
    """Second base of an `AudioPipeline` that has a component `vocoder`.

    Every number of frames or samples is an integer from the user's seconds on.
    """

    @property
    def mel_config(self) -> MelConfig:
        """The mel contract of all parts."""
        return bare(self.vocoder).config.mel_config

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the audio."""
        return self.mel_config.sampling_rate

    def frames_of(self, audio_length_in_s: float, name: str = "audio_length_in_s") -> int:
        """Frames of a duration in seconds, at least one.

        Args:
            audio_length_in_s: the duration.
            name: of the argument, for the error.

        Raises:
            ValueError: the duration is not a positive number of at most six hours.
        """
        return max(1, round(check_seconds(name, audio_length_in_s) * self.mel_config.frame_rate))

    def chunk_frames_of(self, chunk_length_in_s: float | None) -> int:
        """Frames of a chunk; `None` is a length that is neither slow to come nor slow to make."""
        return CHUNK_FRAMES if chunk_length_in_s is None else self.frames_of(chunk_length_in_s, "chunk_length_in_s")

    def make_audible(
        self,
        mels: Iterable[torch.Tensor],
        num_frames: torch.Tensor,
        callback_on_mel: Callable[[torch.Tensor], None] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Sound of mels that come in pieces: what every way of rendering goes through.

        Args:
            mels: (batch, mel, frame) log-mels, one after another in time.
            num_frames: (batch,) lengths of the rows in frames.
            callback_on_mel: told every piece of the mel before it becomes audible, in float32.

        Yields:
            (batch, channel, sample) float32; rows shorter than the longest end in silence.
        """
        vocoder, position = bare(self.vocoder), 0

        def told() -> Iterator[torch.Tensor]:
            for mel in mels:
                if callback_on_mel is not None:
                    callback_on_mel(mel.float())
                yield mel.to(vocoder.dtype)

        for chunk in vocoder.stream(told(), module=self.vocoder):
            end = position + chunk.shape[-1]
            samples = num_frames.to(chunk.device)[:, None] * self.mel_config.hop_length  # (batch, 1)
            inside = torch.arange(position, end, device=chunk.device) < samples
            position = end
            yield (chunk.float() * inside)[:, None]

    @torch.no_grad()
    def live_gain(self, mel: torch.Tensor) -> float:
        """A gain that makes a piece loud enough to hear, known before its first sound: models play as softly as the
        recordings that they learned from.

        Args:
            mel: (1, mel, column) a summary of the piece, its idea: made audible, its loudest sample tells about how
                loud the piece will be. Louder samples of the piece are for the caller to clip.
        """
        mel = mel.to(self._execution_device, bare(self.vocoder).dtype)
        peak = self.vocoder(mel, return_dict=True).waveform.float().abs().max().item()
        return min(_SUMMARY_PEAK / max(peak, 1e-5), _MAX_GAIN)


__all__ = ["CHUNK_FRAMES", "MelToAudio"]
