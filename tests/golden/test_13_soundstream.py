"""The codec equals LumenPallidium's CausalVQAE stage by stage, at every stored bitrate (fixture 13)."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from golden_utils import fixture

from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel


@pytest.fixture(scope="module")
def golden():
    return fixture("13_lumenpallidium_vqvae")


@pytest.fixture(scope="module")
def model(golden):
    return SoundStreamModel.from_original(golden.weights("vae."), golden.config["vae_args"])


def stored_levels(golden) -> list[int]:
    """Numbers of codebooks that the fixture holds outputs for."""
    found = (re.fullmatch(r"vae\.n(\d+)\.out", key) for key in golden.io)
    return sorted(int(match[1]) for match in found if match)


def test_encoder_stages(golden, model):
    encoder, seen = model.encoder, {}
    stages = [encoder.input_conv, *encoder.blocks, encoder.output_conv]
    hooks = [
        stage.register_forward_hook(lambda module, args, output, key=f"vae.enc{number}": seen.update({key: output}))
        for number, stage in enumerate(stages)
    ]
    with torch.no_grad():
        latents = model.encode(golden.io["vae.x"]).latents
    for hook in hooks:
        hook.remove()
    assert golden.assert_stored(seen) == {key for key in golden.io if key.startswith("vae.enc")}
    golden.assert_close(f"vae.enc{len(stages) - 1}", latents)


def test_codes_decoder_and_losses_at_every_bitrate(golden, model):
    assert stored_levels(golden)
    waveform = golden.io["vae.x"]
    for levels in stored_levels(golden):
        name = f"vae.n{levels}"
        with torch.no_grad():
            codes = model.encode(waveform, num_quantizers=levels).audio_codes
            decoded = model.decode(codes, output_hidden_states=True)
            output = model(waveform, num_quantizers=levels)
        golden.assert_close(f"{name}.index", codes.transpose(0, 1))
        assert torch.equal(output.audio_codes, codes)
        golden.assert_close(f"{name}.out", decoded.audio_values)
        assert torch.equal(output.audio_values, decoded.audio_values[..., : waveform.shape[-1]])
        stages = [key for key in golden.io if key.startswith(f"{name}.multiscale") and key[-1].isdecimal()]
        assert len(stages) == len(decoded.hidden_states)
        for number, hidden in enumerate(decoded.hidden_states):
            golden.assert_close(f"{name}.multiscale{number}", hidden.mean(dim=1, keepdim=True))
        residual, loss = output_latents(model, waveform), 0.0
        for level in range(levels):
            chosen = model.quantizer.codebook(level).lookup(codes[:, level]).transpose(1, 2)
            loss, residual = loss + (residual - chosen).square().mean(), residual - chosen
        golden.assert_close(f"{name}.commit_loss", loss)
        # In eval mode the original leaves out the codebook term, which equals the commitment term.
        share = 2.0 if model.config.codebook_update == "gradient" else 1.0
        golden.assert_close(f"{name}.commit_loss", output.quantization_loss / share)


def output_latents(model, waveform):
    with torch.no_grad():
        return model.encode(waveform).latents


def test_the_causal_mode_differs_only_in_the_last_frame(golden, model):
    """Same weights, other padding: whole frames are equal, and so is all that is decoded from them."""
    waveform = golden.io["vae.x"]
    config = copy.deepcopy(model.config)
    config.padding = "causal"
    causal = SoundStreamModel(config).eval()
    causal.load_state_dict(model.state_dict())
    whole = waveform.shape[-1] // model.config.hop_length
    with torch.no_grad():
        ours, theirs = causal.encode(waveform).latents, model.encode(waveform).latents
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours[..., :whole], theirs[..., :whole], rtol=1e-4, atol=1e-5)


def test_round_trip(golden, model):
    weights, ours = golden.weights("vae."), model.to_original_state_dict()
    assert ours.keys() == weights.keys()
    for key, value in weights.items():
        assert ours[key].shape == value.shape, key
        if not key.endswith(("weight_g", "weight_v")):
            torch.testing.assert_close(ours[key], value, rtol=0, atol=0, msg=key)
    again = SoundStreamModel.from_original(ours, golden.config["vae_args"])
    for (name, one), (_, two) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6, msg=name)
