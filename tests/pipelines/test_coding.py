"""Recordings to files of codes and back: what comes back, however it was cut, and what damage leaves."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
import torch

from melreformer_hf.models.codec_lm.configuration_codec_lm import CodecLMConfig
from melreformer_hf.models.codec_lm.modeling_codec_lm import CodecLMModel
from melreformer_hf.models.soundstream.configuration_soundstream import SoundStreamConfig
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel
from melreformer_hf.pipelines.coding import (
    LiveTimes,
    block_coder,
    decode_stream,
    encode_stream,
    fingerprint,
    round_trip,
)
from melreformer_hf.processing.codec_files import CodecFileError, CodecFileReader

RATE = 8000


def codec(seed: int = 0, **changes) -> SoundStreamModel:
    torch.manual_seed(seed)
    sizes = {"architecture": "spectral", "n_fft": 80, "synthesis_overlap": 7, "frame_size": 24}
    sizes |= {"frame_intermediate_size": 48, "num_frame_layers": 2}
    return SoundStreamModel(SoundStreamConfig.preset("tiny", **{**sizes, **changes})).eval()


def sound(samples: int, channels: int = 1) -> np.ndarray:
    drawn = 0.3 * np.random.default_rng(0).standard_normal((channels, samples)).astype(np.float32)
    return drawn[0] if channels == 1 else drawn


def encoded(model, waveform, rate=RATE, cut=1000, **settings) -> tuple[bytes, object]:
    file = io.BytesIO()
    pieces = np.split(waveform, range(cut, waveform.shape[-1], cut), axis=-1)
    coded = encode_stream(model, pieces, rate, file, **settings)
    assert coded.num_bytes == len(file.getvalue())
    return file.getvalue(), coded


def decoded(model, data: bytes, **settings) -> torch.Tensor:
    pieces = list(decode_stream(model, CodecFileReader(io.BytesIO(data)), **settings))
    return torch.cat(pieces, dim=-1) if pieces else torch.zeros(1, model.config.audio_channels, 0)


@torch.no_grad()
@pytest.mark.parametrize("channels", (1, 2))
@pytest.mark.parametrize("samples", (1, 31, 32, 9000, 20011))
def test_a_file_holds_what_the_whole_would_be(channels, samples):
    model, waveform = codec(audio_channels=channels), sound(samples, channels)
    data, coded = encoded(model, waveform)
    assert coded.num_samples == samples and coded.seconds == samples / RATE
    assert coded.kbps == pytest.approx(8 * len(data) / 1000 / (samples / RATE))
    given = torch.from_numpy(waveform).reshape(1, channels, -1)
    expected = model.decode(model.encode(given).audio_codes).audio_values[..., :samples]
    torch.testing.assert_close(decoded(model, data), expected, rtol=1e-4, atol=1e-5)
    again, _ = encoded(model, waveform, cut=77)
    assert again == data, "however the recording comes"


def test_bitrates_are_kept_and_levels_are_a_prefix():
    model, waveform = codec(), sound(24000)
    all_levels, one = (encoded(model, waveform, bandwidth=kbps) for kbps in (None, 1.25))
    readers = [CodecFileReader(io.BytesIO(data)) for data, _ in (all_levels, one)]
    codes = [torch.cat(list(reader), dim=1) for reader in readers]
    assert len(codes[0]) == 3 and len(codes[1]) == 1 and torch.equal(codes[0][:1], codes[1])
    assert one[1].kbps < 1.25 * 1.4, "header and checksums of three seconds"
    assert torch.isfinite(decoded(model, one[0])).all()
    with pytest.raises(ValueError, match="bandwidth must be at least 1.25 kbps"):
        encoded(model, waveform, bandwidth=1.0)


def test_blocks_are_as_long_as_told():
    model, waveform = codec(), sound(24000)  # 750 frames
    for seconds, sizes in ((1.0, [250, 250, 250]), (2.0, [500, 250]), (0.001, [1] * 750)):
        data, _ = encoded(model, waveform, block_seconds=seconds)
        assert [part.shape[1] for part in CodecFileReader(io.BytesIO(data))] == sizes


def test_other_rates_are_resampled():
    model = codec()
    seconds = np.arange(22050) / 22050
    tone = (0.5 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)
    told = []
    data, coded = encoded(model, tone, 22050, on_samples=told.append)
    assert abs(coded.num_samples - 8000) <= 1 and sum(told) == coded.num_samples
    assert decoded(model, data).shape == (1, 1, coded.num_samples)


def test_an_empty_recording_is_an_empty_sound():
    model = codec()
    data, coded = encoded(model, sound(0))
    assert coded.num_samples == 0 and coded.kbps == 0.0
    assert decoded(model, data).shape[-1] == 0


def test_what_breaks_off_is_refused_or_decoded_as_far_as_it_goes():
    model, waveform = codec(), sound(24000)
    data, _ = encoded(model, waveform, block_seconds=1.0)
    whole = decoded(model, data)
    for length in (len(data) - 1, len(data) - 100, len(data) // 2):
        with pytest.raises(CodecFileError, match="At byte"):
            decoded(model, data[:length])
        told = []
        part = decoded(model, data[:length], partial=True, on_damage=told.append)
        blocks = 3 if length == len(data) - 1 else 2 if length > len(data) // 2 else 1
        assert part.shape[-1] == 8000 * blocks and len(told) == 1 and told[0].startswith("At byte")
        torch.testing.assert_close(part, whole[..., : 8000 * blocks], rtol=0, atol=1e-6)


def test_another_codec_is_refused():
    data, _ = encoded(codec(), sound(500))
    assert fingerprint(codec()) == fingerprint(codec()) != fingerprint(codec(1))
    with pytest.raises(ValueError, match="decode it with the codec that encoded it"):
        decoded(codec(1), data)


def test_a_codec_that_cannot_stream_says_so():
    model = SoundStreamModel(SoundStreamConfig.preset("tiny", padding="original")).eval()
    with pytest.raises(ValueError, match='Streams need padding="causal"'):
        encoded(model, sound(500))


def language_model(seed: int = 0, **changes):
    torch.manual_seed(seed)
    sizes = {"num_quantizers": 3, "codebook_size": 32, "initializer_range": 0.3, "frame_code_size": 4}
    return CodecLMModel(CodecLMConfig.preset("tiny", **{**sizes, **changes})).eval().fixed_point()


@pytest.mark.parametrize("kbps", [None, 2.5])
def test_what_a_language_model_shortened_is_the_same_sound(kbps):
    model, waveform, lm = codec(), sound(6000), language_model()
    plain, _ = encoded(model, waveform, bandwidth=kbps)
    data, _ = encoded(model, waveform, bandwidth=kbps, block_seconds=0.2, entropy=lm)
    assert torch.equal(decoded(model, data, entropy=lm), decoded(model, plain))
    again, _ = encoded(model, waveform, bandwidth=kbps, block_seconds=0.2, cut=33, entropy=lm)
    assert again == data
    with pytest.raises(ValueError, match="shortened by the entropy coder"):
        decoded(model, data)
    with pytest.raises(ValueError, match="shortened by the entropy coder"):
        decoded(model, data, entropy=language_model(1))
    told = []
    part = decoded(model, data[:-30], partial=True, on_damage=told.append, entropy=lm)
    whole = decoded(model, plain)
    assert 0 < part.shape[-1] < 6000 and len(told) == 1
    torch.testing.assert_close(part, whole[..., : part.shape[-1]], rtol=0, atol=1e-6)


def test_damage_behind_right_checksums_ends_with_an_error_or_codes():
    """Blocks whose bytes were changed together with their checksums: the language model meets what nobody wrote."""
    model, lm, random = codec(), language_model(), np.random.default_rng(0)
    data, _ = encoded(model, sound(1200), block_seconds=1.0, entropy=lm)
    begin = CodecFileReader(io.BytesIO(data)).position
    size = int.from_bytes(data[begin + 4 : begin + 8], "big")
    for _ in range(10):
        payload = bytearray(data[begin + 12 : begin + 12 + size])
        payload[int(random.integers(size))] ^= 1 << int(random.integers(8))
        rest = data[begin + 16 + size :]
        changed = data[: begin + 12] + payload + zlib.crc32(payload).to_bytes(4, "big") + rest
        reader = CodecFileReader(io.BytesIO(changed))
        reader.coder = block_coder(lm, reader.header.codebook_sizes)
        try:
            codes = torch.cat(list(reader), dim=1)
        except CodecFileError as error:
            assert error.position == begin
        else:
            assert codes.shape == (3, 38) and 0 <= codes.min() and codes.max() < 32


def test_language_models_of_other_codes_are_refused():
    for changes, message in (({"num_quantizers": 2}, "up to 2 levels of 32"), ({"codebook_size": 16}, "of 16 codes")):
        with pytest.raises(ValueError, match=message):
            encoded(codec(), sound(500), entropy=language_model(**changes))


@torch.no_grad()
@pytest.mark.parametrize("samples", (0, 31, 9000))
def test_a_live_round_trip_is_what_a_file_gives_and_a_hop_late(samples):
    model, waveform = codec(), sound(samples)
    times = LiveTimes(32 / RATE)
    pieces = np.split(waveform, range(1000, samples, 1000))
    heard = list(round_trip(model, pieces, RATE, times, 2.5))
    data, _ = encoded(model, waveform, bandwidth=2.5)
    made = torch.cat(heard, dim=-1) if heard else torch.zeros(1, 1, 0)
    torch.testing.assert_close(made, decoded(model, data), rtol=1e-4, atol=1e-5)
    assert all(part.shape[-1] == 32 for part in heard[: samples // 32]) and times.count == samples // 32
    if samples == 9000:
        assert times.real_time_factor == pytest.approx(times.count * 0.004 / times.total)
        assert times.kept_up == (times.longest <= 0.004) and times.longest <= times.total


def test_a_hop_is_heard_before_the_next_one_is_there():
    model, asked = codec(), []

    def pieces():
        for hop in np.split(sound(320), 10):
            asked.append(len(asked))
            yield hop

    heard = round_trip(model, pieces(), RATE, LiveTimes(32 / RATE))
    for index in range(5):
        next(heard)
        assert len(asked) <= index + 2  # one more, for what a resampler would hold back
    with pytest.raises(ValueError, match="needs a codec that streams"):
        next(round_trip(torch.nn.Identity(), pieces(), RATE, LiveTimes(1.0)))
