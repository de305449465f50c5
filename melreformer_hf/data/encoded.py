"""Parts of encoded recordings: lengths come from headers, and only what is asked for is decoded."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections.abc import Iterator

import numpy as np
import torch

from melreformer_hf.audio.io import resample, to_channels

# The resampler's filter reaches about this far; what lies around a part is decoded with it and cut off again.
_MARGIN_SECONDS = 0.02
# An MP3 file's header may promise a few frames more than there are.
_TOLERANCE = 4096
# An MP3 frame borrows bits from up to nine frames before it; a decoder that begins without them is wrong for a while.
_MP3_PREROLL = 10 * 1152


@contextlib.contextmanager
def _opened(source: bytes | str, name: str) -> Iterator:
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            yield file
    except (soundfile.LibsndfileError, RuntimeError) as error:
        # Without the library's name of the place: an address in memory, by which one complaint would look like many.
        reason = getattr(error, "error_string", error)
        raise ValueError(f"{name} could not be decoded ({reason}). Supported: WAV, FLAC, OGG and MP3.") from error


@dataclasses.dataclass
class EncodedAudio:
    """One encoded recording.

    Args:
        name: for messages.
        source: content of the file, or its path.

    Raises:
        ValueError: when it is read and cannot be decoded, or holds NaN or infinity.
    """

    name: str
    source: bytes | str
    _header: tuple[int, int, int] | None = None

    @property
    def header(self) -> tuple[int, int, int]:
        """(frames, frames per second, channels)."""
        if self._header is None:
            with _opened(self.source, self.name) as file:
                self._header = (file.frames, file.samplerate, file.channels)
        return self._header

    def num_samples(self, sampling_rate: int) -> int:
        """Length at `sampling_rate` samples per second."""
        frames, rate, _ = self.header
        return frames * sampling_rate // rate

    def read(self, start: int, length: int, sampling_rate: int, channels: int) -> torch.Tensor:
        """`length` samples from `start`, both at `sampling_rate`: (samples,), of several channels (channel, samples)."""
        frames, rate, _ = self.header
        # `step` frames are exactly `stride` samples: a margin of whole steps is cut off without a fraction of a sample.
        step, stride = rate // math.gcd(rate, sampling_rate), sampling_rate // math.gcd(rate, sampling_rate)
        first = start * rate // sampling_rate
        steps = 0 if rate == sampling_rate else math.ceil(_MARGIN_SECONDS * rate / step)
        lead = min(steps, first // step)
        needed = math.ceil((length + 1) * rate / sampling_rate) if rate != sampling_rate else length
        with _opened(self.source, self.name) as file:
            place = first - lead * step
            before = min(place, _MP3_PREROLL) if file.format == "MP3" else 0
            file.seek(place - before)
            data = file.read(before + lead * step + needed + steps * step, dtype="float32", always_2d=True)[before:]
        if len(data) < min(lead * step + needed, frames - first + lead * step) - _TOLERANCE:
            raise ValueError(f"{self.name} ends before its header says.")
        if not np.isfinite(data).all():
            raise ValueError(f"{self.name} holds NaN or infinite samples.")
        waveform = resample(to_channels(data, channels, self.name), rate, sampling_rate)
        waveform = waveform[..., lead * stride : lead * stride + length]
        missing = length - waveform.shape[-1]
        if missing:
            waveform = np.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(0, missing)])
        return torch.from_numpy(np.ascontiguousarray(waveform))


__all__ = ["EncodedAudio"]
