"""A few labelled sounds, and tiny parts of a pipeline of sounds."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import soundfile
import torch

from melreformer_hf.models.class_gpt.configuration_class_gpt import ClassGptConfig
from melreformer_hf.models.class_gpt.modeling_class_gpt import ClassGptModel
from melreformer_hf.models.gpt_vae.configuration_gpt_vae import GptVaeConfig
from melreformer_hf.models.gpt_vae.modeling_gpt_vae import GptVaeModel
from melreformer_hf.models.hifi_vocoder.configuration_hifi_vocoder import HifiVocoderConfig
from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
from melreformer_hf.models.mel_vqvae.configuration_mel_vqvae import MelVqvaeConfig
from melreformer_hf.models.mel_vqvae.modeling_mel_vqvae import MelVqvaeModel

RATE = 22050
CLASSES = ("high", "low")
# 128 bands of 16 rows of tokens, columns of 8 frames.
VQVAE = {
    "mel": {"magnitude_epsilon": 1e-9},
    "input_range": [-11.5129, 2.0],
    "patch_size": 4,
    "resolution": 32,
    "base_channels": 8,
    "channel_multipliers": [1, 2],
    "num_residual_blocks": 1,
    "attention_resolutions": [4],
    "latent_channels": 8,
    "codebook_size": 16,
    "codebook_dim": 4,
    "num_norm_groups": 4,
}
COLUMNS = 4
GPT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_sounds(folder: Path, splits: dict[str, int] | None = None) -> Path:
    """Short tones in a folder per class: high ones and low ones, with silence around some."""
    random, rows = np.random.default_rng(0), []
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for split, count in (splits or {"train": 4, "validation": 2, "test": 1}).items():
            for index in range(count):
                seconds = 0.3 + 0.2 * (index % 3)
                time = np.arange(int(seconds * RATE)) / RATE
                pitch = {"high": 1600.0, "low": 200.0}[name] * (1 + 0.1 * random.random())
                tone = 0.3 * np.sin(2 * np.pi * pitch * time) * np.exp(-3 * time)
                silence = np.zeros(RATE // 8 if index % 2 else 0)
                file = f"{name}/{split}-{index}.wav"
                soundfile.write(folder / file, np.concatenate([silence, tone, silence]), RATE, subtype="PCM_16")
                rows.append({"file_name": file, "split": split})
    if splits is None or len(splits) > 1:
        with open(folder / "metadata.csv", "w", newline="") as table:
            writer = csv.DictWriter(table, ["file_name", "split"])
            writer.writeheader()
            writer.writerows(rows)
    return folder


def tiny_vqvae(**changes) -> MelVqvaeModel:
    """A tokenizer with weights of a seed."""
    torch.manual_seed(0)
    return MelVqvaeModel(MelVqvaeConfig(**{**VQVAE, **changes})).eval()


def tiny_sound_parts(vae: bool = True) -> dict:
    """Parts of a `TokenGenerationPipeline`, random but for their sizes."""
    vqvae = tiny_vqvae()
    tokens = vqvae.num_token_rows * COLUMNS
    torch.manual_seed(1)
    gpt = ClassGptConfig(
        **GPT, vocab_size=16, num_tokens=tokens, num_classes=2, class_names=CLASSES, null_class=True, any_order=True,
        initializer_range=0.5,
    )  # fmt: skip
    latent = GptVaeConfig(**GPT, vocab_size=16, num_tokens=tokens, initializer_range=0.3)
    vocoder = HifiVocoderConfig.preset("istft_tiny", hidden_size=16, intermediate_size=24, num_hidden_layers=1)
    return {
        "mel_vqvae": vqvae,
        "vocoder": HifiVocoderModel(vocoder).eval(),
        "class_gpt": ClassGptModel(gpt).eval(),
        "gpt_vae": GptVaeModel(latent).eval() if vae else None,
    }
