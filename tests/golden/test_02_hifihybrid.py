"""HiFiHybrid's generator, discriminators, losses and gradient equal the original (fixture 02)."""

from __future__ import annotations

import re

import pytest
import torch
from golden_utils import fixture, number_in_words, recipe_tensor, tap

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.models.hifi_vocoder.activations_hifi_vocoder import low_pass_taps
from melreformer_hf.models.hifi_vocoder.configuration_hifi_vocoder import HifiVocoderConfig
from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
from melreformer_hf.training.discriminators.waveform import MultiPeriodDiscriminator, MultiScaleDiscriminator
from melreformer_hf.training.losses.adversarial import discriminator_loss, feature_matching_loss, generator_loss


def small_generator() -> HifiVocoderModel:
    golden = fixture("02_hifihybrid")
    return HifiVocoderModel.from_original(golden.weights("generator."), golden.config["args"]["generator"])


def small_discriminators() -> dict[str, torch.nn.Module]:
    golden = fixture("02_hifihybrid")
    arguments = golden.config["args"]
    scale = {key.removeprefix("msd_"): value for key, value in arguments.items() if key.startswith("msd_")}
    return {
        "mpd": MultiPeriodDiscriminator.from_original(golden.weights("mpd."), arguments["mpd"]),
        "msd": MultiScaleDiscriminator.from_original(golden.weights("msd."), scale),
    }


def place(generator: torch.nn.Module, key: str) -> torch.nn.Module | None:
    """The module whose output the fixture stores under a key; `None` for what is no module's."""
    if key in ("g.initial", "g.final_activation"):
        return generator.input_conv if key == "g.initial" else generator.output_activation
    match = re.fullmatch(r"g\.block(\d+)(?:\.(tconv|amp(\d+)\.(activation|out)))?", key)
    if match is None:
        return None
    stage = generator.stages[int(match[1])]
    if match[2] is None:
        return stage
    if match[2] == "tconv":
        return stage.upsample
    block = stage.blocks[int(match[3])]
    return block.activation if match[4] == "activation" else block


def test_generator_stages_and_output():
    golden, model = fixture("02_hifihybrid"), small_generator()
    stored = {key for key in golden.io if key.startswith("g.") and not key.startswith("g.in.")}
    places = {key: place(model.generator, key) for key in stored}
    seen = tap(
        model,
        {key: module for key, module in places.items() if module is not None},
        lambda: golden.assert_close("g.out", model(golden.io["g.in.mel"]).waveform),
    )
    for key, values in seen.items():
        golden.assert_close(key, values)
    filtered = {key for key in stored if re.fullmatch(r"g\.block\d+\.amp\d+\.lowpass0", key)}
    for key in filtered:
        stem = key.removesuffix(".lowpass0")
        activation = place(model.generator, f"{stem}.activation")
        hidden = golden.io[f"{stem.rpartition('.')[0]}.tconv"]
        with torch.no_grad():
            golden.assert_close(key, activation._filter(hidden, activation.filter_before))
    assert stored == seen.keys() | filtered | {"g.out"}


def test_initial_filter():
    golden = fixture("02_hifihybrid")
    golden.assert_close("firwin12.default", low_pass_taps(golden.io["firwin12.default"].numel(), 0.125))


