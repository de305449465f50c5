"""Discriminators and losses of the codec equal LumenPallidium/audio_generation (fixture 13)."""

from __future__ import annotations

import re

import pytest
import torch
from golden_utils import fixture

from melreformer_hf.training.discriminators.soundstream import PooledWaveformDiscriminator, TwoSidedStftDiscriminator
from melreformer_hf.training.losses.adversarial import feature_matching_loss
from melreformer_hf.training.losses.codec import (
    channel_average_loss,
    spectrogram_distance,
    stage_target,
    window_weights,
)
from melreformer_hf.training.losses.hinge import (
    hinge_discriminator_loss,
    hinge_generator_loss,
    separation_term,
)

# The original's two commits differ in what keeps the quotients finite; its weights are in the fixture's remarks.
OFFSETS = {"80aade1": 0.0, "7f11ff4": 1e-3}
SEPARATION_WEIGHT, FEATURE_WEIGHT = 1e-3, 100.0
SMALLEST_WINDOW = 64
CLASSES = {
    "wave": (PooledWaveformDiscriminator, "wave_block_args"),
    "stft": (TwoSidedStftDiscriminator, "stft_args"),
}


@pytest.fixture(scope="module")
def golden():
    return fixture("13_lumenpallidium_vqvae")


def load(golden, name):
    model_class, arguments = CLASSES[name]
    return model_class.from_original(golden.weights(f"disc_{name}."), golden.config[arguments]).eval()


def flattened(maps, count):
    """One list of all features; the original leaves the logits of the STFT discriminator out."""
    every = [features for layers in maps for features in layers]
    return every if len(every) == count else [features for layers in maps for features in layers[:-1]]


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_discriminator(golden, name):
    with torch.no_grad():
        _, maps = load(golden, name)(golden.io["disc.original"].squeeze(1))
    for index, layers in enumerate(maps):
        golden.assert_close(f"disc_{name}.out{index}", layers[-1])
    stored = [key for key in golden.io if re.fullmatch(rf"disc_{name}\.feat\d+\.mean", key)]
    features = flattened(maps, len(stored))
    assert len(features) == len(stored)
    for index, values in enumerate(features):
        golden.assert_close(f"disc_{name}.feat{index}.mean", values.mean())
        golden.assert_close(f"disc_{name}.feat{index}.absmean", values.abs().mean())


def discriminator_total(real, fake, offset):
    separation = separation_term(real, fake, SEPARATION_WEIGHT, offset)
    return hinge_discriminator_loss(real, fake) + separation, separation


def generator_total(fake, real_features, fake_features, offset):
    features = feature_matching_loss([real_features], [fake_features], reduction="mean", relative=True, offset=offset)
    return hinge_generator_loss(fake, bounded=True) + FEATURE_WEIGHT * features


@pytest.mark.parametrize("commit", sorted(OFFSETS))
@pytest.mark.parametrize("name", sorted(CLASSES))
def test_losses_and_gradient(golden, name, commit):
    model, offset, key = load(golden, name), OFFSETS[commit], f"loss_{name}.{commit}"
    reconstruction = golden.io["disc.reconstruction"].clone().requires_grad_()
    with torch.no_grad():
        real, real_maps = model(golden.io["disc.original"].squeeze(1))
    fake, fake_maps = model(reconstruction.squeeze(1))
    total, separation = discriminator_total(real, [logits.detach() for logits in fake], offset)
    golden.assert_close(f"{key}.separation_term", separation)
    golden.assert_close(f"{key}.discriminator", total)
    count = len([stored for stored in golden.io if re.fullmatch(rf"disc_{name}\.feat\d+\.mean", stored)])
    loss = generator_total(fake, flattened(real_maps, count), flattened(fake_maps, count), offset)
    golden.assert_close(f"{key}.generator", loss)
    loss.backward()
    golden.assert_close(f"{key}.grad_reconstruction", reconstruction.grad)


@pytest.mark.parametrize("commit", sorted(OFFSETS))
def test_losses_of_given_logits(golden, commit):
    def stored(what):
        return [golden.io[f"toy.{what}{index}"] for index in range(count)]

    count = len([key for key in golden.io if key.startswith("toy.logits_real")])
    total, _ = discriminator_total(stored("logits_real"), stored("logits_fake"), OFFSETS[commit])
    golden.assert_close(f"toy.{commit}.discriminator", total)
    loss = generator_total(stored("logits_fake"), stored("feat_real"), stored("feat_fake"), OFFSETS[commit])
    golden.assert_close(f"toy.{commit}.generator", loss)


def test_channel_averages(golden):
    weights, waveform = golden.config["multiscale_weights"], golden.io["ms.original"]
    stages = [golden.io[f"ms.rec{index}"].clone().requires_grad_() for index in range(len(weights))]
    for index, stage in enumerate(stages):
        golden.assert_close(f"ms.target{index}", stage_target(waveform, stage.shape[-1]))
    loss = channel_average_loss(stages, waveform, weights)
    golden.assert_close("ms.loss", loss)
    loss.backward()
    for index, stage in enumerate(stages):
        golden.assert_close(f"ms.grad{index}", stage.grad)


def test_channel_averages_of_the_codec(golden):
    weights, compared = golden.config["multiscale_weights"], 0
    for key in golden.io:
        if not key.endswith(".multiscale_loss"):
            continue
        stages = [golden.io[f"{key.removesuffix('_loss')}{index}"] for index in range(len(weights))]
        golden.assert_close(key, channel_average_loss(stages, golden.io["vae.x"], weights))
        compared += 1
    assert compared


def test_spectrograms(golden):
    count = len([key for key in golden.io if key.startswith("mspec.orig")])
    originals = [golden.io[f"mspec.orig{index}"] for index in range(count)]
    reconstructions = [golden.io[f"mspec.rec{index}"] for index in range(count)]
    weights = window_weights([SMALLEST_WINDOW * 2**index for index in range(count)])
    golden.assert_close("mspec.loss", spectrogram_distance(reconstructions, originals, weights))
    # Without logarithms the original scales the whole by 0.01.
    plain = spectrogram_distance(reconstructions, originals, [1.0] * count, logarithmic=False)
    golden.assert_close("mspec.loss_nolog_noalpha", 0.01 * plain)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_round_trip(golden, name):
    weights, ours = golden.weights(f"disc_{name}."), load(golden, name).to_original_state_dict()
    assert ours.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=0, msg=key)
