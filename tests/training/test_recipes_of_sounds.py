"""Recipes of sounds: tokens of mels, a GPT and a VAE over them, a MelGAN."""

from __future__ import annotations

import json
import math

import pytest
import torch
from sounds_for_tests import CLASSES, COLUMNS, GPT, VQVAE, tiny_vqvae, write_sounds
from testing_utils import assert_error
from training_utils import assert_same_checkpoints, context, started

from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.data.opening import open_recordings
from melreformer_hf.models.class_gpt.modeling_class_gpt import ClassGptModel
from melreformer_hf.models.mel_vqvae.modeling_mel_vqvae import MelVqvaeModel
from melreformer_hf.nn.conv import has_weight_norm
from melreformer_hf.nn.token_drawing import order_around
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.loop import train
from melreformer_hf.training.main import main
from melreformer_hf.training.recipes.class_gpt import ClassGptRecipe, draw_gap
from melreformer_hf.training.recipes.gpt_vae import GptVaeOptions, GptVaeRecipe
from melreformer_hf.training.recipes.mel_vqvae import MelVqvaeRecipe, texture_distance
from melreformer_hf.training.recipes.melgan import MelGanRecipe
from melreformer_hf.training.recipes.sound_data import sound_crop, trim_silence
from melreformer_hf.training.reporting import read_metrics

FRAMES = 8 * COLUMNS
JUDGED = {"discriminator_size": 2, "discriminator_layers": 1, "adversarial_start": 0.5}
EMA = {"codebook_update": "ema", "kmeans_iterations": 2, "restart_threshold": 0.1}
ANY = {"null_class": True, "any_order": True}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> str:
    folder = write_sounds(tmp_path_factory.mktemp("sounds") / "raw")
    build_dataset(folder, folder.parent / "built", BuildConfig(workers=1, label="folder"), progress=False)
    return str(folder.parent / "built")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_vqvae().save_pretrained(folder)
    return str(folder)


def settings(recipe_class, sounds: str, tokenizer: str, folder="unused", model=None, options=None, **changes):
    shared = {"crop_frames": FRAMES, "validation_sounds": 3}
    own = {
        MelVqvaeRecipe: ({**VQVAE, **EMA}, {**shared, **JUDGED, "baseline_sounds": 4}),
        ClassGptRecipe: (
            {**GPT, **ANY},
            {**shared, "tokenizer": tokenizer, "class_dropout": 0.3, "gap_share": 0.5, "token_noise": 0.1},
        ),
        GptVaeRecipe: (GPT, {**shared, "tokenizer": tokenizer, "autoencoder_share": 0.5, "token_noise": 0.2}),
        MelGanRecipe: (
            {"mel": None, "base_channels": 2, "num_residual_layers": 1},
            {
                "crop_frames": 16,
                "discriminator_size": 4,
                "discriminator_scales": 1,
                "validation_crops": 1,
                "validation_frames": 16,
            },
        ),
    }[recipe_class]
    values = {"max_steps": 4, "batch_size": 2, "num_workers": 0, "progress_bar": False, "cpu": True, "ema_decay": 0.5}
    values |= {"log_every_steps": 1, "warmup_steps": 2, "validate_every_steps": 2}
    return TrainingConfig(
        dataset=sounds,
        output_dir=str(folder),
        model={**own[0], **(model or {})},
        options={**own[1], **(options or {})},
        **{**values, **changes},
    )


def built(recipe_class, sounds: str = "unused", tokenizer: str = "", **changes):
    torch.manual_seed(0)
    return recipe_class(settings(recipe_class, sounds, tokenizer, **changes))


def batch_of(recipe, rows: int = 2) -> dict[str, torch.Tensor]:
    items = [recipe.prepare(recipe.stream(0, 1).item(i), torch.Generator().manual_seed(i)) for i in range(rows)]
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