def test_generator_state_dict_round_trip():
    weights = fixture("02_hifihybrid").weights("generator.")
    back = small_generator().to_original_state_dict()
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(back[key], value, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("name", ["mpd", "msd"])
def test_discriminator_state_dict_round_trip(name):
    weights = fixture("02_hifihybrid").weights(f"{name}.")
    back = small_discriminators()[name].to_original_state_dict()
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(back[key], value, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("side", ["real", "fake"])
@pytest.mark.parametrize("name", ["mpd", "msd"])
def test_discriminators(name, side):
    golden = fixture("02_hifihybrid")
    with torch.no_grad():
        logits, maps = small_discriminators()[name](golden.io[f"d.in.{side}"])
    compare_discriminator(golden, f"{name}.{side}", logits, maps)


def compare_discriminator(golden, prefix, logits, maps):
    stored = {key for key in golden.io if key.startswith(f"{prefix}.") and not key.endswith(".full")}
    compared = set()
    for index, (value, layers) in enumerate(zip(logits, maps, strict=True)):
        pairs = {f"{prefix}.{index}.logits": value}
        for layer, features in enumerate(layers):
            pairs[f"{prefix}.{index}.fmap{layer}.mean"] = features.mean()
            pairs[f"{prefix}.{index}.fmap{layer}.absmean"] = features.abs().mean()
            if f"{prefix}.{index}.fmap{layer}.full" in golden.io:
                golden.assert_close(f"{prefix}.{index}.fmap{layer}.full", features)
        compared |= golden.assert_stored(pairs)
    assert stored == compared


def test_losses_and_gradient():
    golden = fixture("02_hifihybrid")
    discriminators, config = small_discriminators(), MelConfig.preset("melreformer")
    real, fake = golden.io["d.in.real"], golden.io["d.in.fake"].clone().requires_grad_()
    adversarial = features = judged = 0.0
    for name, discriminator in discriminators.items():
        with torch.no_grad():
            loss = discriminator_loss(discriminator(real)[0], discriminator(fake)[0])
        golden.assert_close(f"loss.d_loss_{name}", loss)
        judged = judged + loss
        logits, maps = discriminator(fake)
        adversarial = adversarial + generator_loss(logits)
        features = features + feature_matching_loss(discriminator(real)[1], maps)
    golden.assert_close("loss.d_total", judged)
    mel = (log_mel_spectrogram(fake, config) - log_mel_spectrogram(real, config)).abs().mean()
    golden.assert_close("loss.g_loss_adv", adversarial)
    golden.assert_close("loss.g_loss_feat", features)
    golden.assert_close("loss.g_loss_mel", mel)
    weights = [
        number_in_words(golden.config["remarks"], rf"weights:.*?{name} ([\d.]+)") for name in ("mel", "feature")
    ]
    total = adversarial + weights[0] * mel + weights[1] * features
    golden.assert_close("loss.g_total", total)
    total.backward()
    golden.assert_close("loss.g_total.grad_fake", fake.grad)


def recipe_weights(names: dict[str, torch.Size], bound: str) -> dict[str, torch.Tensor]:
    recipe = fixture("02_hifihybrid").config["full_recipe"]
    return {
        name: recipe_tensor(name, tuple(shape), recipe["seed"], recipe["bound_mul"][bound])
        for name, shape in names.items()
    }


@pytest.mark.parametrize("name", ["mpd", "msd"])
def test_full_width_discriminators(name):
    golden = fixture("02_hifihybrid")
    model_class = {"mpd": MultiPeriodDiscriminator, "msd": MultiScaleDiscriminator}[name]
    with torch.device("meta"):
        names = {key: value.shape for key, value in model_class().to_original_state_dict().items()}
    model = model_class.from_original(recipe_weights(names, name), {})
    assert sum(p.numel() for p in model.parameters()) == golden.config["full_size_param_counts"][name]
    with torch.no_grad():
        rows = golden.io[f"full.{name}.0.logits"].shape[0]
        logits, maps = model(golden.io["d.in.real"][:rows])
    compare_discriminator(golden, f"full.{name}", logits, maps)


def test_full_width_generator():
    golden = fixture("02_hifihybrid")
    shell = HifiVocoderModel(HifiVocoderConfig.preset("hifihybrid"))
    assert sum(p.numel() for p in shell.parameters()) == golden.config["full_size_param_counts"]["generator"]
    names = {key: value.shape for key, value in shell.to_original_state_dict().items()}
    model = HifiVocoderModel.from_original(recipe_weights(names, "generator"), {})
    with torch.no_grad():
        golden.assert_close("full.g.out", model(golden.io["full.g.in.mel"]).waveform)
