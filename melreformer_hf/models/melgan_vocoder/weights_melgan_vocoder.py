"""Original checkpoints of MelGAN (descriptinc/melgan-neurips), both ways."""

from __future__ import annotations

from collections.abc import Mapping

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.melgan_vocoder.configuration_melgan_vocoder import MelGanVocoderConfig
from melreformer_hf.originals.arguments import SIZE, take_arguments
from melreformer_hf.originals.formats import OriginalFormat
from melreformer_hf.originals.renaming import rename_keys

ORIGIN = "original MelGAN"
_NAMES = {
    "input_size": ("num_mel_bins", SIZE),
    "ngf": ("base_channels", SIZE),
    "n_residual_layers": ("num_residual_layers", SIZE),
}


def key_table(config: MelGanVocoderConfig) -> list[tuple[str, str]]:
    """(original, ours) beginnings of names; the original numbers all layers, activations and paddings included."""
    rows = [("model.1.", "input_conv.")]
    number = 2
    for stage in range(len(config.upsample_rates)):
        rows.append((f"model.{number + 1}.", f"stages.{stage}.upsample."))
        for layer in range(config.num_residual_layers):
            original, ours = f"model.{number + 2 + layer}.", f"stages.{stage}.blocks.{layer}."
            rows += [
                (f"{original}block.2.", f"{ours}dilated."),
                (f"{original}block.4.", f"{ours}pointwise."),
                (f"{original}shortcut.", f"{ours}shortcut."),
            ]
        number += 2 + config.num_residual_layers
    return [*rows, (f"model.{number + 2}.", "output_conv.")]


def configuration_from_original(arguments: Mapping, mel: Mapping | None) -> MelGanVocoderConfig:
    """Configuration of the arguments of the original's `Generator`; what is absent has the published value.

    Raises:
        ValueError: an argument is unknown, or contradicts `mel`.
    """
    fields = take_arguments(arguments, _NAMES, {}, ORIGIN)
    bins = fields.pop("num_mel_bins", None)
    if mel is None:
        contract = MelConfig.preset("melgan", **({} if bins is None else {"num_mel_bins": bins}))
    else:
        contract = MelConfig.from_dict(dict(mel))
    if bins is not None and contract.num_mel_bins != bins:
        raise ValueError(f"input_size must be the mel contract's num_mel_bins, {contract.num_mel_bins}, got {bins}.")
    return MelGanVocoderConfig(**fields, mel=contract.to_dict())


ORIGINAL_FORMAT = OriginalFormat(
    ORIGIN,
    lambda arguments, state_dict, mel=None: {"config": configuration_from_original(arguments, mel)},
    lambda tensors, model: rename_keys(tensors, key_table(model.config), ORIGIN),
    lambda tensors, model: rename_keys(tensors, key_table(model.config), ORIGIN, reverse=True),
    options=("mel",),
    weight_norm=True,  # the original's `load_state_dict` asks for them
    normed=lambda key, model: key.endswith(".weight"),
)

__all__ = ["ORIGINAL_FORMAT", "configuration_from_original", "key_table"]
