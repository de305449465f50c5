"""Training recipes by name; each is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from melreformer_hf.training.recipes.base import Recipe

# Names and places, not classes: `melreformer train --list` must not load torch.
RECIPES: dict[str, str] = {
    "class_gpt": "melreformer_hf.training.recipes.class_gpt:ClassGptRecipe",
    "codec": "melreformer_hf.training.recipes.codec:CodecRecipe",
    "codec_lm": "melreformer_hf.training.recipes.codec_lm:CodecLMRecipe",
    "composer": "melreformer_hf.training.recipes.composer:ComposerRecipe",
    "conv_upsampler": "melreformer_hf.training.recipes.conv_upsampler:ConvUpsamplerRecipe",
    "ear": "melreformer_hf.training.recipes.ear:EarRecipe",
    "expansion": "melreformer_hf.training.recipes.expansion:ExpansionRecipe",
    "gpt_vae": "melreformer_hf.training.recipes.gpt_vae:GptVaeRecipe",
    "idea_diffusion": "melreformer_hf.training.recipes.idea_diffusion:IdeaDiffusionRecipe",
    "idea_gan": "melreformer_hf.training.recipes.idea_gan:IdeaGanRecipe",
    "mel_vqvae": "melreformer_hf.training.recipes.mel_vqvae:MelVqvaeRecipe",
    "melgan": "melreformer_hf.training.recipes.melgan:MelGanRecipe",
    "midi_lm": "melreformer_hf.training.recipes.midi_lm:MidiLMRecipe",
    "performer": "melreformer_hf.training.recipes.performer:PerformerRecipe",
    "separation": "melreformer_hf.training.recipes.separation:SeparationRecipe",
    "vocoder": "melreformer_hf.training.recipes.vocoder:VocoderRecipe",
}


def find_recipe(name: str) -> type[Recipe]:
    """The recipe class of a name.

    Raises:
        ValueError: no such recipe; names those that there are.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {sorted(RECIPES)}, got {name!r}.")
    module, _, attribute = RECIPES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


__all__ = ["RECIPES", "find_recipe"]
