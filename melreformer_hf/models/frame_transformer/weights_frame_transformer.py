"""Original checkpoints of the frame transformer, version 4 (carperbr/frame-transformer), both ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from melreformer_hf.models.frame_transformer.configuration_frame_transformer import FrameTransformerConfig
from melreformer_hf.originals.arguments import SHARE, SIZE, SIZES, take_arguments
from melreformer_hf.originals.formats import OriginalFormat
from melreformer_hf.originals.renaming import rename_keys

ORIGIN = "original frame transformer"
_NUM_LEVELS = 6  # of every version 4 network
_NAMES = {
    "in_channels": ("num_audio_channels", SIZE),
    "channels": ("base_channels", SIZE),
    "dropout": ("dropout", SHARE),
    "n_fft": ("n_fft", SIZE),
    "num_heads": ("num_attention_heads", SIZE),
    "expansion": ("feedforward_expansion", SIZE),
    "num_attention_maps": ("num_attention_maps", SIZES),
}
_FREQUENCIES = "rotary_embedding.freqs"


def block_table(original: str, ours: str) -> list[tuple[str, str]]:
    """Rows of a residual block."""
    return [(f"{original}.{name}.", f"{ours}.{name}.") for name in ("norm", "conv1", "conv2", "identity")]


def attention_table(original: str, ours: str) -> list[tuple[str, str]]:
    """Rows of a multichannel attention."""
    rows = [(f"{original}.out_proj.", f"{ours}.out_proj.")]
    for name in ("q_proj", "k_proj", "v_proj"):
        rows += [
            (f"{original}.{name}.0.", f"{ours}.{name}.linear."),
            (f"{original}.{name}.1.", f"{ours}.{name}.conv."),
        ]
    return rows


def transformer_table(original: str, ours: str, decoder: bool) -> list[tuple[str, str]]:
    """Rows of a transformer layer of the encoder or of the decoder."""
    names = {"norm1": "attention_norm", "linear1": "up_proj", "linear2": "down_proj"}
    if decoder:
        names |= {"embed_self": "embed", "embed_skip": "embed_skip", "norm2": "skip_norm", "norm3": "mlp_norm"}
        attention = {"self_attn": "attention", "skip_attn": "skip_attention"}
    else:
        names |= {"embed": "embed", "norm2": "mlp_norm"}
        attention = {"attn": "attention"}
    rows = [(f"{original}.{theirs}.", f"{ours}.{own}.") for theirs, own in names.items()]
    for theirs, own in attention.items():
        rows += attention_table(f"{original}.{theirs}", f"{ours}.{own}")
    return rows


def _table() -> list[tuple[str, str]]:
    rows = [("out", "out.weight")]
    for level in range(_NUM_LEVELS):
        rows += block_table(f"enc{level + 1}.body.0", f"encoders.{level}")
        rows += transformer_table(f"enc{level + 1}_transformer", f"encoder_transformers.{level}", decoder=False)
        rows += block_table(f"dec{level + 1}.body.0", f"decoders.{level}.block")
        rows += transformer_table(f"dec{level + 1}_transformer", f"decoder_transformers.{level}", decoder=True)
    return rows


TABLE = _table()


def configuration_from_original(arguments: Mapping, nyquist: str) -> FrameTransformerConfig:
    """Configuration of the original constructor's arguments; what is absent has the published value.

    Raises:
        ValueError: an argument is unknown.
    """
    fields = take_arguments(arguments, _NAMES, {}, ORIGIN)
    fields.setdefault("n_fft", FrameTransformerConfig.n_fft)
    return FrameTransformerConfig(**fields, hop_length=fields["n_fft"] // 2, nyquist=nyquist)


def rotary_frequencies(head_dim: int) -> torch.Tensor:
    """The buffer of rotary frequencies that the original stores with every attention: (head_dim // 2,)."""
    return 10000.0 ** (-torch.arange(0, head_dim, 2)[: head_dim // 2].float() / head_dim)


def _frequency_keys(config: FrameTransformerConfig) -> dict[str, int]:
    """Names of the original's frequency buffers and the head size each belongs to."""
    keys = {}
    for level, (features, heads) in enumerate(zip(config.features, config.heads, strict=True)):
        keys[f"enc{level + 1}_transformer.attn.{_FREQUENCIES}"] = features // heads
        if level + 1 < config.num_levels:
            for name in ("self_attn", "skip_attn"):
                keys[f"dec{level + 1}_transformer.{name}.{_FREQUENCIES}"] = features // heads
    return keys


def _to_ours(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    ours = rename_keys(tensors, TABLE, ORIGIN)
    # Version 4 multiplies the channels by a matrix (out, in), which is a 1 x 1 convolution.
    return ours | {"out.weight": ours["out.weight"][:, :, None, None]}


def _to_original(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    original = rename_keys(tensors, TABLE, ORIGIN, reverse=True)
    original["out"] = original["out"].flatten(1)
    return original | {key: rotary_frequencies(size) for key, size in _frequency_keys(model.config).items()}


def _check_version(model: nn.Module) -> None:
    config = model.config
    version_4 = {
        "layout": "unet",
        "num_levels": _NUM_LEVELS,
        "resampling": "conv",
        "resampling_expansion": 1,
        "resampling_kernel_size": (3, 3),
        "map_weights": "own",
        "attention_kernel_size": 3,
        "feedforward_mixes_maps": True,
        "intermediate_size": None,
        "partial_rotary_factor": 1.0,
        "output_bias": False,
    }
    for name, value in version_4.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name} must be {value!r} in a checkpoint of version 4, got {getattr(config, name)!r}.")
    if config.num_attention_maps is None:
        raise ValueError("num_attention_maps must be set in a checkpoint of version 4, got None.")


ORIGINAL_FORMAT = OriginalFormat(
    ORIGIN,
    lambda arguments, state_dict, nyquist="drop": {"config": configuration_from_original(arguments, nyquist)},
    _to_ours,
    _to_original,
    options=("nyquist",),
    check=_check_version,
)

__all__ = [
    "ORIGIN",
    "ORIGINAL_FORMAT",
    "attention_table",
    "block_table",
    "configuration_from_original",
    "rotary_frequencies",
    "transformer_table",
]
