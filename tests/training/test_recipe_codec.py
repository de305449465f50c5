"""The codec's recipe: its losses, who judges and at which bitrate, how its codebooks learn, what is measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soundfile
import torch
from borders import check_borders, from_one
from training_utils import assert_same_checkpoints, context, started

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.metrics import log_mel_l1, multi_resolution_stft_distance, si_sdr
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.discriminators.families import FAMILIES, build_discriminator
from melreformer_hf.training.loop import train
from melreformer_hf.training.losses.codec import channel_average_loss, multi_window_mel_distance, si_sdr_loss
from melreformer_hf.training.losses.hinge import separation_term
from melreformer_hf.training.recipes.codec import CodecRecipe
from melreformer_hf.training.recipes.codec_measures import CodecMeasures
from melreformer_hf.training.recipes.codec_options import CodecOptions

TINY = {"frame_size": 16, "frame_intermediate_size": 24, "num_frame_layers": 1, "hidden_size": 16, "codebook_size": 32}
CONVOLUTION = {
    **{"architecture": "convolution", "base_channels": 4, "num_residual_units": 1, "hidden_size": 16},
    "quantizer_dropout": 0.0,
    "codebook_size": 32,
}
JUDGED = {"adversarial_weight": 1.0, "adversarial_start": 0.0, "discriminator_size": 2}


def config(dataset, folder, model=TINY, options=None, **changes) -> TrainingConfig:
    options = {"crop_frames": 8, "validation_crops": 1, "validation_frames": 16, **(options or {})}
    settings = {
        "max_steps": 2,
        "batch_size": 2,
        "num_workers": 0,
        "progress_bar": False,
        "cpu": True,
        "ema_decay": 0.5,
    }
    return TrainingConfig(
        dataset=str(dataset), output_dir=str(folder), model=model, options=options, **{**settings, **changes}
    )


def ready(model=TINY, **options) -> CodecRecipe:
    torch.manual_seed(0)
    recipe = CodecRecipe(config("unused", "unused", model, options))
    started(recipe)
    return recipe


def batch(recipe: CodecRecipe, frames: int = 8, rows: int = 2) -> dict[str, torch.Tensor]:
    samples = frames * recipe.model_config.hop_length
    generator = torch.Generator().manual_seed(1)
    return {"waveform": 0.1 * torch.randn(rows, recipe.channels, samples, generator=generator)}


def losses(recipe: CodecRecipe, **where) -> dict[str, torch.Tensor]:
    *_, last = recipe.phases(batch(recipe), context(**where))
    assert last.module == "model"
    return last.scalars


def test_the_plain_sum_is_weighted_as_told():
    weights = {"waveform_weight": 2.0, "mel_weight": 3.0, "stft_weight": 5.0}
    recipe = ready({**TINY, "quantizer_dropout": 0.0}, balance=False, **weights)
    found, given = losses(recipe), batch(recipe)["waveform"]
    model = recipe.modules["model"].train()
    output = model(given)
    fake, real = output.audio_values[:, 0], given[:, 0]
    expected = {
        "waveform": (fake - real).abs().mean(),
        "mel": multi_window_mel_distance(fake, real, 22050),
        "stft": multi_resolution_stft_distance(fake, real),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    total = 2 * expected["waveform"] + 3 * expected["mel"] + 5 * expected["stft"] + output.quantization_loss
    torch.testing.assert_close(found["loss"], total, rtol=1e-4, atol=1e-6)


def test_the_ratio_of_signal_to_distortion_is_a_loss():
    recipe = ready({**TINY, "quantizer_dropout": 0.0}, balance=False, si_sdr_weight=2.0)
    without = losses(ready({**TINY, "quantizer_dropout": 0.0}, balance=False))
    found, real = losses(recipe), batch(recipe)["waveform"]
    fake = recipe.modules["model"].train()(real).audio_values
    torch.testing.assert_close(found["si_sdr"], si_sdr_loss(fake[:, 0], real[:, 0]), rtol=1e-3, atol=1e-3)
    assert "si_sdr" not in without
    torch.testing.assert_close(found["loss"] - without["loss"], 2 * found["si_sdr"], rtol=1e-3, atol=1e-3)


def test_windows_of_the_mel_loss_are_those_that_are_told():
    recipe = ready({**TINY, "quantizer_dropout": 0.0}, mel_windows=(256, 1024))
    found, real = losses(recipe)["mel"], batch(recipe)["waveform"]
    fake = recipe.modules["model"].train()(real).audio_values
    expected = multi_window_mel_distance(fake[:, 0], real[:, 0], 22050, (256, 1024))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for windows in ((), (30,), (0,)):
        with pytest.raises(ValueError, match="options.mel_windows must be multiples of 4"):
            CodecOptions(mel_windows=windows)


def test_the_decoder_learns_first():
    recipe = ready(decoder_first_steps=3)
    model = recipe.modules["model"].train()
    for step, learns in ((1, False), (2, False), (3, True)):
        model.zero_grad()
        *_, phase = recipe.phases(batch(recipe), context(step=step))
        phase.loss.backward()
        assert bool(model.encoder.stem.weight.grad.any()) == learns
        assert model.decoder.stem.weight.grad.any()
        assert all(not book.codewords.grad.any() for book in model.quantizer.codebooks) or learns


@pytest.mark.parametrize("name", ["waveform_weight", "mel_weight", "stft_weight"])
def test_a_weight_of_zero_leaves_a_loss_out(name):
    assert name.removesuffix("_weight") not in losses(ready(**{name: 0.0}))


def test_balanced_losses_have_their_shares_of_the_gradient():
    recipe = ready(waveform_weight=1.0, mel_weight=0.0, stft_weight=3.0)
    given = batch(recipe)
    *_, phase = recipe.phases(given, context())
    phase.loss.backward()
    shares = recipe._balancer.shares
    assert set(shares) == {"waveform", "stft"} and sum(shares.values()) == pytest.approx(1.0)
    assert recipe.stateful()["balancer"] is recipe._balancer


def test_channel_averages_come_beside_the_balanced_losses():
    plain, averaged = (losses(ready(CONVOLUTION, average_weight=weight)) for weight in (0.0, 0.5))
    recipe = ready(CONVOLUTION, average_weight=0.5)
    losses(recipe)  # places the codewords
    given = batch(recipe)["waveform"]
    stages = recipe.modules["model"].train()(given, output_hidden_states=True).decoder_hidden_states
    expected = channel_average_loss(stages, given, recipe.options.stage_weights)
    torch.testing.assert_close(averaged["channel_average"], expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(averaged["loss"] - plain["loss"], 0.5 * expected, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="options.average_weight must be 0 for codecs"):
        ready(average_weight=0.5)


def test_all_discriminators_at_once_are_one_module():
    recipe = ready(**JUDGED, judges="all", discriminators=("stft_128", "stft_256"))
    assert set(recipe.modules) == {"model", "discriminator"} and set(recipe.stateful()) == {"balancer"}
    phases = list(recipe.phases(batch(recipe), context()))
    assert [phase.module for phase in phases] == ["discriminator", "model"]
    assert {"adversarial", "feature_matching"} <= phases[-1].scalars.keys()
    phases[0].loss.backward()
    for judge in recipe.modules["discriminator"].families:
        assert all(parameter.grad is not None for parameter in judge.parameters())


def test_one_discriminator_at_a_time_is_drawn_and_told_its_bitrate(monkeypatch):
    names = ("stft_128", "stft_256", "stft_512")
    recipe = ready({**TINY, "num_quantizers": 4}, **JUDGED, discriminators=names, draw_every=2)
    asked, model = [], recipe.modules["model"]
    forward = model.forward

    def listening(*words, **named):
        asked.append(named["num_quantizers"])
        return forward(*words, **named)

    monkeypatch.setattr(model, "forward", listening)
    drawn = []
    for step in range(12):
        first, last = recipe.phases(batch(recipe), context(step=step))
        drawn.append(first.module.removeprefix("discriminator_"))
        assert recipe._draw.drawn == drawn[-1]
    assert drawn[::2] == drawn[1::2] and len(set(drawn)) > 1, "a new one every two steps"
    levels = {"stft_128": 4, "stft_256": 2, "stft_512": 4}
    assert asked == [levels[name] for name in drawn]
    # What was recorded is what the generator suffers under each.
    assert all((recipe._draw.counts > 0).tolist()[names.index(name)] for name in set(drawn))
    free = ready(TINY, **JUDGED, discriminators=names, judged_bitrates=False)
    monkeypatch.setattr(free.modules["model"], "forward", lambda *w, **k: asked.append(k["num_quantizers"]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(free.phases(batch(free), context()))
    assert asked[-1] is None


def test_the_game_begins_when_it_is_told_to():
    recipe = ready(**{**JUDGED, "adversarial_start": 0.5}, discriminators=("stft_128",), judged_bitrates=False)
    assert "adversarial" not in losses(recipe, progress=0.49)
    assert "adversarial" in losses(recipe, progress=0.5)
    assert "feature_matching" not in losses(ready(**JUDGED, feature_matching_weight=0.0, discriminators=("stft_128",)))
    assert set(ready(adversarial_weight=0.0).modules) == {"model"}


def test_the_price_on_sameness_is_the_discriminators_alone():
    found = []
    for weight in (0.0, 0.001):
        recipe = ready(**JUDGED, judges="all", discriminators=("stft_128",), separation_weight=weight)
        first, last = recipe.phases(batch(recipe), context())
        found.append((first, last.scalars["adversarial"]))
    (plain, generator), (priced, same) = found
    torch.testing.assert_close(generator, same)
    torch.testing.assert_close(plain.scalars["discriminator_loss"], priced.scalars["discriminator_loss"])
    price = priced.loss - plain.loss
    apart = priced.scalars["discriminator_separation"]
    real, fake = torch.zeros(2, 3) + apart, torch.zeros(2, 3)
    # At least what logits would cost that are that far apart everywhere: a mean of distances is above their mean's.
    assert 0 < price <= separation_term([real], [fake], 0.001, offset=1e-3) * 1.001


def test_codebooks_learn_once_behind_the_step():
    recipe = ready(CONVOLUTION)
    model = recipe.modules["model"].train()
    *_, phase = recipe.phases(batch(recipe), context())
    assert all(bool(book.initted) for book in model.quantizer.codebooks), "k-means before the first forward"
    before = [book.codewords.clone() for book in model.quantizer.codebooks]
    sums = [book.cluster_size.clone() for book in model.quantizer.codebooks]
    recipe.after_step({"model": [phase.kept]}, context())
    after = [book.cluster_size for book in model.quantizer.codebooks]
    assert all(not torch.equal(one, two) for one, two in zip(sums, after, strict=True))
    assert all(one.shape == two.codewords.shape for one, two in zip(before, model.quantizer.codebooks, strict=True))


def test_gains_are_decibels_of_amplitude_and_only_lower():
    recipe = ready(gain_augmentation_db=20.0)
    drawn = [
        recipe.prepare({"waveform": torch.ones(4)}, torch.Generator().manual_seed(seed))["waveform"]
        for seed in range(200)
    ]
    levels = torch.stack([20 * value[0, 0].log10() for value in drawn])
    assert drawn[0].shape == (1, 4) and -20 <= levels.min() < -19 and -1 < levels.max() <= 0


def test_distances_at_every_bitrate_are_those_of_the_decoded_prefix():
    torch.manual_seed(0)
    recipe = ready({**TINY, "num_quantizers": 4})
    model = recipe.modules["model"].eval()
    sounds = [0.2 * torch.randn(1, 9000), torch.zeros(1, 7000), 0.1 * torch.randn(1, 8000)]
    mel = MelConfig(sampling_rate=22050)
    found = CodecMeasures(sounds, mel)(model, (1, 4))
    assert found.bitrates == [0.25, 1.0]  # 5 bits, 50 frames a second
    for count, kbps in ((1, "0.25"), (4, "1")):
        made = [
            model.decode(model.encode(sound[None], num_quantizers=count).audio_codes).audio_values[
                0, :, : sound.shape[1]
            ]
            for sound in sounds
        ]
        wanted = {
            "mel_l1": np.mean([log_mel_l1(one, two, mel).item() for one, two in zip(made, sounds, strict=True)]),
            "mr_stft": np.mean(
                [multi_resolution_stft_distance(*pair).item() for pair in zip(made, sounds, strict=True)]
            ),
            "si_sdr": np.mean([si_sdr(made[index], sounds[index]).item() for index in (0, 2)]),  # silence has none
        }
        for name, value in wanted.items():
            assert found.metrics[f"{name}/{kbps}_kbps"] == pytest.approx(value, rel=1e-4), name
        assert 0 <= found.metrics[f"entropy_kbps/{kbps}_kbps"] <= float(kbps)
        assert found.examples[f"{kbps}_kbps"].shape == (1, 9000)
    parts = [found.metrics[f"{name}/{kbps}_kbps"] for name in ("mel_l1", "mr_stft") for kbps in ("0.25", "1")]
    assert found.metrics["score"] == pytest.approx(sum(parts) / 2)
    assert 0 < found.metrics["usage"] <= 1 and 0 < found.metrics["perplexity_share"] <= 1


@pytest.mark.parametrize("kbps, levels", [((), (3, 6, 12)), ((6.0, 0.5, 0.9), (1, 12))])
def test_bitrates_that_are_measured(kbps, levels):
    recipe = ready(validation_kbps=kbps) if kbps else ready()
    config = type(recipe.model_config).preset("small")
    assert recipe.options.bitrates(config) == levels


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, "stft_128", "stft_2048"])
@pytest.mark.parametrize("size", [1, 8])
def test_every_discriminator_judges_in_every_size(name, size):
    logits, maps = build_discriminator(name, size)(torch.randn(2, 22050))
    assert len(logits) == len(maps) and all(len(logit) == 2 for logit in logits)


def test_published_sizes_of_the_pooled_waveform():
    ours, published = build_discriminator("waveform", 32), build_discriminator("waveform", 8)
    widths = [conv.out_channels for conv in ours.stacks[0]]
    assert widths == [16, 64, 256, 512, 1024, 1024, 1]
    assert [conv.groups for conv in ours.stacks[0]] == [1, 4, 16, 64, 256, 1, 1]
    assert [conv.out_channels // conv.groups for conv in published.stacks[0]][1:5] == [16, 16, 8, 4]


@pytest.mark.parametrize("name", ["mrdd", "stft_", "stft_100", "stft_64", "stft_-128", ""])
def test_unknown_discriminators_are_refused(name):
    with pytest.raises(ValueError, match="discriminators must be some of mpd, msd, mrd, ms_stft, waveform and stft_N"):
        build_discriminator(name)
    with pytest.raises(ValueError, match="discriminator_size must be a power of two, got 12"):
        build_discriminator("mpd", 12)


def test_a_killed_training_goes_on_to_the_bit(dataset, tmp_path):
    options = {**JUDGED, "adversarial_start": 0.3, "discriminators": ("stft_128", "stft_256"), "draw_every": 2}
    settings = {"max_steps": 6, "save_every_steps": 3, "log_every_steps": 1, "options": options}
    whole, half = config(dataset, tmp_path / "whole", **settings), config(dataset, tmp_path / "half", **settings)
    expected = train(CodecRecipe(whole), whole)

    class Killed(CodecRecipe):
        def after_step(self, kept, where):
            super().after_step(kept, where)
            if where.step == 4:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(Killed(half), half)
    again = config(dataset, tmp_path / "half", **settings, resume="latest")
    assert train(CodecRecipe(again), again) == expected
    assert_same_checkpoints(tmp_path / "whole", tmp_path / "half", 6)
    model = SoundStreamModel.from_pretrained(tmp_path / "half" / "best")
    assert model.config.architecture == "spectral"


def test_stereo_and_the_other_architecture_train(dataset, tmp_path):
    folder = tmp_path / "stereo"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(4):
        samples = 0.1 * random.standard_normal((9000, 2))
        soundfile.write(folder / f"{index}.wav", samples, 22050, subtype="PCM_16")
    (folder / "metadata.csv").write_text("file_name,split\n0.wav,train\n1.wav,train\n2.wav,validation\n3.wav,test\n")
    build_dataset(folder, tmp_path / "built", BuildConfig(workers=1, channels=2), progress=False)
    stereo = config(tmp_path / "built", tmp_path / "two", {**TINY, "audio_channels": 2})
    found = train(CodecRecipe(stereo), stereo)
    assert math.isfinite(found["score"])
    old = config(dataset, tmp_path / "old", CONVOLUTION, options={"average_weight": 1.0})
    assert math.isfinite(train(CodecRecipe(old), old)["score"])


def test_a_start_from_another_rate_is_refused():
    recipe = ready()
    other = SoundStreamModel(type(recipe.model_config).preset("tiny"))
    with pytest.raises(
        ValueError, match="sampling_rate must be the same: init_from has 8000, this training has 22050"
    ):
        recipe.check_start(other)


def test_borders_of_the_options():
    inside, outside = from_one("crop_frames", "validation_crops", "validation_frames", "draw_every")
    not_negative = (
        "si_sdr_weight",
        "average_weight",
        "separation_weight",
        "gain_augmentation_db",
        "adversarial_weight",
        "mel_weight",
    )
    inside |= {"decoder_first_steps": (0,)}
    outside |= {"decoder_first_steps": (-1,)}
    inside |= {**dict.fromkeys(not_negative, (0.0,)), "adversarial_start": (0.0, 1.0)}
    outside |= {**dict.fromkeys(not_negative, (-0.001,)), "adversarial_start": (-0.001, 1.001)}
    check_borders(CodecOptions, inside, outside)
    with pytest.raises(ValueError, match="One of options.waveform_weight"):
        CodecOptions(waveform_weight=0.0, mel_weight=0.0, stft_weight=0.0)
    with pytest.raises(ValueError, match="options.judges must be 'one' or 'all', got 'two'"):
        CodecOptions(judges="two")
    with pytest.raises(ValueError, match="options.discriminators must be different"):
        CodecOptions(adversarial_weight=1.0, discriminators=("mpd", "mpd"))
