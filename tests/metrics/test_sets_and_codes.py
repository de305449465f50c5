"""Frechet distance, durations, neighbors and codebooks against values worked out by hand."""

from __future__ import annotations

import math

import numpy
import pytest
import torch

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.metrics import (
    AudioModelEmbedding,
    LogMelStatistics,
    NoteEarEmbedding,
    bits_per_second,
    codebook_perplexity,
    codebook_usage,
    duration_ks,
    entropy_bits_per_second,
    frechet_audio_distance,
    frechet_distance,
    nearest_neighbor_distance,
)
from melreformer_hf.metrics.reading import joined_codes
from melreformer_hf.models.note_ear.configuration_note_ear import NoteEarConfig
from melreformer_hf.models.note_ear.modeling_note_ear import NoteEarModel


def test_frechet_distance_in_one_dimension_is_exact():
    # (m1 - m2)^2 + (s1 - s2)^2 with unbiased deviations: 1, 3, 5 has mean 3 and s 2; 0, 12 has mean 6 and s sqrt(72).
    first, second = torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([[0.0], [12.0]])
    assert frechet_distance(first, second) == pytest.approx(9 + (math.sqrt(72) - 2) ** 2)


@pytest.mark.parametrize(("count", "size"), [(200, 5), (40, 8)])
def test_frechet_distance_agrees_with_the_matrix_root(count, size):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(size, size, generator=generator)
    first = torch.randn(count, size, generator=generator)
    second = torch.randn(count + 3, size, generator=generator) @ mix + 1
    moments = [(values.mean(0).numpy(), numpy.cov(values.double().numpy().T)) for values in (first, second)]
    roots = numpy.sqrt(numpy.linalg.eigvals(moments[0][1] @ moments[1][1]).real.clip(0))
    trace = numpy.trace(moments[0][1] + moments[1][1]) - 2 * roots.sum()
    expected = ((moments[0][0] - moments[1][0]) ** 2).sum() + trace
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_is_stable_for_fewer_vectors_than_features():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 500, generator=generator) * 1e-3 + 100
    assert frechet_distance(vectors, vectors) == pytest.approx(0.0, abs=1e-12)
    assert frechet_distance(vectors + 2, vectors) == pytest.approx(4 * 500, rel=1e-6)
    # Orthogonal spreads: nothing cancels, the distance is the sum of the variances.
    first, second = torch.zeros(2, 4), torch.zeros(2, 4)
    first[:, 0], second[:, 1] = torch.tensor([-1.0, 1.0]), torch.tensor([-2.0, 2.0])
    assert frechet_distance(first, second) == pytest.approx(2 + 8)


def sounds(count: int, seed: int, level: float = 0.1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6000 + 500 * index, generator=generator) * level for index in range(count)]


def test_frechet_audio_distance_tells_sets_apart_and_prints_what_is_needed_to_read_it():
    real = sounds(8, 0)
    same, louder = (frechet_audio_distance(made, real, 22050) for made in (sounds(5, 1), sounds(5, 2, 0.2)))
    assert same.distance < 2 * same.floor < louder.distance
    # Level times two: log(2) in the mean of every one of 32 bands, the rest is chance.
    assert louder.distance == pytest.approx(32 * math.log(2) ** 2, rel=0.1)
    assert str(same) == (
        f"Frechet distance {same.distance:.4g} (n = 5 generated, 8 real; embedding log-mel statistics, 32 bands, "
        f"22050 Hz; real against real {same.floor:.4g})"
    )
    assert frechet_audio_distance(sounds(5, 1), real, 22050) == same


def test_the_floor_is_the_mean_over_halvings_of_the_reference():
    vectors = torch.randn(6, 2, generator=torch.Generator().manual_seed(3))

    class Fixed:
        name = "fixed"

        def __call__(self, waveforms, sampling_rate):
            return vectors[: len(waveforms)]

    result = frechet_audio_distance([None] * 4, [None] * 6, 1, Fixed(), halvings=3, seed=9)
    generator, floors = torch.Generator().manual_seed(9), []
    for _ in range(3):
        order = torch.randperm(6, generator=generator)
        floors.append(frechet_distance(vectors[order[:3]], vectors[order[3:]]))
    assert result.floor == pytest.approx(sum(floors) / 3)
    assert result.distance == pytest.approx(frechet_distance(vectors[:4], vectors))
    assert (result.num_generated, result.num_reference, result.embedding) == (4, 6, "fixed")


