"""Names of the original MelReformer checkpoint and ours, both ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.nn.positions import sinusoidal_table
from melreformer_hf.originals.arguments import SHARE, SIZE, take_arguments

_ATTENTION = {"q": "query", "k": "key", "v": "value", "output.0": "out"}
_FEED_FORWARD = {"mlp.0": "up", "mlp.3": "down"}
# original prefix -> ours; {} is the number of a block
_PLAIN = {
    "start_token": "start_token",
    "encoder.1": "encoder_in",
    "encoder.3.layer_norm": "encoder_norm",
    "preprocess_decoder.0": "decoder_in",
    "decoder.layer_norm": "decoder_norm",
    "head": "head",
}
_ENCODER = {"sublayer0.0": "attention_norm", "sublayer1.0": "feed_forward_norm"}
_ENCODER |= {f"sublayer0.1.{theirs}": f"attention.{ours}" for theirs, ours in _ATTENTION.items()}
_ENCODER |= {f"sublayer1.1.{theirs}": f"feed_forward.{ours}" for theirs, ours in _FEED_FORWARD.items()}
_DECODER = {"ln_sa": "self_norm", "ln_ca": "cross_norm", "ln_ff": "feed_forward_norm"}
_DECODER |= {f"self_attn.{theirs}": f"self_attention.{ours}" for theirs, ours in _ATTENTION.items()}
_DECODER |= {f"cross_attn.{theirs}": f"cross_attention.{ours}" for theirs, ours in _ATTENTION.items()}
_DECODER |= {f"ff.{theirs}": f"feed_forward.{ours}" for theirs, ours in _FEED_FORWARD.items()}


def key_table(config: MelReformerConfig) -> dict[str, str]:
    """Original prefix -> prefix in `MelReformerModel`, for every module of a size."""
    table = dict(_PLAIN)
    for index in range(config.num_encoder_layers):
        table |= {f"encoder.3.blocks.{index}.{a}": f"encoder_layers.{index}.{b}" for a, b in _ENCODER.items()}
    for index in range(config.num_decoder_layers):
        table |= {f"decoder.blocks.{index}.{a}": f"decoder_layers.{index}.{b}" for a, b in _DECODER.items()}
    return {theirs: f"expansion.{ours}" for theirs, ours in table.items()}


def _rename(state: Mapping[str, torch.Tensor], table: Mapping[str, str]) -> dict[str, torch.Tensor]:
    renamed = {}
    for key, value in state.items():
        prefix, _, last = key.rpartition(".")
        if key in table:
            renamed[table[key]] = value
        elif prefix in table and last in ("weight", "bias"):
            renamed[f"{table[prefix]}.{last}"] = value
        else:
            renamed[key] = value  # refused by name when loaded
    return renamed


def config_of(arguments: Mapping) -> MelReformerConfig:
    """Configuration of an original's constructor arguments; left-out ones have the original's defaults.

    Raises:
        ValueError: an argument that the original does not have.
    """
    defaults = {
        "n_mels": 128,
        "window_size": 32,
        "num_blocks": 6,
        "num_heads": 8,
        "dim_embed": 768,
        "encoder_block_size": 256,
        "decoder_block_size": 64,
        "dropout": 0.1,
    }
    kinds = {name: SIZE for name in defaults} | {"dropout": SHARE}
    take_arguments(arguments, {}, kinds, "original MelReformer")
    values = {**defaults, **arguments}
    return MelReformerConfig(
        architecture="original",
        mel=MelConfig.preset("melreformer", num_mel_bins=values["n_mels"]).to_dict(),
        idea_columns=values["encoder_block_size"],
        fold_size=values["window_size"],
        hidden_size=values["dim_embed"],
        intermediate_size=2 * values["dim_embed"],
        num_encoder_layers=values["num_blocks"],
        num_decoder_layers=values["num_blocks"],
        num_attention_heads=values["num_heads"],
        decoder_window=values["decoder_block_size"],
        dropout=float(values["dropout"]),
    )


def from_original_keys(state: Mapping[str, torch.Tensor], config: MelReformerConfig) -> dict[str, torch.Tensor]:
    """Tensors, without the tables that follow from the original's sizes, under our names."""
    return _rename(state, key_table(config))


def to_original_keys(state: Mapping[str, torch.Tensor], config: MelReformerConfig) -> dict[str, torch.Tensor]:
    """The inverse of `from_original_keys`, the original's tables included."""
    original = _rename(state, {ours: theirs for theirs, ours in key_table(config).items()})
    window = config.decoder_window
    original["encoder.2.pe"] = sinusoidal_table(config.idea_columns, config.hidden_size)[None]
    original["preprocess_decoder.1.pe"] = sinusoidal_table(window, config.hidden_size)[None]
    for index in range(config.num_decoder_layers):
        original[f"decoder.blocks.{index}.self_attn.mask"] = torch.ones(window, window).tril()[None, None]
    return original


__all__ = ["config_of", "from_original_keys", "key_table", "to_original_keys"]
