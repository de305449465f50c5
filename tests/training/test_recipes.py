"""Every recipe takes steps, measures itself, and resumes to the bit."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError
from testing_utils import assert_error
from training_utils import ADVERSARIAL, COLUMNS, GAN, VOCODER, context, same_tensors, started

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.data.batches import BatchStream
from melreformer_hf.models.mel_reformer.timing_mel_reformer import interpolate_idea
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.discriminators.families import DiscriminatorEnsemble
from melreformer_hf.training.main import main
from melreformer_hf.training.recipes.conv_upsampler import ConvUpsamplerRecipe
from melreformer_hf.training.recipes.expansion import ExpansionRecipe
from melreformer_hf.training.recipes.expansion_data import ExpansionDataOptions, idea_and_windows, inside_mask
from melreformer_hf.training.recipes.idea_diffusion import IdeaDiffusionRecipe
from melreformer_hf.training.recipes.idea_gan import IdeaGanRecipe
from melreformer_hf.training.recipes.upsampler_model import ConvUpsamplerConfig, ConvUpsamplerModel
from melreformer_hf.training.recipes.vocoder import VocoderRecipe
from melreformer_hf.training.reporting import read_metrics
from melreformer_hf.training.state import TrainingState

COMMON = """--save_every_minutes none --log_every_steps 1 --warmup_steps 2 --progress_bar false --cpu true
--batch_size 2 --num_workers 1 --validate_every_steps 2""".split()
WINDOWS = """--options.min_frames 128 --options.max_frames 512 --options.window_frames 32
--options.validation_crops 1 --options.validation_crop_frames 128 --options.validation_pieces 1""".split()
EXPANSION = """--model.idea_columns 32 --model.hidden_size 16 --model.intermediate_size 24 --model.num_encoder_layers 1
--model.num_decoder_layers 1 --model.num_attention_heads 2 --model.postnet_size 8 --model.postnet_layers 1
--options.scheduled_sampling_start 0.4 --optimizer muon""".split()
UPSAMPLER = """--model.idea_columns 32 --model.hidden_size 16 --model.intermediate_size 24 --model.num_column_layers 1
--model.num_frame_layers 1""".split()
IDEA = """--model.num_columns 32 --model.patch_size [8,4] --model.block_out_channels [32,32]
--model.norm_num_groups 8 --options.min_frames 128 --options.max_frames 512 --options.draws_per_idea 2
--options.fit_crops 3 --options.sampling_steps 2 --options.validation_ideas 3 --options.validation_samples 2""".split()
CASES = {
    "vocoder": (VocoderRecipe, [*VOCODER, *ADVERSARIAL]),
    "expansion": (ExpansionRecipe, [*WINDOWS, *EXPANSION]),
    "conv_upsampler": (ConvUpsamplerRecipe, [*WINDOWS, *UPSAMPLER]),
    "idea_diffusion": (IdeaDiffusionRecipe, IDEA),
    "idea_diffusion, columns": (IdeaDiffusionRecipe, COLUMNS),
    "idea_gan": (IdeaGanRecipe, GAN),
}


def words(name: str, dataset: str, output, *more) -> list[str]:
    arguments = [*CASES[name][1], *COMMON, "--dataset", dataset, "--output_dir", output, *more]
    return [str(word) for word in arguments]


def recipe(name: str, dataset: str, *more):
    recipe_class = CASES[name][0]
    return recipe_class(
        TrainingConfig.from_command_line(recipe_class, words(name, dataset, "unused", "--max_steps", 1, *more))
    )


# diffusers' DPM-Solver hands torch tensors to numpy.array; numpy 2 remarks on it.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", CASES)
def test_two_steps_and_two_more_equal_four(name, dataset, tmp_path):
    recipe_class = CASES[name][0]
    metrics = main(recipe_class, words(name, dataset, tmp_path / "whole", "--max_steps", 4, "--save_every_steps", 2))
    assert recipe_class.best_metric in metrics and all(torch.tensor(list(metrics.values())).isfinite())
    resume = str(tmp_path / "whole/checkpoints/step-00000002")
    main(recipe_class, words(name, dataset, tmp_path / "half", "--max_steps", 4, "--resume", resume))
    whole, half = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "half")
    assert [line["step"] for line in half] == [3, 4]
    for one, two in zip(whole[2:], half, strict=True):
        assert {**one, "minutes": 0} == {**two, "minutes": 0}
    assert len({line["loss"] for line in whole}) == 4
    weights = next(path.name for path in (tmp_path / "whole").glob("*.safetensors"))
    assert same_tensors(tmp_path / "whole" / weights, tmp_path / "half" / weights)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", CASES)
def test_gradient_checkpointing_changes_no_loss(name, dataset, tmp_path, capsys):
    recipe_class = CASES[name][0]
    more = ["--max_steps", 2, "--gradient_checkpointing"]
    if name == "conv_upsampler":
        with pytest.raises(SystemExit):
            main(recipe_class, words(name, dataset, tmp_path / "true", *more, "true"))
        assert "gradient_checkpointing must be false for ConvUpsamplerModel" in capsys.readouterr().err
        return
    on = []
    for value in ("false", "true"):
        given = words(name, dataset, tmp_path / value, *more, value)
        main(recipe_class, given)
        config = TrainingConfig.from_command_line(recipe_class, [*given, "--output_dir", str(tmp_path / "unused")])
        model = TrainingState(recipe_class(config), config, Accelerator(cpu=True)).modules["model"]
        on.append(any(getattr(module, "gradient_checkpointing", False) for module in model.modules()))
    assert on == [False, True]
    plain, saving = (read_metrics(tmp_path / value) for value in ("false", "true"))
    for one, two in zip(plain, saving, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_items_are_the_same_in_one_process_and_in_two(name, dataset):
    built = recipe(name, dataset)
    whole = BatchStream(built.stream(0, 1), built.prepare, 4).batch(1).tensors
    halves = [BatchStream(built.stream(rank, 2), built.prepare, 2).batch(1).tensors for rank in range(2)]
    for key, value in whole.items():
        joined = torch.stack([half[key] for half in halves], 1).flatten(0, 1)
        assert torch.equal(torch.nan_to_num(value.float()), torch.nan_to_num(joined.float())), key


def test_windows_are_cut_from_the_mel_that_the_idea_sums_up(dataset):
    built = recipe("expansion", dataset)
    waveform = built.recordings("train").fixed_crops(256 * 200, 1)[0]["waveform"]
    options = ExpansionDataOptions(min_frames=128, window_frames=64, windows_per_crop=5)
    tensors = idea_and_windows(waveform, built.mel, 40, options, torch.Generator().manual_seed(3), lead=8)
    assert tensors["idea"].shape == (128, 40) and tensors["num_frames"] == 200
    whole = idea_and_windows(
        waveform, built.mel, 200, ExpansionDataOptions(window_frames=200), torch.Generator(), lead=8
    )["labels"][0]
    for start, window in zip(tensors["start"].tolist(), tensors["labels"], strict=True):
        assert torch.equal(window, whole[:, start : start + 72])
    assert (whole[:, :8] == built.mel.floor_value).all()
    torch.testing.assert_close(tensors["idea"], resize_mel(whole[:, 8:], 40))


def test_windows_longer_than_their_crop_are_filled_and_do_not_count(dataset):
    for name in ("expansion", "conv_upsampler"):
        built = recipe(name, dataset, "--options.window_frames", "600")
        batch = BatchStream(built.stream(0, 1), built.prepare, 2).batch(0).tensors
        assert batch["num_frames"].max() < 600
        count, (start, frames) = batch["start"].shape[1], (batch["start"], batch["num_frames"])
        inside = inside_mask(start.flatten(), built.options.window_frames, frames.repeat_interleave(count))
        changed = dict(batch)
        lead = batch["labels"].shape[-1] - built.options.window_frames
        outside = torch.nn.functional.pad(1 - inside, (lead, 0)).unflatten(0, start.shape)
        changed["labels"] = batch["labels"] + 9 * outside
        if name == "expansion":
            changed["noise"] = batch["noise"] - 9 * outside  # the told past stays the same
        started(built)["model"].eval()
        with torch.no_grad():
            losses = [next(iter(built.phases(x, context()))).loss for x in (batch, changed)]
        # bfloat16 noise rounds what the decoder is told outside the piece, which its future cannot pass on.
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)


def test_a_share_of_the_crops_is_shortened_to_the_usual_length(dataset):
    words = "--options.focus_share 0.5 --options.focus_frames 160 --options.min_frames 400".split()
    built = recipe("expansion", dataset, *words)
    frames = torch.cat(
        [BatchStream(built.stream(0, 1), built.prepare, 20).batch(i).tensors["num_frames"] for i in range(2)]
    )
    short = frames <= 200
    assert frames[short].min() >= 120 and frames[~short].min() >= 400
    assert 10 <= short.sum() <= 30 and len(frames[short].unique()) > 5
    with pytest.raises(ValueError, match="focus_share"):
        recipe("expansion", dataset, "--options.focus_share", "1.5")


def test_the_past_is_noised_and_partly_the_networks_own(dataset):
    words = (
        "--options.scheduled_sampling 0.5 --options.scheduled_sampling_start 0.3 --options.windows_per_crop 2".split()
    )
    built = recipe("expansion", dataset, *words)
    batch = BatchStream(built.stream(0, 1), built.prepare, 2).batch(0).tensors
    told = []

    class Listener(torch.nn.Module):
        def forward(self, decoder_input_features, labels=None, **window):
            told.append((decoder_input_features, labels, window["previous_features"]))
            return self.model(decoder_input_features=decoder_input_features, labels=labels, **window)

    listener = Listener()
    listener.model = started(built)["model"]
    built.modules = {"model": listener}
    rows = batch["labels"].flatten(0, 1)
    noised = rows + batch["noise"].flatten(0, 1).float()
    assert 0.8 < batch["noise"].float().std() < 1.0
    list(built.phases(batch, context(0.2)))
    assert len(told) == 1 and torch.equal(told[0][0], noised[..., 8:]) and torch.equal(told[0][1], rows[..., 8:])
    told.clear()
    list(built.phases(batch, context(0.3)))
    own, everything = told
    assert len(own[0]) == 2 and own[1] is None
    assert not torch.equal(everything[0][:2], noised[:2, :, 8:])
    assert torch.equal(everything[0][2:], noised[2:, :, 8:])
    assert torch.equal(everything[2], noised[..., :8])


def test_the_upsampler_computes_windows_as_it_computes_pieces():
    config = ConvUpsamplerConfig(idea_columns=32, hidden_size=16, intermediate_size=24, num_frame_layers=3)
    torch.manual_seed(0)
    model = ConvUpsamplerModel(config).eval()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    idea, frames = torch.randn(2, 128, 32) - 5, torch.tensor([150, 90])
    with torch.no_grad():
        whole = model(idea, frames, torch.tensor([0, 0]), 150).output_features
        part = model(idea, frames, torch.tensor([40, 7]), 50).output_features
    torch.testing.assert_close(part[0], whole[0, :, 40:90], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(part[1], whole[1, :, 7:57], rtol=1e-4, atol=1e-4)
    generated = model.generate(idea, frames, chunk_frames=31)
    torch.testing.assert_close(generated[0], whole[0].clamp(min=config.mel_config.floor_value), rtol=1e-4, atol=1e-4)
    assert (generated[1, :, 90:] == config.mel_config.floor_value).all()
    coarse = interpolate_idea(idea, torch.zeros(2, dtype=torch.long), 150, frames)
    assert not torch.allclose(coarse, whole, atol=0.1)


def test_the_idea_model_is_fitted_to_the_crops(dataset):
    built = recipe("idea_diffusion", dataset, "--options.fit_crops", 8, "--options.keep_mels", "false")
    model = started(built)["model"]
    ideas = torch.stack([built._idea(built.stream(0, 1).item(index)["waveform"])[0] for index in range(8)])
    normalized = model.normalize_idea(ideas)
    assert abs(normalized.mean()) < 0.01 and abs(normalized.std() - 1) < 0.01
    assert 7 < model.config.log2_frames_mean < 9
    assert started(recipe("idea_diffusion", dataset, "--options.fit_crops", 0))["model"].config.mel_mean == -5.5


@pytest.mark.parametrize(
    ("name", "more", "fragments"),
    [
        ("vocoder", ["--options.crop_frames", 0], ["crop_frames", "at least 1", "0"]),
        ("vocoder", ["--options.mel_weight", -1], ["mel_weight", "negative", "-1"]),
        ("vocoder", ["--options.magnitude_weight", -1], ["magnitude_weight", "negative", "-1"]),
        ("vocoder", ["--model.hiden_size", 3], ["hiden_size", "Did you mean 'hidden_size'"]),
        ("expansion", ["--options.window_frames", 0], ["window_frames", "0"]),
        ("expansion", ["--options.scheduled_sampling", 2], ["scheduled_sampling", "[0, 1]", "2"]),
        ("expansion", ["--model.architecture", "oriental"], ["local", "original"]),
        ("conv_upsampler", ["--model.hidden_size", 0], ["hidden_size", "0"]),
        ("idea_diffusion", ["--options.fit_crops", 1], ["fit_crops", "1"]),
        ("idea_diffusion", ["--options.max_frames", 5], ["max_frames", "128", "5"]),
        ("idea_gan", ["--options.augmentation_stretch", 0.5], ["stretch", "at least 1", "0.5"]),
        ("idea_gan", ["--options.validation_split", "test"], ["validation_split", "'test'"]),
        ("vocoder", ["--options.validation_split", "test"], ["validation_split", "'test'", "chooses", "evaluate"]),
        ("idea_diffusion", ["--options.validation_split", "test"], ["validation_split", "'test'"]),
        ("expansion", ["--options.validation_split", "test"], ["validation_split", "'test'"]),
        ("conv_upsampler", ["--options.validation_split", "test"], ["validation_split", "'test'"]),
    ],
)
def test_wrong_options_are_refused(name, more, fragments, dataset):
    with pytest.raises((ValueError, StrictDataclassError)) as error:
        recipe(name, dataset, *more)
    assert_error(error, *fragments)


@pytest.mark.parametrize("name", CASES)
def test_datasets_of_another_rate_are_refused(name, dataset):
    mel = MelConfig.preset("hifigan", num_mel_bins=128, fmax=None, sampling_rate=44100).to_dict()
    other = recipe(name, dataset, "--model.mel", json.dumps(mel))
    with pytest.raises(ValueError) as error:
        other.stream(0, 1)
    assert_error(error, "22050 samples per second", "44100", "--sampling-rate 44100")


def test_weights_that_do_not_fit_start_no_training(dataset, tmp_path, capsys):
    main(VocoderRecipe, words("vocoder", dataset, tmp_path / "a", "--max_steps", 1))
    quiet = MelConfig.preset("hifigan", num_mel_bins=128, fmax=None, log_floor=1e-3).to_dict()
    for more, message in (
        (["--model.hidden_size", 8], "do not fit"),
        (["--model.mel", json.dumps(quiet)], "log_floor: init_from has 1e-05, this training has 0.001"),
    ):
        with pytest.raises(SystemExit):
            more = ["--max_steps", 1, "--init_from", tmp_path / "a", *more]
            main(VocoderRecipe, words("vocoder", dataset, tmp_path / "b", *more))
        assert message in capsys.readouterr().err


def test_unknown_discriminators_are_refused():
    with pytest.raises(ValueError, match="mpd, msd, mrd.*'stft'"):
        DiscriminatorEnsemble(["mpd", "stft"], 4)
    logits, maps = DiscriminatorEnsemble(["mpd", "mrd", "msd"], 4)(torch.randn(2, 4096))
    assert len(logits) == len(maps) == 5 + 3 + 2
