"""What docs/weights.md promises: its families are those of the command line, its arguments are understood."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import torch
import yaml

import melreformer_hf
from melreformer_hf._registration import FAMILIES
from melreformer_hf.models.class_gpt.weights_class_gpt import configuration_from_original as class_gpt
from melreformer_hf.models.rq_transformer.weights_rq_transformer import configuration_from_original as rq_transformer

GUIDE = (Path(__file__).parents[1] / "docs" / "weights.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)[1]


def test_every_family_has_a_row():
    assert set(re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE)) == set(FAMILIES)


def test_the_examples_are_the_published_sizes():
    with torch.device("meta"):
        gpt = melreformer_hf.ClassGptModel(class_gpt(json.loads(block("json"))))
        config = rq_transformer(yaml.safe_load(block("yaml")), shared_codebook=True)
        transformer = melreformer_hf.RQTransformerModel(config)
    assert gpt.num_parameters() == 302_854_144
    assert transformer.num_parameters() == 480_921_088


def test_named_parts_exist():
    judges = importlib.import_module("melreformer_hf.training.discriminators")
    names = set(re.findall(r"`(\w+Discriminator)`", GUIDE))
    assert len(names) == 8
    for name in names:
        assert hasattr(getattr(judges, name), "from_original")
    for path in set(re.findall(r"`(melreformer_hf(?:\.\w+)+)", GUIDE)) - {"melreformer_hf.training.discriminators"}:
        module, _, name = path.removesuffix(".from_original").rpartition(".")
        assert hasattr(importlib.import_module(module), name), path