@pytest.mark.parametrize("recipe_class", [MelVqvaeRecipe, ClassGptRecipe, GptVaeRecipe, MelGanRecipe])
def test_two_steps_and_two_more_equal_four(recipe_class, sounds, tokenizer, tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    metrics = train(*_pair(recipe_class, sounds, tokenizer, whole, save_every_steps=2, keep_checkpoints=3))
    assert recipe_class.best_metric in metrics and all(math.isfinite(value) for value in metrics.values())
    resume = str(whole / "checkpoints/step-00000002")
    train(*_pair(recipe_class, sounds, tokenizer, half, save_every_steps=2, keep_checkpoints=3, resume=resume))
    assert_same_checkpoints(whole, half, 4)
    losses = [line["loss"] for line in read_metrics(whole) if line["kind"] == "train"]
    assert len(set(losses)) == 4
    model = recipe_class(settings(recipe_class, sounds, tokenizer)).trainables()["model"].module
    assert type(model).from_pretrained(whole / "best").num_parameters() > 0


def _pair(recipe_class, *arguments, **changes):
    config = settings(recipe_class, *arguments, **changes)
    return recipe_class(config), config


def test_a_folder_of_classes_trains_with_one_command(tmp_path, capsys):
    folder = write_sounds(tmp_path / "mine", {"train": 5})
    words = ["--dataset", folder, "--output_dir", tmp_path / "runs/vq", "--max_steps", 1, "--batch_size", 2]
    words += ["--cpu", "true", "--progress_bar", "false", "--num_workers", 0, "--options.crop_frames", FRAMES]
    words += ["--options.adversarial_weight", 0, "--options.baseline_sounds", 2, "--options.validation_sounds", 2]
    words += [word for name, value in VQVAE.items() for word in (f"--model.{name}", json.dumps(value))]
    main(MelVqvaeRecipe, words)
    (dataset,) = (tmp_path / "runs/datasets").iterdir()
    assert "labelled" in dataset.name and open_recordings(dataset, "train").labels == CLASSES
    assert "class means" in capsys.readouterr().err


def test_silence_around_a_sound_is_cut():
    sound = torch.cat(
        [torch.zeros(1024), 0.5 * torch.ones(512), torch.zeros(256), 0.1 * torch.ones(256), torch.zeros(700)]
    )
    torch.testing.assert_close(trim_silence(sound, 60.0), sound[1024:2048])
    torch.testing.assert_close(trim_silence(sound, 10.0), sound[1024:1536])  # 0.1 is 14 dB below 0.5
    assert len(trim_silence(sound, 0.0)) == len(sound) and len(trim_silence(torch.zeros(600), 60.0)) == 600
    crop = sound_crop(sound, 4096, 60.0, torch.Generator())
    torch.testing.assert_close(crop[:1024], sound[1024:2048])
    assert len(crop) == 4096 and not crop[1024:].any()
    long = torch.arange(1.0, 5000.0)
    starts = {int(sound_crop(long, 1000, 0.0, torch.Generator().manual_seed(seed))[0]) for seed in range(8)}
    assert len(starts) > 4 and len(sound_crop(long, 1000, 0.0, torch.Generator())) == 1000


def test_items_are_mels_with_their_class(sounds):
    recipe = built(MelVqvaeRecipe, sounds)
    item = recipe.stream(0, 1).item(3)
    made = recipe.prepare(item, torch.Generator().manual_seed(0))
    assert made["input_features"].shape == (128, FRAMES)
    assert CLASSES[made["class_labels"]] == item["label"]
    crop = sound_crop(item["waveform"], FRAMES * 256, 60.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(made["input_features"], log_mel_spectrogram(crop, recipe.mel)[:, :FRAMES])
    softer = built(MelVqvaeRecipe, sounds, options={"gain_augmentation_db": 40.0})
    assert (
        softer.prepare(item, torch.Generator().manual_seed(0))["input_features"].mean() < made["input_features"].mean()
    )
    with pytest.raises(ValueError) as error:
        recipe.prepare({**item, "label": "loud"}, torch.Generator())
    assert_error(error, "training split's", "high", "'loud'")


def test_the_discriminator_judges_from_its_start_on_as_hard_as_the_reconstruction(sounds):
    recipe = built(MelVqvaeRecipe, sounds)
    started(recipe)
    batch = batch_of(recipe)
    early = list(recipe.phases(batch, context(progress=0.4, step=0)))
    late = list(recipe.phases(batch, context(progress=0.5, step=1)))
    assert [phase.module for phase in early] == ["model"]
    assert [phase.module for phase in late] == ["discriminator", "model"]
    scalars = late[1].scalars
    plain = scalars["reconstruction"] + scalars["quantization_loss"]
    judged = 0.8 * scalars["adversarial_factor"] * scalars["adversarial"]
    torch.testing.assert_close(late[1].loss, plain + judged)
    torch.testing.assert_close(
        early[0].loss, early[0].scalars["reconstruction"] + early[0].scalars["quantization_loss"]
    )
    fixed = built(MelVqvaeRecipe, sounds, options={"adaptive_limit": 0.0})
    started(fixed)
    *_, last = fixed.phases(batch, context(progress=1.0, step=1))
    assert last.scalars["adversarial_factor"] == 1


def test_codebooks_learn_after_the_step(sounds):
    recipe = built(MelVqvaeRecipe, sounds, options={"adversarial_weight": 0.0})
    model = started(recipe)["model"].train()
    (phase,) = recipe.phases(batch_of(recipe), context(step=0))
    assert bool(model.quantizer.codebook(0).initted)  # by k-means on the first batch
    before = model.quantizer.codebook(0).codewords.clone()
    recipe.after_step({"model": [phase.kept]}, context())
    assert not torch.equal(before, model.quantizer.codebook(0).codewords)


@torch.no_grad()
def test_validation_measures_beside_the_means_of_the_classes(sounds):
    recipe = built(MelVqvaeRecipe, sounds, options={"baseline_sounds": 12, "validation_sounds": 4})
    model = started(recipe)["model"].eval()
    found = recipe.validate(model).metrics
    held_out, seen = recipe.held_out(), recipe.first_items(12)
    guess = torch.stack(
        [seen["input_features"][seen["class_labels"] == label].mean(0) for label in held_out["class_labels"]]
    )
    expected = (guess - held_out["input_features"]).abs().mean().item()
    assert found["mel_l1_of_class_means"] == pytest.approx(expected, rel=1e-5)
    made = model(held_out["input_features"])
    error = (made.output_features - held_out["input_features"]).abs().mean().item()
    assert found["mel_l1"] == pytest.approx(error, rel=1e-4) and found["usage"] == len(made.codes.unique()) / 16
    assert found["mel_l1_share"] == pytest.approx(error / expected, rel=1e-4)


def test_gaps_are_columns_or_single_tokens():
    grid, generator = (3, 8), torch.Generator().manual_seed(0)
    stretches = [draw_gap(grid, 0.5, 0.0, generator) for _ in range(60)]
    lengths = set()
    for gap in stretches:
        columns = gap.unflatten(0, (8, 3))
        assert torch.equal(columns.any(1), columns.all(1))
        places = columns.any(1).nonzero()[:, 0]
        assert len(places) == places[-1] - places[0] + 1
        lengths.add(len(places))
    assert lengths == {1, 2, 3, 4}
    scattered = [draw_gap(grid, 0.5, 1.0, generator) for _ in range(60)]
    assert all(gap.any() for gap in scattered)
    assert any(gap.unflatten(0, (8, 3)).any(1).sum() > gap.unflatten(0, (8, 3)).all(1).sum() for gap in scattered)


def test_items_hide_classes_and_put_gaps_last(sounds, tokenizer):
    hidden = built(
        ClassGptRecipe, sounds, tokenizer, options={"class_dropout": 1.0, "gap_share": 1.0, "token_noise": 0.5}
    )
    plain = built(
        ClassGptRecipe, sounds, tokenizer, options={"class_dropout": 0.0, "gap_share": 0.0, "token_noise": 0.0}
    )
    tokens = torch.arange(plain.num_tokens)
    for index in range(4):
        item, generator = plain.stream(0, 1).item(index), torch.Generator().manual_seed(index)
        one, other = (recipe.prepare(item, generator.manual_seed(index)) for recipe in (hidden, plain))
        assert one["class_labels"] == 2 and CLASSES[other["class_labels"]] == item["label"]
        assert torch.equal(other["order"], tokens) and torch.equal(one["order"].sort()[0], tokens)
        assert (one["order"].diff() < 0).sum() <= 1  # those that are there, then those that are missing
        assert (other["noise"] == -1).all() and 0.2 < (one["noise"] >= 0).float().mean() < 0.8


def test_the_loss_is_of_tokens_in_their_order(sounds, tokenizer):
    recipe = built(ClassGptRecipe, sounds, tokenizer)
    model = started(recipe)["model"].eval()
    batch = batch_of(recipe)
    (phase,) = recipe.phases(batch, context())
    tokens = recipe.tokens(batch["input_features"]).gather(1, batch["order"])
    seen = torch.where(batch["noise"] < 0, tokens, batch["noise"])
    logits = model(seen, batch["class_labels"], order=batch["order"]).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    torch.testing.assert_close(phase.loss, expected)
    vqvae = MelVqvaeModel.from_pretrained(tokenizer)
    codes = vqvae.encode(batch["input_features"])
    torch.testing.assert_close(recipe.tokens(batch["input_features"]), vqvae.codes_to_tokens(codes))


@torch.no_grad()
def test_validation_compares_a_gap_with_left_to_right(sounds, tokenizer):
    recipe = built(ClassGptRecipe, sounds, tokenizer)
    model = started(recipe)["model"].eval()
    found = recipe.validate(model).metrics
    tokens, classes, gap = recipe.held_out_tokens(), recipe.held_out()["class_labels"], recipe.middle_gap()
    plain = recipe.token_losses(model, tokens, classes)
    assert found["loss"] == pytest.approx(plain.mean().item(), rel=1e-5)
    assert found["gap_loss_left_to_right"] == pytest.approx(plain[:, gap].mean().item(), rel=1e-5)
    order = order_around(gap).expand_as(tokens)
    filled = recipe.token_losses(model, tokens, classes, order)[:, -int(gap.sum()) :]
    assert found["gap_loss"] == pytest.approx(filled.mean().item(), rel=1e-5)
    assert model.config.class_names == CLASSES and found["counting"] > 0


def test_the_weight_of_the_divergence_grows_as_told():
    linear = GptVaeOptions(tokenizer="x", autoencoder_share=0.5, annealing_share=0.5, beta=2.0, kl_start=0.5)
    assert [linear.kl_weight(at) for at in (0.0, 0.49, 0.5, 0.625, 0.75, 1.0)] == [0, 0, 0.5, 1.25, 2, 2]
    cyclic = GptVaeOptions(tokenizer="x", autoencoder_share=0.0, annealing="cyclic", annealing_share=0.5, cycles=2)
    found = [cyclic.kl_weight(at) for at in (0.0, 0.125, 0.25, 0.49, 0.5, 0.625, 1.0)]
    assert found == [0, 0.5, 1, 1, 0, 0.5, 1]
    assert GptVaeOptions(tokenizer="x", autoencoder_share=0.0, annealing_share=0.0).kl_weight(0.0) == 1


def test_the_second_stage_begins_with_a_fresh_decoder(sounds, tokenizer):
    recipe = built(GptVaeRecipe, sounds, tokenizer)
    model = started(recipe)["model"].eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.125)
    batch = batch_of(recipe)
    (first,) = recipe.phases(batch, context(progress=0.4))
    assert first.scalars["kl_weight"] == 0 and (model.decoder.head.weight == 0.125).all()
    assert recipe.stateful()["stage"].state_dict() == {"is_second": False}
    (second,) = recipe.phases(batch, context(progress=0.5))
    assert (model.encoder.head.weight == 0.125).all() and not (model.decoder.head.weight == 0.125).any()
    fresh = model.decoder.head.weight.clone()
    list(recipe.phases(batch, context(progress=0.6)))
    assert torch.equal(fresh, model.decoder.head.weight)  # once
    again = built(GptVaeRecipe, sounds, tokenizer)
    again.stateful()["stage"].load_state_dict({"is_second": True})
    other = started(again)["model"]
    before = other.decoder.head.weight.clone()
    list(again.phases(batch, context(progress=0.6)))
    assert torch.equal(before, other.decoder.head.weight)


@torch.no_grad()
def test_validation_of_latents_swaps_them(sounds, tokenizer):
    recipe = built(GptVaeRecipe, sounds, tokenizer)
    model = started(recipe)["model"].eval()
    torch.manual_seed(3)
    found = recipe.validate(model).metrics
    torch.manual_seed(3)
    tokens = recipe.held_out_tokens()
    output = model(tokens, labels=tokens, noise=torch.randn(len(tokens), 16))
    means = output.posterior_mean
    swapped = model(tokens, latents=means.roll(1, 0), labels=tokens).reconstruction_loss.mean() / recipe.num_tokens
    assert found["reconstruction_of_other_latents"] == pytest.approx(swapped.item(), rel=1e-4)
    assert found["kl"] == pytest.approx(output.kl.mean().item(), rel=1e-4)
    assert found["elbo"] == pytest.approx((output.reconstruction_loss + output.kl).mean().item(), rel=1e-4)
    assert found["active_units"] == pytest.approx(model.active_units(means).item() / 16)


def test_melgan_trains_weight_normed_by_hinges(sounds, tokenizer):
    recipe = built(MelGanRecipe, sounds, tokenizer)
    modules = started(recipe)
    assert all(has_weight_norm(module) for module in modules.values())
    batch = batch_of(recipe)
    judge, model = recipe.phases(batch, context(progress=0.0))
    scores, maps = modules["discriminator"](batch["waveform"])
    fake, made = modules["discriminator"](modules["model"](batch["mel"]).waveform)
    hinge = torch.stack(
        [(1 - one).relu().mean() + (1 + two).relu().mean() for one, two in zip(scores, fake, strict=True)]
    )
    torch.testing.assert_close(judge.loss, hinge.mean(), rtol=1e-4, atol=1e-5)
    pairs = [
        torch.stack([(a - b).abs().mean() for a, b in zip(*both, strict=True)]).mean()
        for both in zip(maps, made, strict=True)
    ]
    adversarial = torch.stack([-score.mean() for score in fake]).mean()
    expected = adversarial + 13.3 * torch.stack(pairs).mean()
    torch.testing.assert_close(model.loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe_class", "changes", "fragments"),
    [
        (MelVqvaeRecipe, {"options": {"crop_frames": 30}}, ["crop_frames", "stride 8", "30"]),
        (MelVqvaeRecipe, {"options": {"adversarial_start": 2.0}}, ["adversarial_start", "[0, 1]", "2.0"]),
        (MelVqvaeRecipe, {"options": {"trim_db": -1.0}}, ["trim_db", "negative", "-1.0"]),
        (MelVqvaeRecipe, {"options": {"validation_split": "test"}}, ["validation_split", "'test'"]),
        (ClassGptRecipe, {"options": {"tokenizer": ""}}, ["tokenizer", "mel_vqvae"]),
        (ClassGptRecipe, {"options": {"crop_frames": 12}}, ["crop_frames", "stride 8", "12"]),
        (ClassGptRecipe, {"model": {"null_class": False}}, ["class_dropout", "0.3", "null_class"]),
        (ClassGptRecipe, {"model": {"any_order": False}}, ["gap_share", "0.5", "any_order"]),
        (ClassGptRecipe, {"model": {"num_classes": 3}}, ["num_classes", "left out"]),
        (GptVaeRecipe, {"options": {"annealing": "sudden"}}, ["annealing", "linear", "'sudden'"]),
        (GptVaeRecipe, {"options": {"autoencoder_share": 1.0}}, ["autoencoder_share", "[0, 1)", "1.0"]),
        (GptVaeRecipe, {"options": {"cycles": 0}}, ["cycles", "at least 1", "0"]),
        (GptVaeRecipe, {"model": {"vocab_size": 3}}, ["vocab_size", "tokenizer"]),
        (MelGanRecipe, {"options": {"discriminators": ["mpd"]}}, ["discriminators", "left out", "mpd"]),
        (MelGanRecipe, {"options": {"magnitude_weight": 1.0}}, ["magnitude_weight", "melgan", "1.0"]),
        (MelGanRecipe, {"options": {"adversarial_weight": 0.0}}, ["adversarial_weight", "above 0"]),
    ],
)
def test_wrong_settings_are_refused(recipe_class, changes, fragments, sounds, tokenizer):
    with pytest.raises(ValueError) as error:
        built(recipe_class, sounds, tokenizer, **changes)
    assert_error(error, *fragments)


def test_what_is_no_tokenizer_is_refused(sounds, tmp_path):
    for place, fragment in (
        ("nowhere", "neither a folder"),
        (str(tmp_path), "model type None"),
        ("piano-tiny", "has none"),
    ):
        with pytest.raises(ValueError, match="options.tokenizer must be a mel VQ-VAE") as error:
            built(ClassGptRecipe, sounds, place)
        assert fragment in str(error.value)


def test_classes_have_to_be_known(tmp_path, tokenizer):
    folder = write_sounds(tmp_path / "raw")
    build_dataset(folder, tmp_path / "unlabelled", BuildConfig(workers=1), progress=False)
    plain = str(tmp_path / "unlabelled")
    with pytest.raises(ValueError) as error:
        built(ClassGptRecipe, plain, tokenizer).trainables()
    assert_error(error, "class of its recordings", "label_column")
    assert built(MelVqvaeRecipe, plain).class_names == ("any",)
    assert isinstance(built(GptVaeRecipe, plain, tokenizer).stream(0, 1).item(0), dict)
    assert ClassGptModel.config_class.model_type == "melreformer_class_gpt"


def test_labels_of_other_programs_datasets_are_read_by_column(tmp_path):
    folder = write_sounds(tmp_path / "raw", {"train": 4})
    target = tmp_path / "layout/train"
    target.parent.mkdir()
    folder.rename(target)
    recipe = built(MelVqvaeRecipe, str(target.parent))
    assert recipe.class_names == CLASSES
    labels = {int(recipe.prepare(recipe.stream(0, 1).item(i), torch.Generator())["class_labels"]) for i in range(6)}
    assert labels == {0, 1}


def test_texture_is_liveliness_by_patches():
    generator = torch.Generator().manual_seed(0)
    smooth, noise = torch.zeros(1, 32, 64), torch.randn(2, 32, 64, generator=generator)
    # Two draws of the same noise are alike, though bin by bin they are further apart than either from its mean.
    assert texture_distance(noise[:1], noise[1:]) < 0.15 * texture_distance(smooth, noise[:1])
    assert (noise[0] - noise[1]).abs().mean() > (noise[0] - smooth).abs().mean()
    assert texture_distance(noise, noise) == 0
    stripes = torch.arange(64.0).remainder(2).expand(1, 32, 64)  # changes by 1 in time and by 0 in frequency
    torch.testing.assert_close(texture_distance(stripes, smooth), torch.tensor(0.5))


def test_a_decoder_learns_alone(sounds, tokenizer, tmp_path):
    model = {"codebook_update": "gradient", "kmeans_iterations": 0, "restart_threshold": 0.0}
    options = {"decoder_only": True, "texture_weight": 1.0}
    train(*_pair(MelVqvaeRecipe, sounds, "", tmp_path, model=model, options=options, init_from=tokenizer))
    before, after = (MelVqvaeModel.from_pretrained(place) for place in (tokenizer, tmp_path))
    mel = torch.randn(1, 128, FRAMES, generator=torch.Generator().manual_seed(0)) - 5
    assert torch.equal(before.encode(mel), after.encode(mel))
    for name, value in before.state_dict().items():
        kept = name.startswith(("encoder.", "quant_conv.", "quantizer."))
        assert torch.equal(value, after.state_dict()[name]) == kept, name
    lines = [line for line in read_metrics(tmp_path) if line["kind"] == "train"]
    assert all("texture" in line for line in lines)
    recipe = built(MelVqvaeRecipe, sounds, options={"texture_weight": 2.0, "adversarial_weight": 0.0})
    started(recipe)
    (phase,) = recipe.phases(batch_of(recipe), context())
    found = phase.scalars
    expected = found["reconstruction"] + found["quantization_loss"] + 2 * found["texture"]
    torch.testing.assert_close(phase.loss, expected)
    with pytest.raises(ValueError, match="decoder_only must be false without init_from"):
        built(MelVqvaeRecipe, sounds, options=options)
