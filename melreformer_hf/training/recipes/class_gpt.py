"""Recipe `class_gpt`: the tokens of sounds, one after another, given their class.

In a share of the items the class is hidden, so that generation can be guided by it; in a share the tokens of a gap come
after all others, so that the model learns to fill it from both of its sides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from melreformer_hf.models.class_gpt.configuration_class_gpt import ClassGptConfig
from melreformer_hf.models.class_gpt.modeling_class_gpt import ClassGptModel
from melreformer_hf.nn.token_drawing import TokenSampling, draw_tokens, order_around
from melreformer_hf.plotting import stack_mels
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.recipes.base import Phase, StepContext, Trainable, Validation
from melreformer_hf.training.recipes.sound_tokens import TOKENIZER, TokenOptions, TokenRecipe

_KEPT = -1  # in the noise of an item: this token stays as it is
_SAMPLED = 4
_COUNTED = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassGptOptions(TokenOptions):
    """Settings of the recipe for tokens of a class.

    Raises:
        ValueError: a field breaks its rule.
    """

    preset: str = option("vas", "preset of ClassGptConfig that --model.NAME values change")
    class_dropout: float = option(0.0, "share of the items whose class is hidden; needs --model.null_class true")
    gap_share: float = option(
        0.0, "share of the items in which tokens of a gap come last; needs --model.any_order true"
    )
    scattered_share: float = option(
        0.25, "share of these gaps that are single tokens anywhere, not a stretch of columns"
    )
    longest_gap: float = option(0.5, "longest gap, as a share of the item")
    token_noise: float = option(0.0, "share of the tokens in the input that are replaced by random ones")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("class_dropout", "gap_share", "scattered_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"options.{name} must be in [0, 1], got {getattr(self, name)}.")
        if not 0 < self.longest_gap <= 1:
            raise ValueError(f"options.longest_gap must be in (0, 1], got {self.longest_gap}.")
        if not 0 <= self.token_noise < 1:
            raise ValueError(f"options.token_noise must be in [0, 1), got {self.token_noise}.")


def draw_gap(grid: tuple[int, int], longest: float, scattered: float, generator: torch.Generator) -> torch.Tensor:
    """Which tokens of an item are missing: a stretch of columns, or single ones anywhere.

    Args:
        grid: rows and columns.
        longest: share of the columns, or of the tokens, that are missing at most; at least one is.
        scattered: share of the gaps that are single tokens.
        generator: draws.

    Returns:
        (row * column,) bool, column by column.
    """
    rows, columns = grid
    if torch.rand((), generator=generator) < scattered:
        rate = longest * torch.rand((), generator=generator)
        missing = torch.rand(rows * columns, generator=generator) < rate
        missing[torch.randint(rows * columns, (), generator=generator)] = True
        return missing
    length = 1 + int(torch.randint(max(int(longest * columns), 1), (), generator=generator))
    start = int(torch.randint(columns - length + 1, (), generator=generator))
    column = torch.arange(rows * columns) // rows
    return (column >= start) & (column < start + length)


class ClassGptRecipe(TokenRecipe):
    """Train a class GPT (ClassGptModel) on the tokens of labelled sounds."""

    name = "class_gpt"
    best_metric = "loss"
    Options = ClassGptOptions

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        own = ("vocab_size", "num_tokens", "num_classes", "class_names")
        if given := [name for name in own if name in config.model]:
            raise ValueError(f"model.{given[0]} must be left out: it follows from the tokenizer and the dataset.")
        # Once without the dataset, which may not be built yet: what is wrong shows before that.
        self._fields = {"vocab_size": self.vocab_size, "num_tokens": self.num_tokens, **config.model}
        draft = ClassGptConfig.preset(self.options.preset, **self._fields)
        self._null_class, self._any_order = draft.null_class, draft.any_order
        self._counted: float | None = None
        if self.options.class_dropout and not self._null_class:
            raise ValueError(
                "options.class_dropout must be 0 for a model without a class for any, got "
                f"{self.options.class_dropout}. Say --model.null_class true."
            )
        if self.options.gap_share and not self._any_order:
            raise ValueError(
                f"options.gap_share must be 0 for a model of one order, got {self.options.gap_share}. Say "
                "--model.any_order true."
            )

    @property
    def model_config(self) -> ClassGptConfig:
        """Configuration of the model, with the classes of the dataset."""
        names = self.class_names
        return ClassGptConfig.preset(
            self.options.preset, **{**self._fields, "num_classes": len(names), "class_names": names}
        )

    def trainables(self) -> dict[str, Trainable]:
        return {"model": Trainable(ClassGptModel(self.model_config))}

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        made, options = super().prepare(item, generator), self.options
        if torch.rand((), generator=generator) < options.class_dropout:
            made["class_labels"] = torch.tensor(len(self.class_names))
        order = torch.arange(self.num_tokens)
        if torch.rand((), generator=generator) < options.gap_share:
            gap = draw_gap(self.grid, options.longest_gap, options.scattered_share, generator)
            order = order_around(gap)
        noisy = torch.rand(self.num_tokens, generator=generator) < options.token_noise
        noise = torch.randint(self.vocab_size, (self.num_tokens,), generator=generator)
        return {**made, "order": order, "noise": noise.masked_fill(~noisy, _KEPT)}

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        order, noise = batch["order"], batch["noise"]  # (batch, token)
        labels = self.tokens(batch["input_features"]).gather(1, order)
        places = {"order": order} if self._any_order else {}
        seen = torch.where(noise == _KEPT, labels, noise)
        loss = self.modules["model"](seen, batch["class_labels"], labels=labels, **places).loss
        yield Phase("model", loss, {"loss": loss, "bits_per_token": loss / math.log(2)})

    def prepare_validation(self) -> None:
        self.held_out()

    def validate(self, model: nn.Module) -> Validation:
        tokens, classes = self.held_out_tokens(), self.held_out()["class_labels"]
        losses = self.token_losses(model, tokens, classes)  # (sound, token)
        counting = self._counting()
        metrics = {
            "loss": losses.mean().item(),
            "counting": counting,
            "bits_per_token": losses.mean().item() / math.log(2),
        }
        summary = f"{metrics['loss'] / counting:.2f}x of counting how often each token comes"
        if self._any_order:
            gap = self.middle_gap()
            order = order_around(gap).expand_as(tokens)
            filled = self.token_losses(model, tokens, classes, order)[:, -int(gap.sum()) :].mean().item()
            plain = losses[:, gap].mean().item()
            metrics |= {"gap_loss": filled, "gap_loss_left_to_right": plain}
            summary += f"; a gap's tokens cost {filled / plain:.2f}x of what they cost left to right"
        pictures = {"true_over_generated": stack_mels(self._generated(model, tokens, classes))}
        return Validation(metrics, pictures, summary=summary, counts={"sounds": len(tokens)})

    def middle_gap(self) -> torch.Tensor:
        """The gap that validations measure: the middle third of the columns, (token,) bool."""
        rows, columns = self.grid
        column = torch.arange(rows * columns) // rows
        return (column >= columns // 3) & (column < max(2 * columns // 3, columns // 3 + 1))

    def token_losses(
        self, model: nn.Module, tokens: torch.Tensor, classes: torch.Tensor, order: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What every token costs in nats: (sound, token), in the order that is given."""
        device, found = next(model.parameters()).device, []
        for start in range(0, len(tokens), 16):
            rows = slice(start, start + 16)
            places = {} if order is None else {"order": order[rows].to(device)}
            labels = (tokens[rows] if order is None else tokens[rows].gather(1, order[rows])).to(device)
            logits = model(labels, classes[rows].to(device), **places).logits[:, :-1].float()
            found.append(cross_entropy(logits.transpose(1, 2), labels, reduction="none").cpu())
        return torch.cat(found)

    def _counting(self) -> float:
        """Nats per held-out token for who knows how often each comes in training sounds, row by row."""
        if self._counted is None:
            device = next(self.modules[TOKENIZER].parameters()).device
            seen = [
                self.tokens(part.to(device)).cpu() for part in self.first_items(_COUNTED)["input_features"].split(8)
            ]
            rows, wanted = (
                tokens.unflatten(1, (-1, self.grid[0])) for tokens in (torch.cat(seen), self.held_out_tokens())
            )
            nats = []
            for row in range(self.grid[0]):
                # One more of each: what was never seen is not impossible.
                counts = rows[..., row].flatten().bincount(minlength=self.vocab_size) + 1.0
                nats.append(-(counts / counts.sum()).log()[wanted[..., row]].mean())
            self._counted = torch.stack(nats).mean().item()
        return self._counted

    def _generated(self, model: nn.Module, tokens: torch.Tensor, classes: torch.Tensor) -> list[torch.Tensor]:
        """Pictures of true sounds, each above one of its class that is drawn."""
        labels = classes.unique()[:_SAMPLED]
        device = next(model.parameters()).device
        true = [tokens[classes == label][0] for label in labels]
        start = tokens.new_zeros(len(labels), 0).to(device)
        generators = [torch.Generator().manual_seed(int(label)) for label in labels]
        drawn = draw_tokens(
            model, {"class_labels": labels.to(device)}, start, self.num_tokens, TokenSampling(), generators
        )
        made = torch.stack(list(drawn), 1).cpu()
        shown = zip(self.pictures_of(torch.stack(true)), self.pictures_of(made), strict=True)
        return [mel for pair in shown for mel in pair]


__all__ = ["ClassGptOptions", "ClassGptRecipe", "draw_gap"]
