"""Names of the original MelReformer checkpoint and ours, both ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.nn.positions import sinusoidal_table
from melreformer_hf.originals.arguments import COUNT, NONE, SHARE, SIZE, either, take_arguments
from melreformer_hf.originals.formats import OriginalFormat
from melreformer_hf.originals.renaming import rename_keys

ORIGIN = "original MelReformer"
_ATTENTION = {"q": "query", "k": "key", "v": "value", "output.0": "out"}
_FEED_FORWARD = {"mlp.0": "up", "mlp.3": "down"}
_ENCODER = {"sublayer0.0": "attention_norm", "sublayer1.0": "feed_forward_norm"}
_ENCODER |= {f"sublayer0.1.{theirs}": f"attention.{ours}" for theirs, ours in _ATTENTION.items()}
_ENCODER |= {f"sublayer1.1.{theirs}": f"feed_forward.{ours}" for theirs, ours in _FEED_FORWARD.items()}
_DECODER = {"ln_sa": "self_norm", "ln_ca": "cross_norm", "ln_ff": "feed_forward_norm"}
_DECODER |= {f"self_attn.{theirs}": f"self_attention.{ours}" for theirs, ours in _ATTENTION.items()}
_DECODER |= {f"cross_attn.{theirs}": f"cross_attention.{ours}" for theirs, ours in _ATTENTION.items()}
_DECODER |= {f"ff.{theirs}": f"feed_forward.{ours}" for theirs, ours in _FEED_FORWARD.items()}
TABLE = [
    ("start_token", "expansion.start_token"),
    ("encoder.1.", "expansion.encoder_in."),
    ("encoder.3.layer_norm.", "expansion.encoder_norm."),
    ("preprocess_decoder.0.", "expansion.decoder_in."),
    ("decoder.layer_norm.", "expansion.decoder_norm."),
    ("head.", "expansion.head."),
    *((f"encoder.3.blocks.{{N}}.{a}.", f"expansion.encoder_layers.{{N}}.{b}.") for a, b in _ENCODER.items()),
    *((f"decoder.blocks.{{N}}.{a}.", f"expansion.decoder_layers.{{N}}.{b}.") for a, b in _DECODER.items()),
]


_NAMES = {
    "n_mels": ("n_mels", SIZE),
    "window_size": ("fold_size", SIZE),
    "num_blocks": ("num_blocks", SIZE),
    "num_heads": ("num_attention_heads", SIZE),
    "dim_embed": ("hidden_size", SIZE),
    "encoder_block_size": ("idea_columns", SIZE),
    "decoder_block_size": ("decoder_window", SIZE),
    "dim_ff": ("intermediate_size", either(COUNT, NONE)),
    "p_dropout": ("dropout", SHARE),
}
_DEFAULTS = {
    "n_mels": 128,
    "fold_size": 32,
    "num_blocks": 6,
    "num_attention_heads": 8,
    "hidden_size": 768,
    "idea_columns": 256,
    "decoder_window": 64,
    "intermediate_size": None,
    "dropout": 0.1,
}


def configuration_from_original(arguments: Mapping) -> MelReformerConfig:
    """Configuration of an original's constructor arguments; left-out ones have the original's defaults.

    Raises:
        ValueError: an argument that the original does not have, or of another kind.
    """
    fields = _DEFAULTS | take_arguments(arguments, _NAMES, {}, ORIGIN)
    blocks = fields.pop("num_blocks")
    return MelReformerConfig(
        architecture="original",
        mel=MelConfig.preset("melreformer", num_mel_bins=fields.pop("n_mels")).to_dict(),
        num_encoder_layers=blocks,
        num_decoder_layers=blocks,
        # The original reads its dim_ff with `or`: nothing and 0 are twice the width.
        intermediate_size=fields.pop("intermediate_size") or 2 * fields["hidden_size"],
        dropout=float(fields.pop("dropout")),
        **fields,
    )


def _to_original(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    config = model.config
    original = rename_keys(tensors, TABLE, ORIGIN, reverse=True)
    window = config.decoder_window
    original["encoder.2.pe"] = sinusoidal_table(config.idea_columns, config.hidden_size)[None]
    original["preprocess_decoder.1.pe"] = sinusoidal_table(window, config.hidden_size)[None]
    for index in range(config.num_decoder_layers):
        original[f"decoder.blocks.{index}.self_attn.mask"] = torch.ones(window, window).tril()[None, None]
    return original


def _check_architecture(model: nn.Module) -> None:
    if model.config.architecture != "original":
        raise ValueError(f'Only architecture "original" has original names, this is {model.config.architecture!r}.')


ORIGINAL_FORMAT = OriginalFormat(
    ORIGIN,
    lambda arguments, state_dict: {"config": configuration_from_original(arguments)},
    lambda tensors, model: rename_keys(tensors, TABLE, ORIGIN),
    _to_original,
    container="state_dict",
    check=_check_architecture,
)

__all__ = ["ORIGINAL_FORMAT", "configuration_from_original"]
