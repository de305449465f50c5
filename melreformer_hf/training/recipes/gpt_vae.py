"""Recipe `gpt_vae`: the tokens of a sound to one latent vector, and from a latent to tokens.

Two stages after Li et al., A Surprisingly Effective Fix for Deep Latent Variable Modeling of Text (EMNLP 2019), against
decoders that learn to do without their latent: first an autoencoder; then its encoder with a fresh decoder, while the
divergence from the prior gets its weight little by little, and counts only above a target (free bits).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from melreformer_hf.models.gpt_vae.configuration_gpt_vae import GptVaeConfig
from melreformer_hf.models.gpt_vae.modeling_gpt_vae import GptVaeModel, GptVaePosterior
from melreformer_hf.nn.token_drawing import TokenSampling, draw_tokens
from melreformer_hf.plotting import stack_mels
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.recipes.base import Phase, Stateful, StepContext, Trainable, Validation
from melreformer_hf.training.recipes.sound_tokens import TokenOptions, TokenRecipe
from melreformer_hf.training.wrapping import unwrapped

ANNEALINGS = ("linear", "cyclic")
_KEPT = -1  # in the noise of an item: this token stays as it is
_BETWEEN = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class GptVaeOptions(TokenOptions):
    """Settings of the recipe for latents of sounds.

    Raises:
        ValueError: a field breaks its rule.
    """

    preset: str = option("vas", "preset of GptVaeConfig that --model.NAME values change; free bits are its fields")
    autoencoder_share: float = option(0.4, "share of the training that is an autoencoder, before the decoder is reset")
    annealing: str = option("linear", "how the weight of the divergence grows in the rest: linear, or cyclic")
    annealing_share: float = option(0.5, "share of the rest, or of each cycle, over which it grows")
    cycles: int = option(4, "of annealing cyclic")
    kl_start: float = option(0.0, "weight at the beginning of the rest, or of each cycle")
    beta: float = option(1.0, "weight at the end")
    token_noise: float = option(0.0, "share of the tokens that the decoder is given which are replaced by random ones")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.annealing not in ANNEALINGS:
            raise ValueError(f"options.annealing must be one of {ANNEALINGS}, got {self.annealing!r}.")
        if not 0 <= self.autoencoder_share < 1:
            raise ValueError(f"options.autoencoder_share must be in [0, 1), got {self.autoencoder_share}.")
        if not 0 <= self.annealing_share <= 1:
            raise ValueError(f"options.annealing_share must be in [0, 1], got {self.annealing_share}.")
        if self.cycles < 1:
            raise ValueError(f"options.cycles must be at least 1, got {self.cycles}.")
        for name in ("kl_start", "beta"):
            if getattr(self, name) < 0:
                raise ValueError(f"options.{name} must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.token_noise < 1:
            raise ValueError(f"options.token_noise must be in [0, 1), got {self.token_noise}.")

    def kl_weight(self, progress: float) -> float:
        """Weight of the divergence at a share of the training, 0..1."""
        if progress < self.autoencoder_share:
            return 0.0
        share = (progress - self.autoencoder_share) / (1.0 - self.autoencoder_share)
        if self.annealing == "cyclic":
            share = min(share, 1.0) * self.cycles
            # The last cycle ends where it is, it does not begin again.
            share = 1.0 if share >= self.cycles else share % 1.0
        grown = 1.0 if share >= self.annealing_share else share / self.annealing_share
        return self.kl_start + (self.beta - self.kl_start) * grown


class _Stage:
    """Whether the decoder was reset; saved with the training."""

    def __init__(self) -> None:
        self.is_second = False

    def state_dict(self) -> dict:
        return {"is_second": self.is_second}

    def load_state_dict(self, state_dict: dict) -> None:
        self.is_second = bool(state_dict["is_second"])


class GptVaeRecipe(TokenRecipe):
    """Train a GPT-VAE (GptVaeModel) on the tokens of sounds, in two stages."""

    name = "gpt_vae"
    best_metric = "elbo"
    Options = GptVaeOptions
    needs_labels = False

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        for name in ("vocab_size", "num_tokens"):
            if name in config.model:
                raise ValueError(f"model.{name} must be left out: it follows from the tokenizer.")
        fields = {"vocab_size": self.vocab_size, "num_tokens": self.num_tokens, **config.model}
        self.model_config = GptVaeConfig.preset(self.options.preset, **fields)
        self._stage = _Stage()
        self._stage.is_second = self.options.autoencoder_share == 0

    def trainables(self) -> dict[str, Trainable]:
        return {"model": Trainable(GptVaeModel(self.model_config))}

    def stateful(self) -> dict[str, Stateful]:
        return {"stage": self._stage}

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        made = super().prepare(item, generator)
        noisy = torch.rand(self.num_tokens, generator=generator) < self.options.token_noise
        replaced = torch.randint(self.vocab_size, (self.num_tokens,), generator=generator)
        latent_noise = torch.randn(self.model_config.hidden_size, generator=generator)
        return {**made, "noise": replaced.masked_fill(~noisy, _KEPT), "latent_noise": latent_noise}

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        model, weight = self.modules["model"], self.options.kl_weight(context.progress)
        if context.progress >= self.options.autoencoder_share and not self._stage.is_second:
            self._begin_second_stage(model, context)
        tokens, noise = self.tokens(batch["input_features"]), batch["noise"]  # (batch, token)
        # The encoder hears what it is, the decoder something less: so it needs the latent.
        given = torch.where(noise == _KEPT, tokens, noise)
        output = model(tokens, decoder_input_ids=given, labels=tokens, noise=batch["latent_noise"], kl_weight=weight)
        scalars = {
            "loss": output.loss,
            "reconstruction": output.reconstruction_loss.mean() / self.num_tokens,
            "kl": output.kl.mean(),
            "counted_kl": output.counted_kl.mean(),
            "kl_weight": output.loss.new_tensor(weight),
        }
        yield Phase("model", output.loss, scalars)

    def _begin_second_stage(self, model: nn.Module, context: StepContext) -> None:
        # The same fresh weights in every process, whatever it drew before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=context.generator)))
            unwrapped(model).reset_decoder()
        self._stage.is_second = True

    def prepare_validation(self) -> None:
        self.held_out()

    def validate(self, model: nn.Module) -> Validation:
        tokens, device = self.held_out_tokens(), next(model.parameters()).device
        parts = [tokens[start : start + 16].to(device) for start in range(0, len(tokens), 16)]
        width = self.model_config.hidden_size
        # The seed of a validation is fixed: the same noise every time.
        outputs = [model(part, labels=part, noise=torch.randn(len(part), width).to(part.device)) for part in parts]
        means = torch.cat([output.posterior_mean.float().cpu() for output in outputs])
        posterior = GptVaePosterior(
            mean=means,
            log_variance=torch.cat([output.posterior_log_variance.float().cpu() for output in outputs]),
        )
        nats = torch.cat([output.reconstruction_loss.float().cpu() for output in outputs]) / self.num_tokens
        # Each sound with the latent of its neighbor: a decoder that needs none notices nothing.
        others = means.roll(1, 0).split(16)
        wrong = [
            model(part, latents=other.to(device, part_dtype(model)), labels=part).reconstruction_loss.float().cpu()
            for part, other in zip(parts, others, strict=True)
        ]
        kl = torch.cat([output.kl.float().cpu() for output in outputs]).mean().item()
        shuffled, plain = torch.cat(wrong).mean().item() / self.num_tokens, nats.mean().item()
        metrics = {
            "elbo": plain * self.num_tokens + kl,
            "reconstruction": plain,
            "reconstruction_of_other_latents": shuffled,
            "kl": kl,
            "mutual_information": model.mutual_information(posterior).item(),
            "active_units": model.active_units(means).item() / means.shape[1],
        }
        summary = (
            f"tokens cost {plain:.2f} nats with their latent, {shuffled:.2f} with another's; divergence {kl:.1f} nats, "
            f"{metrics['active_units']:.0%} of the units active"
        )
        pictures = {"one_sound_into_another": stack_mels(self._between(model, means[:1], means[-1:]))}
        return Validation(metrics, pictures, summary=summary, counts={"sounds": len(tokens)})

    def _between(self, model: nn.Module, first: torch.Tensor, last: torch.Tensor) -> list[torch.Tensor]:
        """Pictures of sounds on the way from one latent to another, their likeliest tokens."""
        device = next(model.parameters()).device
        latents = model.interpolate(first, last, _BETWEEN).to(device, part_dtype(model))
        start = torch.zeros(_BETWEEN, 0, dtype=torch.long, device=device)
        drawn = draw_tokens(model, {"latents": latents}, start, self.num_tokens, TokenSampling(do_sample=False))
        return self.pictures_of(torch.stack(list(drawn), 1))


def part_dtype(model: nn.Module) -> torch.dtype:
    """The type of a model's weights."""
    return next(model.parameters()).dtype


__all__ = ["ANNEALINGS", "GptVaeOptions", "GptVaeRecipe"]
