"""HiFi-GAN's generator equals the original (fixture 03); the mel part is in test_mel_contracts.py."""

from __future__ import annotations

import re

import pytest
import torch
from golden_utils import fixture, tap

from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel


def variants() -> list[str]:
    """The keys of the fixture's arguments, `v1` and `v3` in the committed set."""
    try:
        return list(fixture("03_hifigan").config["args"])
    except pytest.skip.Exception:
        return ["v1"]


@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("plain", [False, True], ids=["weight_norm", "plain"])
def test_stages_and_output(variant, plain):
    golden = fixture("03_hifigan")
    weights = golden.weights(f"{variant}_plain." if plain else f"{variant}.")
    model = HifiVocoderModel.from_original({"generator": weights}, golden.config["args"][variant])
    generator, mel = model.generator, golden.io["in.mel"]
    parallel = len(model.config.resblock_kernel_sizes)

    def place(key: str) -> torch.nn.Module:
        ends = {"conv_pre": generator.input_conv, "conv_post_pretanh": generator.output_conv}
        if key in ends:
            return ends[key]
        kind, number = re.fullmatch(r"(ups|resblock)(\d+)", key).groups()
        if kind == "ups":
            return generator.stages[int(number)].upsample
        # The original numbers the blocks of all stages in one row.
        return generator.stages[int(number) // parallel].blocks[int(number) % parallel]

    prefix = f"{variant}."
    stored = {key.removeprefix(prefix) for key in golden.io if key.startswith(prefix)} - {"out"}
    made = []
    seen = tap(model, {key: place(key) for key in stored}, lambda: made.append(model(mel).waveform))
    golden.assert_close(f"{variant}.out", made[0].reshape(golden.io[f"{variant}.out"].shape))
    assert stored == seen.keys()
    for key, values in seen.items():
        golden.assert_close(prefix + key, values)


@pytest.mark.parametrize("variant", variants())
def test_state_dict_round_trip(variant):
    golden = fixture("03_hifigan")
    plain = golden.weights(f"{variant}_plain.")
    arguments = golden.config["args"][variant]
    model = HifiVocoderModel.from_original(plain, arguments)
    back = model.to_original_state_dict()
    assert back.keys() == plain.keys()
    for key, value in plain.items():
        torch.testing.assert_close(back[key], value, rtol=0, atol=0, msg=key)
    normed = model.to_original_state_dict(weight_norm=True)
    assert normed.keys() == golden.weights(f"{variant}.").keys()
    again = HifiVocoderModel.from_original(normed, arguments)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value)
