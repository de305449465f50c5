"""Separation of tensors, streams and files: rates, channels, sums, memory, and what is refused."""

from __future__ import annotations

import doctest
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch

from melreformer_hf.models.band_split_separator.configuration_band_split_separator import BandSplitSeparatorConfig
from melreformer_hf.models.band_split_separator.modeling_band_split_separator import BandSplitSeparatorModel
from melreformer_hf.models.frame_transformer.configuration_frame_transformer import FrameTransformerConfig
from melreformer_hf.models.frame_transformer.modeling_frame_transformer import FrameTransformerModel
from melreformer_hf.nn.stems import Stems
from melreformer_hf.pipelines import pipeline_separation
from melreformer_hf.pipelines.pipeline_separation import SeparationPipeline
from melreformer_hf.pipelines.stem_pictures import StemPictures

RATE = 22050


def pipeline(**overrides) -> SeparationPipeline:
    torch.manual_seed(0)
    return SeparationPipeline(BandSplitSeparatorModel(BandSplitSeparatorConfig.preset("test", **overrides)).eval())


def sound(samples: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    return (0.2 * np.random.default_rng(seed).standard_normal((samples, channels))).astype(np.float32)


def test_the_example_of_the_docstring():
    assert doctest.testmod(pipeline_separation).failed == 0


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("model_channels", [1, 2])
def test_at_the_models_rate_the_stems_are_the_models(channels, model_channels):
    pipe, audio = pipeline(num_audio_channels=model_channels), torch.from_numpy(sound(5000, channels).T)
    output = pipe(audio)
    if model_channels == 1:
        expected = torch.cat([pipe.separator.separate(row[None]).vocals for row in audio])
    else:
        expected = pipe.separator.separate(audio.expand(2, -1)).vocals[: max(channels, 1)]
        expected = expected if channels == 2 else pipe.separator.separate(audio.expand(2, -1)).vocals.mean(0)[None]
    torch.testing.assert_close(output.vocals, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output.vocals + output.instrumental, audio, rtol=0, atol=1e-6)
    assert output.sampling_rate == RATE == pipe.sampling_rate


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_other_rates_come_back_at_their_own(rate):
    pipe = pipeline()
    time = np.arange(rate) / rate
    tone = torch.from_numpy(0.3 * np.sin(2 * np.pi * 440 * time)).float()
    output = pipe(tone, sampling_rate=rate)
    assert output.vocals.shape == (1, rate) and output.sampling_rate == rate
    torch.testing.assert_close(output.vocals + output.instrumental, tone[None], rtol=0, atol=1e-4)
    # In place: what the model would have made of the same tone at its own rate.
    own = pipe(torch.from_numpy(0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).float())
    middle = slice(rate // 4, rate // 2)
    phase = np.exp(-2j * np.pi * 440 * time[middle])
    theirs = (output.vocals[0, middle].numpy() * phase).mean()
    ours = (
        own.vocals[0, RATE // 4 : RATE // 2].numpy()
        * np.exp(-2j * np.pi * 440 * np.arange(RATE) / RATE)[RATE // 4 : RATE // 2]
    ).mean()
    assert abs(theirs - ours) < 0.02 * abs(ours)


def test_what_the_model_cannot_hear_stays_in_the_instrumental():
    time = np.arange(44100) / 44100
    whistle = torch.from_numpy(0.3 * np.sin(2 * np.pi * 15000 * time)).float()
    output = pipeline()(whistle, sampling_rate=44100)
    assert output.vocals[:, 2000:-2000].abs().max() < 1e-3


@pytest.mark.parametrize("causal", [True, False])
def test_a_stream_in_pieces_equals_the_whole(causal):
    pipe, audio = pipeline(causal=causal), sound(4000)
    whole = pipe(torch.from_numpy(audio.T), sampling_rate=32000)
    sizes = [1, 199, 1000, 2800]
    pieces = np.split(audio.T, np.cumsum(sizes)[:-1], axis=1)
    for block in (None, 7):
        stems = list(pipe.stream(iter(pieces), 32000, 2, block))
        vocals = torch.cat([piece.vocals for piece in stems], dim=-1)
        torch.testing.assert_close(vocals, whole.vocals, rtol=1e-4, atol=1e-5)
        instrumental = torch.cat([piece.instrumental for piece in stems], dim=-1)
        torch.testing.assert_close(instrumental, whole.instrumental, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_files_hold_stems_that_add_up(tmp_path, suffix):
    audio = sound(16000)
    soundfile.write(tmp_path / "song.wav", audio, 32000, subtype="FLOAT")
    told = []
    paths = pipeline().separate_file(tmp_path / "song.wav", tmp_path / "stems", suffix, told.append)
    assert [path.name for path in paths] == [f"vocals{suffix}", f"instrumental{suffix}"]
    assert sorted(path.name for path in (tmp_path / "stems").iterdir()) == sorted(path.name for path in paths)
    stems = [soundfile.read(path, always_2d=True) for path in paths]
    assert all(rate == 32000 for _, rate in stems)
    assert sum(piece.vocals.shape[-1] for piece in told) == 16000
    if suffix in (".wav", ".flac"):
        assert np.abs(stems[0][0] + stems[1][0] - audio).max() < 1e-4


def test_loud_stems_are_not_clipped_in_wav(tmp_path):
    audio = 4 * sound(9000)
    soundfile.write(tmp_path / "loud.wav", audio, RATE, subtype="FLOAT")
    vocals, instrumental = pipeline().separate_file(tmp_path / "loud.wav", tmp_path / "stems")
    made = soundfile.read(vocals)[0] + soundfile.read(instrumental)[0]
    assert np.abs(made).max() > 1.5 and np.abs(made - audio).max() < 1e-4


def test_an_output_is_saved(tmp_path):
    output = pipeline()(torch.from_numpy(sound(3000).T))
    paths = output.save(tmp_path / "new", ".flac")
    np.testing.assert_allclose(soundfile.read(paths[0])[0].T, output.vocals.numpy(), atol=4e-5)


def test_memory_does_not_grow_with_the_length():
    """What is held between pieces: ten times the length, and no more of it."""
    pipe, peaks = pipeline(causal=True), []
    for count in (4, 40):
        pieces = (sound(2000, 1, seed)[:, 0] for seed in range(count))
        stream = pipe.stream(pieces, 44100, 1, block_frames=64)
        next(stream)
        tracemalloc.start()
        for _ in stream:
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 100_000


def test_bad_recordings_have_an_answer(tmp_path):
    pipe = pipeline()

    def separated(audio: np.ndarray, rate: int = RATE, **kind) -> list:
        soundfile.write(tmp_path / "a.wav", audio, rate, **(kind or {"subtype": "FLOAT"}))
        return [
            soundfile.read(path, always_2d=True)[0] for path in pipe.separate_file(tmp_path / "a.wav", tmp_path / "o")
        ]

    silent = separated(np.zeros((3000, 2), dtype=np.float32))
    assert not silent[0].any() and not silent[1].any()
    half = sound(3000)
    half[:, 1] = 0
    vocals, instrumental = separated(half)
    assert vocals[:, 0].any() and not vocals[:, 1].any() and not instrumental[:, 1].any()
    one = separated(sound(1))
    assert one[0].shape == (1, 2) and np.abs(one[0] + one[1] - sound(1)).max() < 1e-4
    low = separated(sound(3000, 1), 8000)
    assert np.abs(low[0] + low[1] - sound(3000, 1)).max() < 1e-4
    for path in (tmp_path / "o").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"a.wav must have 1 or 2 channels, got 8"):
        separated(sound(3000, 8))
    for wrong in (np.nan, np.inf):
        broken = sound(100000)
        broken[-1, 0] = wrong
        with pytest.raises(ValueError, match="a.wav holds NaN or infinite"):
            separated(broken)
    with pytest.raises(ValueError, match="a.wav holds no samples"):
        separated(np.zeros((0, 1), dtype=np.float32))
    (tmp_path / "a.wav").write_bytes(b"no audio")
    with pytest.raises(ValueError, match="could not be decoded"):
        pipe.separate_file(tmp_path / "a.wav", tmp_path / "o")
    with pytest.raises(FileNotFoundError, match="b.wav"):
        pipe.separate_file(tmp_path / "b.wav", tmp_path / "o")
    assert not list((tmp_path / "o").iterdir()), "what fails leaves no files"


def test_a_truncated_mp3_gives_what_is_there(tmp_path):
    audio = sound(60000, 1)
    soundfile.write(tmp_path / "song.mp3", audio, RATE, format="MP3")
    data = (tmp_path / "song.mp3").read_bytes()
    (tmp_path / "cut.mp3").write_bytes(data[: len(data) // 2])
    there, _ = soundfile.read(tmp_path / "cut.mp3", always_2d=True)
    vocals, instrumental = pipeline().separate_file(tmp_path / "cut.mp3", tmp_path / "stems")
    made = soundfile.read(vocals)[0] + soundfile.read(instrumental)[0]
    assert 20000 < len(made) < 45000
    np.testing.assert_allclose(made[: len(there)], there[: len(made), 0], atol=1e-4)


def test_wrong_tensors_are_refused():
    pipe = pipeline()
    for audio, words in [
        (torch.zeros(3, 100), "audio must have 1 or 2 channels, got 3"),
        (torch.zeros(1, 2, 100), r"audio must be \(samples,\)"),
        (torch.zeros(0), r"audio must be \(samples,\)"),
        (torch.zeros(100, dtype=torch.int16), "floating point"),
        (torch.full((100,), torch.nan), "finite"),
    ]:
        with pytest.raises(ValueError, match=words):
            pipe(audio)
    with pytest.raises(ValueError, match="sampling_rate must be a positive number of samples per second, got -1"):
        pipe(torch.zeros(100), sampling_rate=-1)
    with pytest.raises(ValueError, match="must have 1 or 2 channels, got 3"):
        next(pipe.stream(iter([]), 22050, 3))


def test_a_pipeline_is_saved_and_loaded(tmp_path):
    pipe, audio = pipeline(), torch.from_numpy(sound(2000).T)
    expected = pipe(audio).vocals
    pipe.save_pretrained(tmp_path / "pipe")
    assert "melreformer separate" in (tmp_path / "pipe" / "README.md").read_text()
    assert SeparationPipeline.from_pretrained(tmp_path / "pipe")(audio).vocals.equal(expected)
    pipe.separator.save_pretrained(tmp_path / "model")
    assert SeparationPipeline.from_pretrained(tmp_path / "model")(audio).vocals.equal(expected)
    (tmp_path / "model" / "config.json").write_text('{"model_type": "melreformer_note_ear"}')
    with pytest.raises(ValueError, match="must hold a separator .* got the model type 'melreformer_note_ear'"):
        SeparationPipeline.from_pretrained(tmp_path / "model")


def test_the_frame_transformer_separates_in_the_same_pipeline():
    torch.manual_seed(0)
    model = FrameTransformerModel(FrameTransformerConfig.preset("tiny")).eval()
    audio = torch.from_numpy(sound(9000, 1).T)
    output = SeparationPipeline(model)(audio, sampling_rate=44100)
    assert output.vocals.shape == (1, 9000)
    torch.testing.assert_close(output.vocals + output.instrumental, audio, rtol=0, atol=1e-6)


def test_pictures_show_recording_stems_and_share(tmp_path):
    output = pipeline()(torch.from_numpy(sound(150000, 1).T))
    pictures = StemPictures(RATE, 150000)
    for begin in range(0, 150000, 7000):
        pictures.add(Stems(output.vocals[:, begin : begin + 7000], output.instrumental[:, begin : begin + 7000]))
    panels = pictures.panels()
    assert [panel.title for panel in panels] == [
        "recording",
        "vocals",
        "share of the vocals, none to all",
        "instrumental",
    ]
    assert panels[0].mel.shape == (128, 585) and panels[0].seconds == pytest.approx(585 * 256 / RATE)
    low, high = (
        pick([panel.mel.min() if pick is min else panel.mel.max() for panel in panels]) for pick in (min, max)
    )
    share = (panels[2].mel - low) / (high - low)
    voice, band = panels[1].mel.exp(), panels[3].mel.exp()
    torch.testing.assert_close(share, voice / (voice + band), rtol=1e-3, atol=1e-3)
    short = StemPictures(RATE, 10)
    short.add(Stems(torch.zeros(1, 10), torch.zeros(1, 10)))
    assert short.save(tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
