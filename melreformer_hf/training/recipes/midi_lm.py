"""Recipe `midi_lm`: one of transformers' own decoders on MIDI tokens, of the scheme `arrival` or `interarrival`.

Items are rows of `melreformer data tokenize`, or stretches of them. The largest presets have the sizes and the vocabulary of
the Anticipatory Music Transformer's checkpoints (`stanford-crfm/music-small-800k` and its kin), which `init_from` takes.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from melreformer_hf.data.sequences import SequenceStore, TokenStream, open_sequences
from melreformer_hf.hub import cards
from melreformer_hf.processing.midi.arrival import EVENT_SIZE, earliest_tick, shift_events
from melreformer_hf.processing.midi.vocabulary import VOCABULARIES
from melreformer_hf.processing.tokenization_midi import MidiTokenizer
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.recipes.base import Phase, Recipe, StepContext, Trainable, Validation

SCHEMES = ("arrival", "interarrival")
_IGNORED = -100
# layers, width, heads; the last three are those of the original's checkpoints
PRESETS: dict[str, tuple[int, int, int]] = {
    "test": (2, 16, 2),
    "tiny": (4, 128, 4),
    "base": (8, 512, 8),
    "small": (12, 768, 12),
    "medium": (24, 1024, 16),
    "large": (36, 1280, 20),
}
# How the families call layers, width, heads, positions, the width of their feed-forward layers, and dropout.
_FIELDS: dict[str, tuple[str, str, str, str, str, tuple[str, ...]]] = {
    "gpt2": ("n_layer", "n_embd", "n_head", "n_positions", "n_inner", ("resid_pdrop", "embd_pdrop", "attn_pdrop")),
    "llama": (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "max_position_embeddings",
        "intermediate_size",
        ("attention_dropout",),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MidiLMOptions:
    """Settings of the recipe for MIDI tokens.

    Raises:
        ValueError: a field breaks its rule.
    """

    scheme: str = option("arrival", "of the tokens: arrival or interarrival")
    architecture: str = option("gpt2", "decoder of transformers: gpt2 or llama")
    preset: str = option("tiny", "size (test, tiny, base, small, medium, large) that --model.NAME values change")
    dropout: float = option(0.1, "share of the activations that are left out in training")
    num_tokens: int = option(1024, "tokens of a training item; rows that are longer give any of their stretches")
    validation_rows: int = option(64, "held-out rows that are measured")
    validation_split: str = option("validation", "split that measures the model and chooses the best")

    def __post_init__(self) -> None:
        rules = [
            ("scheme", self.scheme in SCHEMES, f"be one of {SCHEMES}"),
            ("architecture", self.architecture in _FIELDS, f"be one of {tuple(_FIELDS)}"),
            ("preset", self.preset in PRESETS, f"be one of {tuple(PRESETS)}"),
            ("dropout", 0 <= self.dropout < 1, "be in [0, 1)"),
            ("num_tokens", self.num_tokens >= 1 + EVENT_SIZE, "be at least 4"),
            ("validation_rows", self.validation_rows >= 1, "be at least 1"),
            ("validation_split", self.validation_split != "test", "not be 'test', which only `evaluate` reads"),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"options.{name} must {rule}, got {getattr(self, name)!r}.")


def midi_lm_config(options: MidiLMOptions, **changes: object):
    """Configuration of the decoder, of transformers: the original's vocabulary, a context of 1024 tokens or more.

    Args:
        options: scheme, architecture, size.
        changes: fields of the configuration, by the names they have there.

    Raises:
        ValueError: the architecture's configuration has no such field.
    """
    from transformers import AutoConfig

    num_layers, width, num_heads = PRESETS[options.preset]
    *names, dropouts = _FIELDS[options.architecture]
    sizes = (num_layers, width, num_heads, max(1024, options.num_tokens), 4 * width)
    vocabulary = VOCABULARIES[options.scheme]
    end = vocabulary.first["separator"]
    fields = {
        **dict(zip(names, sizes, strict=True)),
        **dict.fromkeys(dropouts, options.dropout),
        "vocab_size": vocabulary.size,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    known = AutoConfig.for_model(options.architecture).to_dict()
    for name in changes:
        if name not in known:
            raise ValueError(f"model.{name} is no field of the configuration of {options.architecture}.")
    return AutoConfig.for_model(options.architecture, **{**fields, **changes})


def token_stretch(row: torch.Tensor, num_tokens: int, scheme: str, generator: torch.Generator) -> torch.Tensor:
    """Any `num_tokens` tokens of a row, or the whole row if it has no more.

    A stretch of `arrival` keeps the row's flag, holds whole events, and begins at time zero, as rows do.
    """
    if len(row) <= num_tokens:
        return row
    drawn = torch.rand((), generator=generator, dtype=torch.float64).item()
    if scheme == "interarrival":
        start = int(drawn * (len(row) - num_tokens + 1))
        return row[start : start + num_tokens]
    kept, events = (num_tokens - 1) // EVENT_SIZE, (len(row) - 1) // EVENT_SIZE
    start = 1 + EVENT_SIZE * int(drawn * (events - kept + 1))
    chosen = row[start : start + EVENT_SIZE * kept].tolist()
    return torch.tensor([int(row[0]), *shift_events(chosen, -earliest_tick(chosen))])


class MidiLMRecipe(Recipe):
    """Train a decoder of transformers (GPT-2, Llama) on MIDI tokens."""

    name = "midi_lm"
    best_metric = "bits_per_token"
    reads_notes = True
    Options = MidiLMOptions

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.scheme = self.options.scheme
        self.model_config = midi_lm_config(self.options, **config.model)
        self._stores: dict[str, SequenceStore] = {}

    def store(self, split: str) -> SequenceStore:
        """The rows of a split, opened once.

        Raises:
            ValueError: no such split, or tokens of another scheme.
        """
        if split not in self._stores:
            store = open_sequences(self.config.dataset, split)
            if store.scheme != self.scheme:
                raise ValueError(
                    f"options.scheme must be that of the dataset, {store.scheme!r}, got {self.scheme!r}. Give "
                    "--options.scheme, or tokenize with --scheme."
                )
            self._stores[split] = store
        return self._stores[split]

    def trainables(self) -> dict[str, Trainable]:
        from transformers import AutoModelForCausalLM

        return {"model": Trainable(AutoModelForCausalLM.from_config(self.model_config))}

    def stream(self, rank: int, world_size: int) -> TokenStream:
        return self.store("train").tokens(seed=self.config.seed, rank=rank, world_size=world_size)

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        num_tokens = self.options.num_tokens
        tokens = token_stretch(item["input_ids"], num_tokens, self.scheme, generator)
        missing = num_tokens - len(tokens)
        # What follows the last token is seen by none before it, so that padding needs no mask but that of the labels.
        return {
            "input_ids": functional.pad(tokens, (0, missing), value=self.model_config.pad_token_id),
            "labels": functional.pad(tokens, (0, missing), value=_IGNORED),
        }

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        loss = self.modules["model"](**batch).loss
        yield Phase("model", loss, {"loss": loss, "bits_per_token": loss / math.log(2)})

    def prepare_validation(self) -> None:
        self.store(self.options.validation_split)

    def validate(self, model: nn.Module) -> Validation:
        store = self.store(self.options.validation_split)
        step = max(1, store.num_rows // self.options.validation_rows)
        rows = range(0, store.num_rows, step)[: self.options.validation_rows]
        device = next(model.parameters()).device
        nats, counts = defaultdict(float), defaultdict(int)
        for row in rows:
            tokens = store.values(row)[: self.model_config.max_position_embeddings].to(device)
            logits = model(tokens[None]).logits[0, :-1].float()
            losses = functional.cross_entropy(logits, tokens[1:], reduction="none").double().cpu()
            for name, places in self._slots(len(losses)).items():
                nats[name] += losses[places].sum().item()
                counts[name] += len(losses[places])
        bits = {name: nats[name] / counts[name] / math.log(2) for name in nats}
        guessing = math.log2(VOCABULARIES[self.scheme].size)
        metrics = {"bits_per_token": bits.pop("all"), **{f"bits/{name}": value for name, value in bits.items()}}
        share = metrics["bits_per_token"] / guessing
        summary = f"{share:.2f}x of guessing ({guessing:.1f} bits per token)"
        return Validation(metrics, summary=summary, counts={"rows": len(rows)})

    def _slots(self, count: int) -> dict[str, slice]:
        """Which predictions are of which part of an event; the first token, a flag, is not predicted."""
        slots = {"all": slice(count)}
        if self.scheme == "arrival":
            names = ("time", "duration", "note")
            slots |= {name: slice(place, count, EVENT_SIZE) for place, name in enumerate(names)}
        return slots

    def describe_data(self) -> str:
        store = self.store("train")
        return f"{int(store.lengths.sum()):,} tokens in {store.num_rows:,} rows"

    def save_beside(self, folder: Path, card: Mapping[str, str]) -> None:
        MidiTokenizer(self.scheme, pad_token="separator").save_pretrained(folder)
        cards.write_card(
            folder,
            Path(cards.__file__).with_name("midi_lm_card.md"),
            "AutoModelForCausalLM",
            {"title": "MIDI language model", **card},
            tags=("music", "midi"),
            scheme=self.scheme,
            architecture=self.options.architecture,
        )


__all__ = ["PRESETS", "MidiLMOptions", "MidiLMRecipe", "midi_lm_config", "token_stretch"]
