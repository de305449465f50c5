"""What docs/weights.md promises: its families are those of the command line, its arguments are understood."""

from __future__ import annotations

import functools
import importlib
import json
import re
from pathlib import Path

import pytest
import torch
import yaml

import melreformer_hf
from melreformer_hf._registration import CONVERTIBLE
from melreformer_hf.models.class_gpt.weights_class_gpt import configuration_from_original as class_gpt
from melreformer_hf.models.hifi_vocoder.weights_hifi_vocoder import configuration_from_original as hifi_vocoder
from melreformer_hf.models.rq_transformer.weights_rq_transformer import configuration_from_original as rq_transformer
from melreformer_hf.models.soundstream.multires_soundstream import MultiresConv1d
from melreformer_hf.models.soundstream.weights_energy import energy_from_original
from melreformer_hf.models.soundstream.weights_quantizers import quantizer_from_original

GUIDE = (Path(__file__).parents[1] / "docs" / "weights.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)[1]


def test_every_family_has_a_row():
    table = GUIDE.partition("| `--family` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(CONVERTIBLE)


def test_the_examples_are_the_published_sizes():
    with torch.device("meta"):
        gpt = melreformer_hf.ClassGptModel(class_gpt(json.loads(block("json"))))
        config = rq_transformer(yaml.safe_load(block("yaml")), shared_codebook=True)
        transformer = melreformer_hf.RQTransformerModel(config)
    assert gpt.num_parameters() == 302_854_144
    assert transformer.num_parameters() == 480_921_088


def known(call) -> set[str]:
    """The arguments that a loader knows, which it lists for one that it does not."""
    with pytest.raises(ValueError, match="has no argument '@'") as error:
        call({"@": 0})
    return set(re.findall(r"'(\w+)'", str(error.value).partition("Known:")[2]))


def discriminators() -> dict[str, type]:
    """Discriminators by name, from the modules that the guide says they are in."""
    told = re.findall(r"`(\w+)\.(\w+Discriminator)`", GUIDE)
    return {
        name: getattr(importlib.import_module(f"melreformer_hf.training.discriminators.{module}"), name)
        for module, name in told
    }


def loader(name: str):
    """What reads the arguments of a row of the table of arguments."""
    if name in ("hifigan", "hifihybrid"):
        return functools.partial(hifi_vocoder, name)
    if name in ("encodec", "rq_vae", "kohonen_vae"):
        return functools.partial(quantizer_from_original, name, {})
    if name in ("port", "jax"):
        return functools.partial(energy_from_original, name, {})
    if name == "MultiresConv1d":
        return MultiresConv1d.from_original_arguments
    found = discriminators()[name] if name.endswith("Discriminator") else getattr(melreformer_hf, name)
    return found.from_original_arguments


def test_every_argument_is_listed():
    table = GUIDE.partition("## Every argument")[2].partition("## ")[0]
    rows = re.findall(r"^\| (`.*?`) \| (`.*) \|$", table, re.MULTILINE)
    inner = {"n_layer", "block", "n_head", "gelu", "attn_bias", "mlp_bias", "attn_pdrop", "resid_pdrop"}
    listed = set()
    for names, arguments in rows:
        for name in re.findall(r"`(\w+)`", names):
            told = set(re.findall(r"`(\w+)`", arguments))
            assert told - (inner if name == "RQTransformerModel" else set()) == known(loader(name)), name
            listed.add(name)
    families = {name for name in listed if name.endswith("Model")} | {"HifiVocoderModel"}
    assert len(families) == len(CONVERTIBLE) and len(listed) == 26


def test_named_parts_exist():
    judges = discriminators()
    assert len(judges) == 8
    for judge in judges.values():
        assert callable(judge.from_original)
    for path in set(re.findall(r"`(melreformer_hf(?:\.\w+)+)", GUIDE)) - {"melreformer_hf.training.discriminators"}:
        module, _, name = path.removesuffix(".from_original").rpartition(".")
        assert hasattr(importlib.import_module(module), name), path