def test_log_mel_statistics_are_mean_deviation_and_change_at_the_contracts_rate():
    config = MelConfig(num_mel_bins=8)
    waveform = sounds(1, 0)[0]
    mel = log_mel_spectrogram(waveform, config)
    expected = torch.cat([mel.mean(1), mel.std(1), (mel[:, 1:] - mel[:, :-1]).abs().mean(1)])
    torch.testing.assert_close(LogMelStatistics(config)([waveform], 22050)[0], expected)
    tone = torch.sin(torch.arange(22050) * 0.2)
    rates = [LogMelStatistics(config)([tone[::step].clone()], 22050 // step)[0] for step in (1, 2)]
    torch.testing.assert_close(rates[0][:2], rates[1][:2], rtol=0.05, atol=0.1)


def test_an_ear_is_an_embedding(tmp_path):
    ear = NoteEarModel(NoteEarConfig.preset("test")).eval()
    generator = torch.Generator().manual_seed(0)
    waveforms = [torch.randn(samples, generator=generator) * 0.1 for samples in (9000, 20000)]
    rows = NoteEarEmbedding(ear)(waveforms, 22050)
    mel = log_mel_spectrogram(waveforms[1][None], ear.config.mel_config)
    assert rows.shape == (2, 24)
    torch.testing.assert_close(rows[1], ear(mel).last_hidden_state[0].mean(0).detach())
    ear.save_pretrained(tmp_path)
    again = NoteEarEmbedding(tmp_path)
    torch.testing.assert_close(again(waveforms, 22050), rows)
    assert again.name == "ear, 24 features, 22050 Hz"
    assert frechet_audio_distance(waveforms, waveforms * 2, 22050, again).embedding == again.name


def test_any_audio_model_of_transformers_embeds(tmp_path):
    from transformers import (
        EncodecConfig,
        EncodecFeatureExtractor,
        EncodecModel,
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2Model,
    )

    torch.manual_seed(0)
    small = {"conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
    config = Wav2Vec2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, **small)
    wave = Wav2Vec2Model(config).eval()
    wave.save_pretrained(tmp_path / "wave")
    Wav2Vec2FeatureExtractor(sampling_rate=16000).save_pretrained(tmp_path / "wave")
    waveform = sounds(1, 0)[0][:4000]
    normal = (waveform - waveform.mean()) / torch.sqrt(waveform.var(correction=0) + 1e-7)
    with torch.no_grad():
        expected = wave(normal[None]).last_hidden_state[0].mean(0)
    embed = AudioModelEmbedding(tmp_path / "wave")
    torch.testing.assert_close(embed([waveform], 16000)[0], expected, rtol=1e-4, atol=1e-4)
    assert embed.name == str(tmp_path / "wave") and embed([waveform, waveform[:3000]], 8000).shape == (2, 16)

    codec = EncodecModel(EncodecConfig(num_filters=4, hidden_size=8, codebook_dim=8, upsampling_ratios=[4, 2])).eval()
    codec.save_pretrained(tmp_path / "codec")
    EncodecFeatureExtractor().save_pretrained(tmp_path / "codec")
    with torch.no_grad():
        expected = codec.encoder(waveform[None, None])[0].mean(-1)
    found = AudioModelEmbedding(tmp_path / "codec")([waveform], 24000)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_durations_differ_by_the_largest_gap_of_their_distribution_functions():
    first, second = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([3.0, 4.0, 5.0])
    assert duration_ks(first, second) == pytest.approx(0.5)  # at 2: 2 of 4 against 0 of 3
    assert duration_ks(second, first) == pytest.approx(0.5)
    assert duration_ks(first, first.flip(0)) == 0.0
    assert duration_ks(first, first + 10) == 1.0
    assert duration_ks(torch.tensor([1.0, 1.0]), torch.tensor([1.0])) == 0.0


def test_neighbors_are_the_nearest_training_items():
    training = torch.tensor([[0.0, 0.0], [3.0, 4.0], [100.0, 100.0]])
    samples = torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 0.0], [100.0, 97.0]])
    assert nearest_neighbor_distance(samples, training, rows=3).tolist() == [0.0, 1.0, 3.0, 3.0]
    copy = training * 1e3 + 0.1
    assert nearest_neighbor_distance(copy, copy).tolist() == [0.0, 0.0, 0.0]


CODES = torch.tensor([[[0, 0, 1, 1], [2, 2, 2, 2]], [[0, 0, 1, 1], [2, 2, -1, -1]]])


def test_codebooks():
    assert codebook_usage(CODES, 4).tolist() == [0.5, 0.25]
    assert codebook_perplexity(CODES, 4).tolist() == pytest.approx([2.0, 1.0])
    uneven = torch.tensor([[[0, 0, 0, 1]]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert codebook_perplexity(uneven, 2).item() == pytest.approx(math.exp(entropy), rel=1e-5)
    assert entropy_bits_per_second(uneven, 2, 50.0) == pytest.approx(50 * entropy / math.log(2), rel=1e-4)
    assert entropy_bits_per_second(CODES, 4, 10.0) == pytest.approx(10.0, rel=1e-4)


def test_bits_per_second():
    assert bits_per_second(75.0, 1024, 8) == 6000.0
    assert bits_per_second(50.0, [256, 16]) == 50 * 12


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: frechet_distance(torch.zeros(1, 2), torch.zeros(3, 2)), "first.*at least 2"),
        (lambda: frechet_distance(torch.zeros(2, 2), torch.zeros(3, 3)), "same features, got 2 and 3"),
        (lambda: frechet_distance(torch.full((2, 2), math.nan), torch.zeros(2, 2)), "finite"),
        (lambda: frechet_audio_distance(sounds(2, 0), sounds(3, 0), 22050), "reference.*at least 4"),
        (lambda: LogMelStatistics()([torch.zeros(2, 9000)], 22050), r"mono.*\(2, 9000\)"),
        (lambda: duration_ks(torch.zeros(0), torch.zeros(1)), "first must be"),
        (lambda: nearest_neighbor_distance(torch.zeros(1, 2), torch.zeros(1, 3)), "got 2 and 3"),
        (lambda: codebook_usage(torch.zeros(1, 1, 1), 4), "whole numbers"),
        (lambda: codebook_usage(CODES, 2), "below codebook_size=2.*-1 to 2"),
        (lambda: bits_per_second(50.0, 16), "num_quantizers must be given"),
        (lambda: bits_per_second(0.0, [16]), "frame_rate above 0"),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_codes_of_recordings_are_joined_along_time():
    first, second = [[1, 2, 3], [4, 5, 6]], numpy.array([[7, 8], [9, 0]])
    assert joined_codes([first, second]).tolist() == [[[1, 2, 3, 7, 8], [4, 5, 6, 9, 0]]]
    for wrong in ([], [first, [[1, 2]]], [[1, 2]]):
        with pytest.raises(ValueError, match=r"shape \(quantizer, frame\), as many quantizers each"):
            joined_codes(wrong)
