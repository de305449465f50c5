"""Small expansions and mels for tests."""

from __future__ import annotations

import torch

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig

BINS, COLUMNS = 12, 24


def tiny_config(**overrides) -> MelReformerConfig:
    values = {
        "mel": MelConfig.preset("hifigan", num_mel_bins=BINS, fmax=None).to_dict(),
        "idea_columns": COLUMNS,
        "fold_size": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_attention_heads": 2,
        "encoder_window": 5,
        "decoder_window": 6,
        "cross_reach": 2,
        "context_frames": 3,
        "postnet_size": 24,
        "postnet_layers": 2,
        "postnet_kernel": 5,
        "initializer_range": 0.1,
    }
    return MelReformerConfig(**{**values, **overrides})


def random_mels(batch: int, frames: int) -> torch.Tensor:
    rows = [torch.randn(BINS, frames, generator=torch.Generator().manual_seed(100 + row)) for row in range(batch)]
    return torch.stack(rows) * 2 - 6
