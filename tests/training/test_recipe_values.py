"""What recipes draw, weigh and measure, against values worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from training_utils import ADVERSARIAL, VOCODER, context, started

from melreformer_hf.audio.griffin_lim import griffin_lim
from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.audio.stft import Transform, stft
from melreformer_hf.metrics import log_mel_l1, mel_statistics_distance, multi_resolution_stft_distance
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.discriminators.families import DiscriminatorEnsemble
from melreformer_hf.training.losses.diffusion import diffusion_loss
from melreformer_hf.training.recipes import expansion_data
from melreformer_hf.training.recipes.conv_upsampler import ConvUpsamplerRecipe
from melreformer_hf.training.recipes.expansion import ExpansionOptions, ExpansionRecipe
from melreformer_hf.training.recipes.expansion_data import ExpansionDataOptions, ExpansionValidator
from melreformer_hf.training.recipes.idea_diffusion import IdeaDiffusionOptions, IdeaDiffusionRecipe
from melreformer_hf.training.recipes.idea_gan import IdeaGanOptions
from melreformer_hf.training.recipes.vocoder import VocoderOptions, VocoderRecipe

EXPANSION = """--model.idea_columns 32 --model.hidden_size 16 --model.intermediate_size 24 --model.num_encoder_layers 1
--model.num_decoder_layers 1 --model.num_attention_heads 2 --model.postnet_size 8 --model.postnet_layers 1
--options.min_frames 128 --options.max_frames 512 --options.window_frames 4""".split()
IDEA = """--model.num_columns 32 --model.patch_size [8,4] --model.block_out_channels [32,32]
--model.norm_num_groups 8 --options.min_frames 128 --options.max_frames 512 --options.fit_crops 0""".split()


def recipe(kind, arguments, *more, dataset="unused"):
    words = [*arguments, *more, "--max_steps", 1, "--dataset", dataset, "--output_dir", "unused"]
    return kind(TrainingConfig.from_command_line(kind, [str(word) for word in words]))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Says(torch.nn.Module):
    """Answers with what it is given to answer; has a parameter because recipes ask for the device."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer, self.place = answer, torch.nn.Parameter(torch.zeros(()))

    def forward(self, *arguments, **named):
        return self.answer(*arguments, **named)


