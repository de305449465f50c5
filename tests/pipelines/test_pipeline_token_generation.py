"""Sounds from tokens: classes, latents, continuation, gaps, streaming, seeds."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import soundfile
import torch
from sounds_for_tests import CLASSES, COLUMNS, RATE, tiny_sound_parts, tiny_vqvae
from testing_utils import assert_error

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.models.class_gpt.configuration_class_gpt import ClassGptConfig
from melreformer_hf.models.class_gpt.modeling_class_gpt import ClassGptModel
from melreformer_hf.models.hifi_vocoder.configuration_hifi_vocoder import HifiVocoderConfig
from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
from melreformer_hf.nn.sampling import choose
from melreformer_hf.nn.token_drawing import TokenSampling, draw_tokens, order_around
from melreformer_hf.pipelines import pipeline_token_generation
from melreformer_hf.pipelines.pipeline_token_generation import TokenGenerationPipeline
from melreformer_hf.pipelines.splicing import FADE_FRAMES

HOP, SIZE = 256, 8  # samples per frame, frames per column


@pytest.fixture(scope="module")
def pipe() -> TokenGenerationPipeline:
    return TokenGenerationPipeline(**tiny_sound_parts())


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def tone(seconds: float = 1.2) -> tuple[np.ndarray, int]:
    time = np.arange(int(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * (300 + 400 * time) * time)).astype(np.float32), RATE


def test_a_class_becomes_tokens_a_mel_and_sound(pipe):
    output = pipe("low", generator=seed())
    frames = COLUMNS * SIZE
    assert output.audios.shape == (1, 1, frames * HOP) and output.num_samples.tolist() == [frames * HOP]
    assert output.codes.shape == (1, 16, COLUMNS) and output.mels.shape == (1, 128, frames)
    torch.testing.assert_close(output.mels, pipe.mel_vqvae.decode(output.codes).clamp(min=output.mels.min()))
    tokens = pipe.mel_vqvae.codes_to_tokens(output.codes)
    (row,) = (torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=seed()))),)
    drawn = draw_tokens(
        pipe.class_gpt, {"class_labels": torch.tensor([1])}, tokens[:, :0], tokens.shape[1], TokenSampling(), [row]
    )
    assert torch.equal(torch.stack(list(drawn), 1), tokens)
    for kind, shape in (("mel", output.mels.shape), ("tokens", output.codes.shape)):
        assert pipe("low", generator=seed(), output_type=kind).audios.shape == shape
    array = pipe("low", generator=seed(), output_type="np").audios
    assert isinstance(array, np.ndarray)
    np.testing.assert_allclose(array, output.audios.numpy())
    assert pipe("low", generator=seed(), return_dict=False)[0].equal(output.audios)


def test_a_seed_gives_the_same_sound_alone_and_in_company(pipe):
    batch = pipe(["high", "low"], num_waveforms_per_prompt=2, generator=[seed(i) for i in range(4)])
    assert len(batch.audios) == 4
    for row, name in ((0, "high"), (1, "high"), (2, "low"), (3, "low")):
        alone = pipe(name, generator=seed(row))
        assert torch.equal(alone.codes[0], batch.codes[row])
        torch.testing.assert_close(alone.audios[0], batch.audios[row], rtol=1e-3, atol=1e-4)
    assert not torch.equal(batch.codes[0], batch.codes[1])


@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.9])
def test_streams_are_the_whole_in_pieces(pipe, seconds):
    columns: list[torch.Tensor] = []
    whole = pipe("high", seconds, generator=seed(5))
    pieces = list(pipe.stream("high", seconds, generator=seed(5), callback_on_column=columns.append))
    torch.testing.assert_close(torch.cat(pieces, -1), whole.audios, rtol=1e-3, atol=1e-4)
    frames = round(seconds * RATE / HOP)
    assert whole.num_samples.tolist() == [frames * HOP] and whole.mels.shape[-1] == frames
    assert len(columns) == math.ceil(frames / SIZE) == whole.codes.shape[2]
    assert torch.equal(torch.stack(columns, 2), whole.codes)
    if whole.codes.shape[2] > COLUMNS:
        assert len(pieces) > 1
        # A second window goes on from the newest half of the first.
        given, count = whole.codes[..., COLUMNS // 2 : COLUMNS], COLUMNS // 2
        assert whole.codes.shape[2] >= COLUMNS + count and given.shape[2] == count


def test_greedy_takes_the_likeliest_token_whatever_the_seed(pipe):
    greedy = TokenSampling(do_sample=False)
    one, other = (pipe("low", sampling=greedy, generator=seed(i)).codes for i in range(2))
    assert torch.equal(one, other)
    tokens = pipe.class_gpt.generate(class_labels=torch.tensor([1]))
    assert torch.equal(pipe.mel_vqvae.codes_to_tokens(one), tokens)


@torch.no_grad()
def test_options_of_drawing_mean_what_they_say(pipe):
    model, given = pipe.class_gpt, torch.tensor([[3, 5, 1]])
    known, null = {"class_labels": torch.tensor([0])}, {"class_labels": torch.tensor([2])}

    def first(**options) -> int:
        return int(next(draw_tokens(model, known, given, 1, TokenSampling(**options), [seed(9)], null)))

    with_class, without = (model(given, **condition).logits[:, -1] for condition in (known, null))
    for options in (
        {"temperature": 0.3},
        {"top_k": 3},
        {"top_p": 0.4},
        {"temperature": 2.0, "top_k": 5, "top_p": 0.9},
    ):
        assert first(**options) == int(choose(with_class, True, generator=[seed(9)], **options))
    for scale in (0.0, 2.5):
        guided = without + scale * (with_class - without)
        assert first(guidance_scale=scale) == int(choose(guided, True, generator=[seed(9)]))
        assert first(guidance_scale=scale, do_sample=False) == int(guided.argmax())
    assert first(do_sample=False, guidance_scale=0.0) == int(without.argmax())
    with pytest.raises(ValueError, match="guidance_scale must be 1"):
        next(draw_tokens(model, known, given, 1, TokenSampling(guidance_scale=2.0)))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_cache_changes_no_token(pipe, guidance):
    columns = [
        pipe("high", sampling=TokenSampling(use_cache=use, guidance_scale=guidance), generator=seed(3)).codes
        for use in (True, False)
    ]
    assert torch.equal(*columns)


def test_a_recording_goes_on_from_its_first_half(pipe, tmp_path):
    wave, rate = tone(0.4)
    output = pipe("low", recording=(wave, rate), generator=seed())
    mel = pipe.mel_of((wave, rate))
    kept = mel.shape[-1] // 2 // SIZE
    assert torch.equal(output.codes[..., :kept], pipe.codes_of(mel[:, : kept * SIZE]))
    assert output.codes.shape[2] == max(COLUMNS, 2 * kept)
    soundfile.write(tmp_path / "tone.wav", wave, rate, subtype="FLOAT")
    file = pipe("low", recording=tmp_path / "tone.wav", generator=seed())
    assert torch.equal(file.codes, output.codes)
    longer = pipe("low", 0.8, recording=(wave, rate), keep_in_s=0.1, generator=seed())
    assert longer.num_samples.tolist() == [69 * HOP]
    assert torch.equal(longer.codes[..., :1], pipe.codes_of(mel[:, :SIZE]))


def test_latents_are_drawn_encoded_and_blended(pipe):
    latents = pipe.sample_latents(2, generator=[seed(1), seed(2)])
    torch.testing.assert_close(latents[:1], pipe.sample_latents(1, generator=seed(1)))
    output = pipe(latents=latents, generator=[seed(1), seed(2)])
    assert output.codes.shape[0] == 2
    first, second = tone(0.5), (tone(0.5)[0][::-1].copy(), RATE)
    between = pipe.interpolate(first, second, 3)
    assert len(between.audios) == 3
    for row, end in ((0, first), (2, second)):
        alone = pipe(latents=pipe.latents_of(end), sampling=TokenSampling(do_sample=False))
        assert torch.equal(alone.codes[0], between.codes[row])
    ends = [pipe.latents_of(end) for end in (first, second)]
    middle = pipe(latents=(ends[0] + ends[1]) / 2, sampling=TokenSampling(do_sample=False))
    assert torch.equal(middle.codes[0], between.codes[1])
    drawn = [pipe.interpolate(first, first, 2, sampling=TokenSampling(), generator=seed(i)).codes for i in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0][0], drawn[0][1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_gap_is_filled_and_the_rest_kept(pipe):
    wave, rate = tone()
    frames = len(wave) // HOP
    begin, end = 40, 50
    span = (begin * HOP / rate + 1e-4, end * HOP / rate - 1e-4)
    output = pipe.repair((wave, rate), [span], "low", generator=seed())
    made, fade = output.audios[0, 0], FADE_FRAMES * HOP
    assert len(made) == frames * HOP and output.peak_db is None
    kept = torch.from_numpy(wave[: frames * HOP])
    assert torch.equal(made[: begin * HOP - fade], kept[: begin * HOP - fade])
    assert torch.equal(made[end * HOP + fade :], kept[end * HOP + fade :])
    assert not torch.allclose(made[begin * HOP : end * HOP], kept[begin * HOP : end * HOP], atol=1e-3)
    # What was in the gap is not listened to.
    other = wave.copy()
    other[begin * HOP + 1100 : end * HOP - 1100] = 0.9
    again = pipe.repair((other, rate), [span], "low", generator=seed())
    mel = log_mel_spectrogram(kept, pipe.mel_config)
    torch.testing.assert_close(again.mels[..., begin:end], output.mels[..., begin:end], rtol=0.05, atol=0.5)
    torch.testing.assert_close(output.mels[0, :, :begin], mel[:, :begin])
    different = pipe.repair((wave, rate), [span], "low", generator=seed(1))
    assert not torch.equal(different.audios, output.audios)


def test_both_sides_of_a_gap_are_heard(pipe, monkeypatch):
    seen = []
    real = draw_tokens

    def watched(model, condition, given, count, options, generators, without, order):
        seen.append((given, count, order))
        return real(model, condition, given, count, options, generators, without, order)

    monkeypatch.setattr("melreformer_hf.pipelines.sound_editing.draw_tokens", watched)
    wave, rate = tone()
    pipe.repair((wave, rate), [(0.5, 0.52), (0.62, 0.63)], generator=seed())
    (given, count, order), second = seen
    assert len(order[0]) == 16 * COLUMNS and count % 16 == 0 and given.shape[1] == 16 * COLUMNS - count
    missing = set(order[0, given.shape[1] :].tolist())
    before = min(missing) // 16
    assert before > 0  # columns before it are given
    seen.clear()
    pipe.repair((wave, rate), [(0.5, 0.52)], generator=seed())
    ((given, alone, order),) = seen
    missing = set(order[0, given.shape[1] :].tolist())
    assert min(missing) // 16 > 0 and max(missing) // 16 < COLUMNS - 1  # and, where nothing else is missing, behind it
    assert count > alone and second[1] < count  # the other gap is missing, too, until this one is filled


def test_order_around_a_gap():
    missing = torch.tensor([False, True, True, False, True])
    assert order_around(missing).tolist() == [0, 3, 1, 2, 4]


def test_saved_pipelines_load_and_sound_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "all")
    loaded = TokenGenerationPipeline.from_pretrained(tmp_path / "all")
    assert loaded.class_names == CLASSES
    assert torch.equal(loaded("low", generator=seed()).codes, pipe("low", generator=seed()).codes)
    parts = tiny_sound_parts(vae=False)
    TokenGenerationPipeline(**parts).save_pretrained(tmp_path / "some")
    some = TokenGenerationPipeline.from_pretrained(tmp_path / "some")
    assert some.gpt_vae is None
    for call in (
        lambda: some.sample_latents(),
        lambda: some.interpolate(tone(), tone()),
        lambda: some(latents=torch.zeros(1, 16)),
    ):
        with pytest.raises(ValueError, match="no gpt_vae"):
            call()
    text = (tmp_path / "all/README.md").read_text()
    assert "TokenGenerationPipeline.from_pretrained" in text and "{{" not in text


def test_parts_that_do_not_fit_are_refused():
    parts = tiny_sound_parts(vae=False)
    mel = MelConfig.preset("hifigan").to_dict()
    other = HifiVocoderModel(HifiVocoderConfig.preset("istft_tiny", mel=mel, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(ValueError, match="num_mel_bins: mel_vqvae has 128, vocoder has 80"):
        TokenGenerationPipeline(**{**parts, "vocoder": other})
    with pytest.raises(ValueError, match="vocab_size must be mel_vqvae.config.codebook_size=8"):
        TokenGenerationPipeline(**{**parts, "mel_vqvae": tiny_vqvae(codebook_size=8)})
    odd = ClassGptModel(ClassGptConfig.preset("tiny", vocab_size=16, num_tokens=20))
    with pytest.raises(ValueError, match="whole columns of 16 tokens, got 20"):
        TokenGenerationPipeline(**{**parts, "class_gpt": odd})
    with pytest.raises(ValueError, match="got neither"):
        TokenGenerationPipeline(**{**parts, "class_gpt": None})


@pytest.mark.parametrize(
    ("call", "fragments"),
    [
        (lambda pipe: pipe("cat"), ["class", "'high'", "'cat'"]),
        (lambda pipe: pipe(2), ["class_label", "0..1", "2"]),
        (lambda pipe: pipe("low", 0.0), ["audio_length_in_s", "above 0", "0.0"]),
        (lambda pipe: pipe("low", output_type="wav"), ["output_type", "'wav'"]),
        (lambda pipe: pipe("low", num_waveforms_per_prompt=0), ["num_waveforms_per_prompt", "0"]),
        (lambda pipe: pipe("low", keep_in_s=1.0), ["keep_in_s", "recording", "1.0"]),
        (lambda pipe: pipe("low", recording=tone(0.5), keep_in_s=2.0), ["keep_in_s", "recording's length", "2.0"]),
        (lambda pipe: pipe("low", 0.1, recording=tone(0.5)), ["audio_length_in_s", "are kept", "0.1"]),
        (lambda pipe: pipe("low", latents=torch.zeros(1, 16)), ["class_label", "None", "'low'"]),
        (lambda pipe: pipe(latents=torch.zeros(1, 3)), ["latents", "(row, 16)", "(1, 3)"]),
        (lambda pipe: pipe.interpolate(tone(), tone(), 1), ["steps", "at least 2", "1"]),
        (lambda pipe: pipe.repair(tone(), []), ["spans", "at least one"]),
        (lambda pipe: pipe.repair(tone(), [(0.5, 0.4)]), ["spans", "end after", "0.5", "0.4"]),
        (lambda pipe: pipe.repair(tone(), [(0.5, 3.0)]), ["spans' to", "recording", "3.0"]),
        (lambda pipe: pipe.repair(tone(), [(0.2, 0.9)]), ["shorter than", "0.70"]),
        (lambda pipe: pipe.repair(tone(), [(0.2, 0.3), (0.25, 0.35)]), ["overlap"]),
        (lambda pipe: pipe.repair((tone()[0], 16000), [(0.2, 0.3)]), ["22050", "16000"]),
        (lambda pipe: pipe.reconstruct((tone()[0][:1000], RATE)), ["at least", "0.03"]),
        (lambda pipe: TokenSampling(temperature=0.0), ["temperature", "positive", "0.0"]),
        (lambda pipe: TokenSampling(top_k=0), ["top_k", "at least 1", "0"]),
        (lambda pipe: TokenSampling(top_p=0.0), ["top_p", "(0, 1]", "0.0"]),
        (lambda pipe: TokenSampling(guidance_scale=-1.0), ["guidance_scale", "negative", "-1.0"]),
    ],
)
def test_bad_input_is_refused(pipe, call, fragments):
    with pytest.raises(ValueError) as error:
        call(pipe)
    assert_error(error, *fragments)


def test_models_without_the_means_say_so():
    parts = tiny_sound_parts(vae=False)
    config = {**parts["class_gpt"].config.to_dict(), "null_class": False, "any_order": False}
    plain = ClassGptModel(ClassGptConfig.from_dict(config)).eval()
    pipe = TokenGenerationPipeline(**{**parts, "class_gpt": plain})
    with pytest.raises(ValueError, match="class_label must be given, one of"):
        pipe()
    with pytest.raises(ValueError, match="any_order=True"):
        pipe.repair(tone(), [(0.2, 0.3)], "low")
    with pytest.raises(ValueError, match="guidance_scale must be 1"):
        pipe("low", sampling=TokenSampling(guidance_scale=2.0))


def test_the_documented_example():
    assert doctest.testmod(pipeline_token_generation).failed == 0
