"""What recipes share that learn the tokens of sounds: the frozen tokenizer, and what its tokens sound like as pictures."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.mel_vqvae.configuration_mel_vqvae import MelVqvaeConfig
from melreformer_hf.models.mel_vqvae.modeling_mel_vqvae import MelVqvaeModel
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.recipes.companions import Companion
from melreformer_hf.training.recipes.sound_data import SoundOptions, SoundRecipe

TOKENIZER = "tokenizer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenOptions(SoundOptions):
    """Settings of recipes that learn tokens of sounds.

    Raises:
        ValueError: a field breaks its rule.
    """

    tokenizer: str = option(
        "", "a trained mel VQ-VAE, or a pipeline with one (folder, bundled name or Hub id), whose tokens are learned"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tokenizer:
            raise ValueError(
                "options.tokenizer must be given: the folder of a trained mel VQ-VAE (`melreformer train mel_vqvae`)."
            )


class TokenRecipe(SoundRecipe):
    """A recipe whose model learns the tokens that a frozen `MelVqvaeModel` makes of labelled sounds.

    Attributes:
        grid: rows and columns of an item's tokens, which are read column by column, low bands first.
        vocab_size: tokens that there are.
    """

    needs_labels = True

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self._tokenizer = Companion.find(
            TOKENIZER, "a mel VQ-VAE", self.options.tokenizer, "mel_vqvae", MelVqvaeConfig
        )
        found: MelVqvaeConfig = self._tokenizer.config
        self.mel: MelConfig = found.mel_config
        if self.options.crop_frames % found.stride:
            raise ValueError(
                f"options.crop_frames must be a multiple of the tokenizer's stride {found.stride}, got "
                f"{self.options.crop_frames}."
            )
        self.grid = (found.num_token_rows, self.options.crop_frames // found.stride)
        self.vocab_size = found.codebook_size
        self._held_out_tokens: torch.Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of an item."""
        return self.grid[0] * self.grid[1]

    def frozen(self) -> dict[str, nn.Module]:
        found = self._tokenizer
        return {TOKENIZER: MelVqvaeModel.from_pretrained(found.folder, subfolder=found.subfolder, dtype=torch.float32)}

    @torch.no_grad()
    def tokens(self, mels: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, token) of mels (batch, mel, frame), in full precision, so that they never depend on the training."""
        tokenizer: MelVqvaeModel = self.modules[TOKENIZER]
        with torch.autocast(mels.device.type, enabled=False):
            return tokenizer.codes_to_tokens(tokenizer.encode(mels.float()))

    def pictures_of(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Log-mels (mel, frame) that tokens (batch, token) decode to."""
        tokenizer: MelVqvaeModel = self.modules[TOKENIZER]
        device = next(tokenizer.parameters()).device
        return list(tokenizer.decode(tokenizer.tokens_to_codes(tokens.to(device))).float().cpu())

    def held_out_tokens(self) -> torch.Tensor:
        """Tokens (sound, token) of the held-out sounds, made once, on the CPU."""
        if self._held_out_tokens is None:
            device = next(self.modules[TOKENIZER].parameters()).device
            parts = [self.tokens(part.to(device)).cpu() for part in self.held_out()["input_features"].split(8)]
            self._held_out_tokens = torch.cat(parts)
        return self._held_out_tokens


__all__ = ["TOKENIZER", "TokenOptions", "TokenRecipe"]