def test_gains_are_decibels_of_amplitude_and_only_lower():
    built = recipe(VocoderRecipe, VOCODER, "--options.gain_augmentation_db", 40)
    waveform = 0.5 * torch.sin(torch.arange(4096.0) / 9)
    for seed in range(3):
        tensors = built.prepare({"waveform": waveform}, torch.Generator().manual_seed(seed))
        drawn = torch.rand((), generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(tensors["waveform"], waveform * 0.01**drawn)  # 40 dB are a factor of 100
        torch.testing.assert_close(tensors["mel"], log_mel_spectrogram(tensors["waveform"], built.mel))


def test_the_vocoders_losses_are_weighted_as_told():
    words = """--options.mel_weight 2 --options.stft_weight 3 --options.adversarial_weight 0.5
    --options.feature_matching_weight 7 --options.adversarial_start 0.5""".split()
    built = recipe(VocoderRecipe, VOCODER, *ADVERSARIAL, *words)
    real, fake = 0.1 * noise(2, 4096), 0.1 * noise(2, 4096, seed=1)
    judge = started(built)["discriminator"]
    built.modules["model"] = Says(lambda mel: SimpleNamespace(waveform=fake.clone().requires_grad_()))
    batch = {"waveform": real, "mel": log_mel_spectrogram(real, built.mel)}
    (alone,) = built.phases(batch, context(0.49))
    mel, stft = log_mel_l1(fake, real, built.mel).item(), multi_resolution_stft_distance(fake, real).item()
    assert alone.loss.item() == pytest.approx(2 * mel + 3 * stft, rel=1e-5)

    first, second = built.phases(batch, context(0.5))
    with torch.no_grad():
        (true, wanted), (false, got) = judge(real), judge(fake)
    expected = sum(((1 - one) ** 2).mean() + (two**2).mean() for one, two in zip(true, false, strict=True))
    assert (first.module, second.module) == ("discriminator", "model")
    assert first.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    adversarial = sum(((1 - two) ** 2).mean() for two in false).item()
    pairs = [pair for maps in zip(wanted, got, strict=True) for pair in zip(*maps, strict=True)]
    matching = sum((one - two).abs().mean() for one, two in pairs).item()
    total = 2 * mel + 3 * stft + 0.5 * (adversarial + 7 * matching)
    assert second.loss.item() == pytest.approx(total, rel=1e-4)


def test_predicted_magnitudes_are_compared_with_the_recordings():
    words = "--options.mel_weight 0 --options.stft_weight 0 --options.magnitude_weight 0.7".split()
    built = recipe(VocoderRecipe, VOCODER, *words)
    real = 0.1 * noise(2, 4096)
    true = stft(real, Transform(1024, 256, 1024)).abs()  # (batch, frame, bin)
    guess = true * torch.tensor([1.0, 3.0])[:, None, None]
    answer = SimpleNamespace(waveform=real.clone().requires_grad_(), magnitude=guess)
    built.modules["model"] = Says(lambda mel, output_magnitude: answer if output_magnitude else None)
    (phase,) = built.phases({"waveform": real, "mel": log_mel_spectrogram(real, built.mel)}, context())
    # Convergence of the second row is 2 |true| / |true|, its logarithms are off by ln 3.
    assert phase.scalars["magnitude"].item() == pytest.approx((2 + math.log(3)) / 2, rel=1e-3)
    assert phase.loss.item() == pytest.approx(0.7 * (2 + math.log(3)) / 2, rel=1e-3)
    with pytest.raises(ValueError, match="magnitude_weight must be 0 .*'hifigan'.* got 0.7"):
        recipe(VocoderRecipe, [], "--options.preset", "hifigan_v3", *words)


def test_discriminators_of_size_32_have_the_published_widths():
    small = noise(1, 8192)
    widths = [
        [[features.shape[1] for features in maps] for maps in DiscriminatorEnsemble([name], 4)(small)[1]]
        for name in ("mpd", "msd", "mrd")
    ]
    # HiFi-GAN's 32, 128, 512, 1024, 1024 and 128, 128, 256, 512, 1024, 1024, 1024, all divided by 8.
    assert all(maps[:5] == [4, 16, 64, 128, 128] for maps in widths[0])
    assert all(maps[:7] == [16, 16, 32, 64, 128, 128, 128] for maps in widths[1])
    assert all(maps[:5] == [4] * 5 for maps in widths[2])


def test_the_vocoder_is_measured_against_griffin_lim(dataset):
    words = ("--options.validation_crops", 2, "--options.validation_frames", 24)
    built = recipe(VocoderRecipe, VOCODER, *words, dataset=dataset)
    built.prepare_validation()
    crops = built.recordings("validation").fixed_crops(24 * 256, 2)
    real = torch.stack([crop["waveform"] for crop in crops])
    mel = log_mel_spectrogram(real, built.mel)
    simple = griffin_lim(mel, built.mel, generator=torch.Generator().manual_seed(0))
    made = iter((0.5 * real).split(4))
    metrics = built.validate(Says(lambda mel: SimpleNamespace(waveform=next(made)))).metrics
    ours = [log_mel_l1(0.5 * real, real, built.mel), multi_resolution_stft_distance(0.5 * real, real)]
    theirs = [log_mel_l1(simple, real, built.mel), multi_resolution_stft_distance(simple, real)]
    assert [metrics["mel_l1"], metrics["mr_stft"]] == pytest.approx([value.item() for value in ours])
    names = ("griffin_lim_mel_l1", "griffin_lim_mr_stft")
    assert [metrics[name] for name in names] == pytest.approx([value.item() for value in theirs], rel=1e-3)
    score = sum(one.item() / two.item() for one, two in zip(ours, theirs, strict=True))
    assert metrics["score"] == pytest.approx(score, rel=1e-3)


@pytest.mark.parametrize("power", [1, 2])
def test_noise_levels_are_drawn_from_equal_parts(power):
    words = ("--options.draws_per_idea", 8, "--options.condition_dropout", 0, "--model.noise_power", power)
    built = recipe(IdeaDiffusionRecipe, IDEA, *words)
    waveform = 0.1 * noise(256 * 200)
    drawn = [built.prepare({"waveform": waveform}, torch.Generator().manual_seed(seed)) for seed in range(30)]
    steps = torch.stack([tensors["timesteps"] for tensors in drawn]).float()  # (item, draw)
    # Part k of 8 ends where a share of (k + 1) / 8 of the levels lies below, spaced by (1 - p) ** power.
    edges = 1000 * (1 - (1 - torch.arange(9) / 8) ** power)
    assert (steps >= edges[:-1].floor()).all() and (steps <= edges[1:]).all() and (steps <= 999).all()
    assert (steps.amax(0) - steps.amin(0) > 0.6 * edges.diff()).all()  # spread within each part
    assert drawn[0]["noise"].shape == (8, 1, 128, 32) and drawn[0]["idea"].shape == (128, 32)
    torch.testing.assert_close(drawn[0]["log2_num_frames"], torch.full((8,), math.log2(200)))


def test_the_told_share_of_durations_is_withheld():
    built = recipe(IdeaDiffusionRecipe, IDEA, "--options.draws_per_idea", 400, "--options.condition_dropout", 0.25)
    withheld = built.prepare({"waveform": 0.1 * noise(256 * 128)}, torch.Generator().manual_seed(0))
    assert 70 <= withheld["log2_num_frames"].isnan().sum() <= 130


def test_the_idea_models_loss_is_the_mean_over_ideas_and_draws():
    built = recipe(IdeaDiffusionRecipe, IDEA, "--options.max_snr", 3)
    model = started(built)["model"].eval()
    batch = {
        "idea": noise(2, 128, 32) - 5,
        "noise": noise(2, 3, 1, 128, 32, seed=1),
        "timesteps": torch.tensor([[10, 500, 900], [300, 600, 40]]),
        "log2_num_frames": torch.tensor([[8.0, 8.0, math.nan], [9.0, math.nan, 9.0]]),
    }
    (phase,) = built.phases(batch, context())
    losses = [
        diffusion_loss(
            model,
            model.normalize_idea(batch["idea"][row : row + 1]),
            batch["log2_num_frames"][row, draw : draw + 1],
            built.scheduler,
            batch["noise"][row, draw : draw + 1],
            batch["timesteps"][row, draw : draw + 1],
            3.0,
        )
        for row in range(2)
        for draw in range(3)
    ]
    torch.testing.assert_close(phase.loss, torch.cat(losses).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_idea_models_score_is_loss_plus_distance_of_samples(dataset):
    words = "--options.validation_ideas 18 --options.validation_samples 20 --options.sampling_steps 2".split()
    built = recipe(IdeaDiffusionRecipe, IDEA, *words, dataset=dataset)
    model = started(built)["model"].eval()
    reference = built._reference()
    assert len(reference["learned"]) == 4 * 18
    assert reference["timesteps"].tolist() == [int((k + 0.5) / 18 * 1000) for k in range(18)]
    with torch.no_grad():
        outcome = built.validate(model)
        arguments = (reference[key] for key in ("noise", "timesteps"))
        clean, durations = model.normalize_idea(reference["idea"]), reference["log2_num_frames"]
        loss = diffusion_loss(model, clean, durations, built.scheduler, *arguments, 5.0).mean().item()
        samples = built._sample(model, reference)
    distance = mel_statistics_distance(samples, reference["learned"])["statistics_distance"]
    assert outcome.metrics["loss"] == pytest.approx(loss, rel=1e-4)
    assert outcome.metrics["score"] == pytest.approx(loss + distance, rel=1e-4)
    assert outcome.counts == {"held-out ideas": 18, "sampled ideas": 20}


def test_the_expansion_is_given_the_lengths_that_were_trained():
    assert recipe(ExpansionRecipe, EXPANSION).model_config.frames_per_column == (4.0, 16.0)


def test_losses_of_windows_leave_out_what_lies_beyond_the_crop():
    words = """--options.windows_per_crop 1 --options.scheduled_sampling 0.5 --options.scheduled_sampling_start 0.3"""
    built = recipe(ExpansionRecipe, EXPANSION, *words.split())
    lead = built.model_config.fold_size
    labels = noise(2, 1, 128, lead + 4)
    batch = {
        "idea": noise(2, 128, 32),
        "num_frames": torch.tensor([12, 100]),
        "start": torch.tensor([[10], [3]]),  # two frames of the first window belong to its crop, and all of the second
        "labels": labels,
        "noise": torch.zeros_like(labels).bfloat16(),
    }
    # Errors of 1 in the first window and of 4 in the second; 100 beyond the first one's end.
    error = torch.tensor([[1.0, 1.0, 100.0, 100.0], [4.0, 4.0, 4.0, 4.0]])[:, None]
    true = labels[:, 0, :, lead:]

    def answer(**window):
        rows = len(window["decoder_input_features"])
        features = {"output_features": true[:rows] + error[:rows], "encoder_features": true[:rows] - 2 * error[:rows]}
        return SimpleNamespace(loss=torch.ones(()), decoder_features=true[:rows], **features)

    built.modules = {"model": Says(answer)}
    (phase,) = built.phases(batch, context(1.0))
    expected = (2 * 1 + 4 * 4) / 6
    assert phase.scalars["mel_l1"].item() == pytest.approx(expected, rel=1e-5)
    assert phase.scalars["encoder_mel_l1"].item() == pytest.approx(2 * expected, rel=1e-5)
    assert phase.scalars["mel_l1_scheduled_sampling"].item() == pytest.approx(1.0, rel=1e-5)
    (before,) = built.phases(batch, context(0.29))
    assert "mel_l1_scheduled_sampling" not in before.scalars

    baseline = recipe(ConvUpsamplerRecipe, ["--options.window_frames", 4, "--options.min_frames", 4])
    made = SimpleNamespace(output_features=true + error)
    baseline.modules = {"model": Says(lambda *arguments: made)}
    (phase,) = baseline.phases({**batch, "labels": labels[..., lead:]}, context())
    assert phase.loss.item() == pytest.approx(expected, rel=1e-5)


class Music:
    """Held-out recordings: two crops of 64 frames, one piece of 96."""

    def fixed_crops(self, samples: int, count: int) -> list[dict]:
        assert (samples, count) == (64 * 256, 2)
        return [{"waveform": 0.1 * noise(samples, seed=seed)} for seed in range(count)]

    def whole(self, samples: int, count: int) -> list[dict]:
        assert (samples, count) == (128 * 256, 3)
        return [{"waveform": 0.1 * noise(96 * 256, seed=9)}]


@pytest.mark.parametrize("fold_size", [None, 1, 8])
def test_expansions_are_measured_by_re_interpolation(fold_size, monkeypatch):
    """Errors of a quarter of re-interpolation's in crops and of three quarters in pieces are 0.5x of it."""
    options = ExpansionDataOptions(
        validation_crops=2, validation_crop_frames=64, validation_pieces=3, validation_max_frames=128
    )
    mel = MelConfig()
    validator = ExpansionValidator(Music(), options, mel, 16, fold_size)
    targets = {idea_key(target): target for group in validator.targets.values() for target in group}
    monkeypatch.setattr(expansion_data.time, "monotonic", iter([float(at * at) for at in range(6)]).__next__)

    def generate(ideas, num_frames, draw):
        assert draw == 0
        smooth, target = resize_mel(ideas[0], int(num_frames[0])), targets[round(ideas.sum().item(), 1)]
        return (target + (0.25 if target.shape[-1] == 64 else 0.75) * (smooth - target))[None]

    outcome = validator(generate)
    metrics = outcome.metrics
    assert metrics["crops_ratio"] == pytest.approx(0.25, rel=1e-4)
    assert metrics["pieces_ratio"] == pytest.approx(0.75, rel=1e-4)
    assert metrics["ratio"] == pytest.approx(0.5, rel=1e-4) and outcome.summary == "0.50x of re-interpolation"
    errors = [(resize_mel(resize_mel(t, 16), 64) - t).abs().mean().item() for t in validator.targets["crops"]]
    assert metrics["crops_baseline"] == pytest.approx(sum(errors) / 2, rel=1e-4)
    # The clock went 0, 1, 4, 9, 16, 25: each call took 1, 5 and 9 seconds.
    assert metrics["times_real_time"] == pytest.approx((64 + 64 + 96) * 256 / 22050 / 15)
    assert validator.speeds == pytest.approx({"crops": 128 * 256 / 22050 / 6, "pieces": 96 * 256 / 22050 / 9})
    assert outcome.counts == {"crops": 2, "pieces": 1}
    assert ("crops_seam" in metrics) == (fold_size == 8)


def test_samplers_are_measured_by_all_of_their_draws():
    """Draws of the truth plus 1, 2 and 4: CRPS 7 / 3 - (1 + 3 + 2) / 6 of three draws, mean error 7 / 3; the first is shown."""
    options = ExpansionDataOptions(
        validation_crops=2, validation_crop_frames=64, validation_pieces=3, validation_max_frames=128
    )
    validator = ExpansionValidator(Music(), options, MelConfig(), 16, 8, draws=3)
    targets = {idea_key(target): target for group in validator.targets.values() for target in group}

    def generate(ideas, num_frames, draw):
        return targets[round(ideas.sum().item(), 1)][None] + (1.0, 2.0, 4.0)[draw]

    metrics = validator(generate).metrics
    for group in ("crops", "pieces"):
        assert metrics[f"{group}_crps"] == pytest.approx(7 / 3 - 1, rel=1e-4)
        assert metrics[f"{group}_mel_l1"] == pytest.approx(7 / 3, rel=1e-4)
        assert metrics[f"{group}_ratio"] == pytest.approx((7 / 3 - 1) / metrics[f"{group}_baseline"], rel=1e-4)
        assert metrics[f"{group}_sharpness"] == pytest.approx(1.0, rel=1e-4)


def idea_key(target: torch.Tensor) -> float:
    return round(resize_mel(target, 16).sum().item(), 1)


@pytest.mark.parametrize(
    ("options", "accepted", "refused"),
    [
        (
            VocoderOptions,
            [
                {"crop_frames": 1, "validation_crops": 1, "validation_frames": 1, "discriminator_size": 1},
                {"mel_weight": 0.0, "stft_weight": 0.0, "feature_matching_weight": 0.0, "gain_augmentation_db": 0.0},
                {"adversarial_start": 0.0},
                {"adversarial_start": 1.0},
            ],
            [
                *(
                    {name: 0}
                    for name in ("crop_frames", "validation_crops", "validation_frames", "discriminator_size")
                ),
                *({f"{name}_weight": -0.1} for name in ("mel", "stft", "adversarial", "feature_matching")),
                {"gain_augmentation_db": -0.1},
                {"adversarial_start": 1.01},
                {"adversarial_start": -0.01},
            ],
        ),
        (
            ExpansionOptions,
            [
                {"min_frames": 1, "max_frames": 1, "window_frames": 1, "windows_per_crop": 1, "validation_crops": 1},
                {"focus_frames": 2, "focus_share": 1.0, "validation_pieces": 1, "validation_crop_frames": 1},
                {"input_noise": 0.0, "scheduled_sampling": 1.0, "scheduled_sampling_start": 1.0},
                {"scheduled_sampling": 0.0, "scheduled_sampling_start": 0.0},
            ],
            [
                {"focus_frames": 1},
                {"focus_share": 1.01},
                *({name: 0} for name in ("windows_per_crop", "validation_crops", "validation_pieces")),
                {"validation_crop_frames": 0},
                {"window_frames": 0},
                {"focus_share": -0.01},
                {"scheduled_sampling": -0.01},
                {"scheduled_sampling": 1.01},
                {"min_frames": 0},
                {"min_frames": 9, "max_frames": 8},
                {"input_noise": -0.1},
                {"scheduled_sampling_start": 1.01},
            ],
        ),
        (
            IdeaDiffusionOptions,
            [
                {"draws_per_idea": 1, "sampling_steps": 1, "validation_ideas": 1, "validation_samples": 1},
                {"min_frames": 1, "max_frames": 1, "max_snr": 0.0, "condition_dropout": 0.0, "fit_crops": 0},
                {"condition_dropout": 1.0, "fit_crops": 2},
            ],
            [
                *({name: 0} for name in ("draws_per_idea", "sampling_steps", "validation_ideas", "min_frames")),
                {"validation_samples": 0},
                {"max_frames": 511},
                {"condition_dropout": -0.01},
                {"max_snr": -0.1},
                {"condition_dropout": 1.01},
                {"fit_crops": -1},
                {"fit_crops": 1},
                {"whole_share": 1.01},
                {"whole_frames": 511},
                {"silence_weight": -0.1},
                {"duration_quantiles": 1},
                {"gain_power": 1.1},
            ],
        ),
        (
            IdeaGanOptions,
            [
                {"r1_every": 1, "path_every": 1, "r1_weight": 0.0, "path_weight": 0.0, "mixing": 0.0},
                {"path_batch_share": 1.0, "mixing": 1.0, "truncation_psi": 0.0, "augmentation_share": 0.0},
                {"whole_share": 1.0, "whole_frames": 512, "silence_weight": 0.0, "duration_quantiles": 2},
            ],
            [
                *({name: 0} for name in ("r1_every", "path_every", "validation_ideas", "validation_samples")),
                *({name: -0.1} for name in ("r1_weight", "path_weight", "truncation_psi", "mixing")),
                {"path_batch_share": 0.0},
            ],
        ),
    ],
)
def test_bounds_of_options(options, accepted, refused):
    for values in accepted:
        options(**values)
    for values in refused:
        with pytest.raises(ValueError, match=f"{next(iter(values))}.*{next(iter(values.values()))}"):
            options(**values)


def test_shortened_crops_are_whole_frames_of_three_to_five_quarters():
    waveform = torch.arange(256 * 400)
    options = ExpansionDataOptions(focus_share=0.5, focus_frames=100)
    for seed in range(12):
        crop = expansion_data._focused(waveform, 256, options, torch.Generator().manual_seed(seed))
        chosen, size, place = torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()
        frames = int(75 + 50 * size) if chosen < 0.5 else 400
        first = int(place * (400 - frames + 1))  # any whole frame at which the crop still ends in time
        assert torch.equal(crop, waveform[256 * first : 256 * (first + frames)])
    long = ExpansionDataOptions(focus_share=1.0, focus_frames=600)
    assert expansion_data._focused(waveform, 256, long, torch.Generator()) is waveform


def test_the_idea_model_is_fitted_to_mean_and_spread_of_ideas_and_lengths(dataset):
    words = "--options.fit_crops 4 --options.min_frames 128 --options.max_frames 256 --options.keep_mels false".split()
    built = recipe(IdeaDiffusionRecipe, IDEA, *words, dataset=dataset)
    items = [built.stream(0, 1).item(index)["waveform"] for index in range(4)]
    mels = [log_mel_spectrogram(item, built.mel) for item in items]
    ideas = torch.stack([resize_mel(mel, 32) for mel in mels])
    lengths = torch.tensor([math.log2(mel.shape[-1]) for mel in mels])
    fitted = built.fitted(*built.ideas_of(built._lengths("train"), 4))
    assert fitted["mel_mean"] == pytest.approx(ideas.mean().item(), abs=6e-5)
    assert fitted["mel_std"] == pytest.approx(ideas.std().item(), abs=6e-5)
    assert fitted["log2_frames_mean"] == pytest.approx(lengths.mean().item(), abs=6e-5)
    assert fitted["log2_frames_std"] == pytest.approx(max(0.1, lengths.std().item()), abs=6e-5)
    assert (fitted["log2_frames_min"], fitted["log2_frames_max"]) == (7.0, 8.0)
