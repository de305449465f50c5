"""Spatial/depth transformer over residual codes.

Lee, Kim, Kim, Cho, Han, Autoregressive Image Generation using Residual Quantization (arXiv 2203.01941), original
repository kakaobrain/rq-vae-transformer. The spatial transformer runs once per position over the sum of each position's
codes; the depth transformer then makes the position's codes one after the other.

Deviations: any codec's codes as (batch, depth, position), positions in raster order for pictures; keys and values are
cached on both levels, one new position per step; conditioning on an idea mel besides class and token sequence; the codec's
codewords, where they are used, are a buffer of this model; dropout is off unless configured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu
from transformers import DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.rq_transformer.configuration_rq_transformer import RQTransformerConfig
from melreformer_hf.models.rq_transformer.sampling_rq_transformer import soft_codes
from melreformer_hf.models.rq_transformer.weights_rq_transformer import ORIGINAL_FORMAT
from melreformer_hf.nn.attention import AttentionMixin
from melreformer_hf.nn.gpt import GptLayers, init_gpt_weights
from melreformer_hf.nn.sampling import Generators, choose
from melreformer_hf.originals.formats import OriginalCheckpointMixin


@dataclass
class RQTransformerOutput(ModelOutput):
    """Output of `RQTransformerModel`.

    Args:
        loss: scalar; `code_loss`, joined with `condition_loss` by its weight where there is one.
        logits: (batch, depth, position, codeword).
        code_loss: scalar, mean cross-entropy of codes in nats.
        depth_losses: (depth,) the same for each depth.
        condition_loss: scalar, mean cross-entropy of the condition's next tokens (`conditioning="sequence"`).
        condition_logits: (batch, condition step - 1, condition vocab).
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    code_loss: torch.FloatTensor | None = None
    depth_losses: torch.FloatTensor | None = None
    condition_loss: torch.FloatTensor | None = None
    condition_logits: torch.FloatTensor | None = None


class DepthLinear(nn.Module):
    """One linear layer per depth: weight (depth, in, out)."""

    def __init__(self, depth: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(depth, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(depth, out_features))

    def forward(self, hidden: torch.Tensor, first_depth: int = 0) -> torch.Tensor:
        """(row, some depths, in) -> (row, some depths, out), the first of them being `first_depth`."""
        # Training asks for all depths at once, generation for one.
        chosen = slice(first_depth, first_depth + hidden.shape[1])
        return torch.einsum("rdi,dio->rdo", hidden, self.weight[chosen]) + self.bias[chosen]


class CodeClassifier(nn.Module):
    """Layer norm and linear layer to codewords, shared by the depths or one for each."""

    def __init__(self, hidden_size: int, vocab_size: int, depth: int | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.linear = (
            nn.Linear(hidden_size, vocab_size) if depth is None else DepthLinear(depth, hidden_size, vocab_size)
        )

    def forward(self, hidden: torch.Tensor, first_depth: int = 0) -> torch.Tensor:
        """(row, some depths, hidden) -> (row, some depths, vocab)."""
        normed = self.norm(hidden)
        return self.linear(normed, first_depth) if isinstance(self.linear, DepthLinear) else self.linear(normed)


class MelCondition(nn.Module):
    """Columns of an idea mel as vectors: two linear layers with a GELU between them."""

    def __init__(self, num_mel_bins: int, hidden_size: int) -> None:
        super().__init__()
        self.input = nn.Linear(num_mel_bins, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """(batch, mel, column) -> (batch, column, hidden)."""
        return self.output(gelu(self.input(input_features.transpose(1, 2))))


class RQTransformerPreTrainedModel(AttentionMixin, HubMixin, PreTrainedModel):
    """Initial values and loading."""

    config_class = RQTransformerConfig
    base_model_prefix = "rq_transformer"
    main_input_name = "audio_codes"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GptBlock"]
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_gpt_weights(module, self.config.initializer_range)
        if isinstance(module, DepthLinear):
            init.normal_(module.weight, 0.0, self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, RQTransformerModel) and module.codebooks is not None:
            init.normal_(module.codebooks)


class RQTransformerModel(OriginalCheckpointMixin, RQTransformerPreTrainedModel):
    """Autoregressive model of residual codes on two levels.

    With `code_embedding="codebook"` the codewords are random until `set_codebooks` gives the codec's; they are saved with
    the model.

    Args:
        config: sizes, embeddings and conditioning.

    Example:

        >>> import torch
        >>> from melreformer_hf.models.rq_transformer.configuration_rq_transformer import RQTransformerConfig
        >>> from melreformer_hf.models.rq_transformer.modeling_rq_transformer import RQTransformerModel
        >>> config = RQTransformerConfig.preset("tiny", conditioning="class", condition_vocab_size=5)
        >>> model = RQTransformerModel(config).eval()
        >>> generator = torch.Generator().manual_seed(0)
        >>> codes = model.generate(class_labels=torch.tensor([0, 4]), top_k=8, generator=generator)
        >>> tuple(codes.shape)
        (2, 3, 12)
        >>> bool(model(codes, class_labels=torch.tensor([0, 4]), labels=codes).loss > 0)
        True
    """

    original_format = ORIGINAL_FORMAT

    def __init__(self, config: RQTransformerConfig) -> None:
        super().__init__(config)
        width, depth = config.hidden_size, config.num_quantizers
        if config.conditioning == "mel":
            self.num_mel_bins = config.mel_config.num_mel_bins
            self.condition_projection = MelCondition(self.num_mel_bins, width)
        else:
            self.condition_embedding = nn.Embedding(config.condition_vocab_size, width)
        self.condition_positions = nn.Embedding(config.num_condition_positions, width)
        self.positions = nn.Embedding(config.num_positions, width)
        self.depth_positions = nn.Embedding(depth, width)
        self.token_embedding = None
        if config.uses_table:
            # Tables of all depths lie below one another in one embedding.
            rows = config.vocab_size * (1 if config.shared_table else depth)
            self.token_embedding = nn.Embedding(rows, width)
        shape = (1 if config.shared_codebook else depth, config.vocab_size, config.codebook_dim)
        # A buffer: the codec's codewords are saved with the model and never trained here.
        self.register_buffer("codebooks", torch.empty(shape) if config.uses_codebook else None)
        uses = (config.code_embedding, config.head_code_embedding)
        self.input_projection, self.head_projection = (
            nn.Linear(config.codebook_dim, width) if use == "codebook" else None for use in uses
        )
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.body = GptLayers(width, config.num_hidden_layers, config.num_attention_heads, **config.block_options())
        self.head = GptLayers(
            width, config.head_num_hidden_layers, config.head_num_attention_heads, **config.block_options("head_")
        )
        self.classifier = CodeClassifier(width, config.vocab_size, None if config.shared_classifier else depth)
        self.condition_classifier = None
        if config.conditioning == "sequence":
            self.condition_classifier = CodeClassifier(width, config.condition_vocab_size, None)
        self.post_init()

    @torch.no_grad()
    def set_codebooks(self, codebooks: torch.Tensor) -> None:
        """Take over a codec's codewords: (1 or depth, codeword, dim).

        Raises:
            ValueError: no embedding uses them, or the shape is not the configured one.
        """
        if self.codebooks is None:
            raise ValueError('set_codebooks needs code_embedding or head_code_embedding to be "codebook".')
        if codebooks.shape != self.codebooks.shape:
            raise ValueError(f"codebooks must be {tuple(self.codebooks.shape)}, got {tuple(codebooks.shape)}.")
        self.codebooks.copy_(codebooks)

    def soft_codes(
        self,
        latents: torch.Tensor,
        temperature: float = 0.5,
        stochastic: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Training pairs of unquantized latents (batch, position, dim): codes and soft labels, see `soft_codes`.

        Both go into `forward` as `audio_codes` and `labels`.
        """
        if self.codebooks is None:
            raise ValueError('soft_codes needs code_embedding or head_code_embedding to be "codebook".')
        depth = self.config.num_quantizers
        return soft_codes(latents, self.codebooks, depth, temperature, stochastic, generator)

    def _look_up(self, codes: torch.Tensor, kind: str, first: int = 0) -> torch.Tensor:
        """Rows of the table, or codewords: (batch, some depths, position) -> (batch, position, some depths, width)."""
        depths = torch.arange(first, first + codes.shape[1], device=codes.device)[:, None]
        if kind == "table":
            # Depth d begins at row d * vocab_size.
            rows = codes if self.config.shared_table else codes + depths * self.config.vocab_size
            return self.token_embedding(rows).transpose(1, 2)
        # (depth, 1) indices against (batch, depth, position) codes pick each code's own codebook.
        table = torch.zeros_like(depths) if len(self.codebooks) == 1 else depths
        return self.codebooks[table, codes].transpose(1, 2)

    def _position_inputs(self, codes: torch.Tensor, start: int) -> torch.Tensor:
        """Spatial inputs made of whole positions, the first of which is `start`: (batch, position, hidden)."""
        places = torch.arange(start, start + codes.shape[2], device=codes.device)
        embedded = self._look_up(codes, self.config.code_embedding)
        if self.input_projection is not None:
            embedded = self.input_projection(embedded)
        # Section 3.2 of the paper: a position is the sum of its codes' embeddings.
        return embedded.sum(2) + self.positions(places)

    def _condition(
        self,
        batch: int,
        class_labels: torch.Tensor | None,
        condition_ids: torch.Tensor | None,
        input_features: torch.Tensor | None,
    ) -> torch.Tensor:
        """(batch, condition step, hidden)."""
        config = self.config
        given = {"class": class_labels, "sequence": condition_ids, "mel": input_features}
        for kind, value in given.items():
            if (value is not None) != (kind == config.conditioning):
                names = {"class": "class_labels", "sequence": "condition_ids", "mel": "input_features"}
                needs = names.get(config.conditioning, "no condition")
                raise ValueError(f'conditioning="{config.conditioning}" takes {needs}, check {names[kind]}.')
        if config.conditioning == "none":
            ids = torch.zeros(batch, 1, dtype=torch.long, device=self.positions.weight.device)
            vectors = self.condition_embedding(ids)
        elif config.conditioning == "mel":
            bins = self.num_mel_bins
            if input_features.ndim != 3 or input_features.shape[1] != bins:
                raise ValueError(f"input_features must be (batch, {bins}, column), got {tuple(input_features.shape)}.")
            vectors = self.condition_projection(input_features)
        else:
            ids = class_labels.reshape(-1, 1) if config.conditioning == "class" else condition_ids
            vectors = self.condition_embedding(ids)
        steps, longest = vectors.shape[1], config.num_condition_positions
        if not 1 <= steps <= longest or len(vectors) != batch:
            raise ValueError(f"the condition must be ({batch}, 1 to {longest} steps), got {tuple(vectors.shape[:2])}.")
        return vectors + self.condition_positions(torch.arange(steps, device=vectors.device))

    def _depth_inputs(self, contexts: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Inputs of the depth transformer: (batch, position, hidden), all codes -> (batch * position, depth, hidden)."""
        # The deepest code is told to nobody.
        above = self._look_up(codes[:, :-1], self.config.head_code_embedding)
        if self.config.cumulative_depth_context:
            # Section 3.2 of the paper: depth d is told the sum of the codes above it, what is quantized so far.
            above = above.cumsum(2)
        if self.head_projection is not None:
            above = self.head_projection(above)
        # Depth 0 is told the spatial output; every position is a row of the depth transformer.
        return torch.cat([contexts.unsqueeze(2), above], dim=2).flatten(0, 1)

    def _check_codes(self, codes: torch.Tensor, longest: int) -> None:
        depth = self.config.num_quantizers
        if codes.ndim != 3 or codes.shape[1] != depth or not codes.shape[2] <= longest:
            raise ValueError(
                f"audio_codes must be (batch, {depth}, at most {longest} positions), got {tuple(codes.shape)}."
            )

    def forward(
        self,
        audio_codes: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        condition_ids: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> RQTransformerOutput | tuple:
        """Logits of every code given all codes before it.

        Args:
            audio_codes: (batch, depth, position) int64.
            class_labels: (batch,) int64, with `conditioning="class"`.
            condition_ids: (batch, condition step) int64, with `conditioning="sequence"`.
            input_features: (batch, mel, column) idea mel, with `conditioning="mel"`.
            labels: hard (batch, depth, position) int64, -100 ignored, or soft (batch, depth, position, codeword)
                probabilities.
            return_dict: `False` gives a tuple.

        Raises:
            ValueError: codes, labels or condition do not fit the configuration.
        """
        self._check_codes(audio_codes, self.config.num_positions)
        batch, depth, length = audio_codes.shape
        if length < 1:
            raise ValueError("audio_codes must have at least one position, got 0.")
        condition = self._condition(batch, class_labels, condition_ids, input_features)
        steps = condition.shape[1]
        # The last condition step predicts position 0, position p - 1 predicts p.
        inputs = torch.cat([condition, self._position_inputs(audio_codes[:, :, :-1], 0)], dim=1)
        hidden, _ = self.body(self.dropout(inputs))
        rows = self._depth_inputs(hidden[:, steps - 1 :], audio_codes) + self.depth_positions.weight
        decoded, _ = self.head(self.dropout(rows))
        # (batch * position, depth, codeword) -> (batch, depth, position, codeword).
        logits = self.classifier(decoded).unflatten(0, (batch, length)).transpose(1, 2)
        output = RQTransformerOutput(logits=logits)
        if self.condition_classifier is not None and steps > 1:
            output.condition_logits = self.condition_classifier(hidden[:, : steps - 1])
        if labels is not None:
            self._add_losses(output, labels, condition_ids)
        return output.to_tuple() if return_dict is False else output

    def _add_losses(
        self, output: RQTransformerOutput, labels: torch.Tensor, condition_ids: torch.Tensor | None
    ) -> None:
        soft = labels.is_floating_point()
        expected = output.logits.shape if soft else output.logits.shape[:-1]
        if labels.shape != expected:
            raise ValueError(f"labels must be {tuple(expected)}, got {tuple(labels.shape)}.")
        if soft:
            # Cross-entropy with soft labels (section 3.2 of the paper), over codewords.
            every = -(labels * output.logits.log_softmax(-1)).sum(-1)
            counted = torch.ones_like(every)
        else:
            # Classes second: (batch, codeword, depth, position).
            every = cross_entropy(output.logits.permute(0, 3, 1, 2), labels, reduction="none")
            counted = (labels != -100).to(every.dtype)
        output.depth_losses = every.sum((0, 2)) / counted.sum((0, 2)).clamp(min=1)
        output.code_loss = output.loss = every.sum() / counted.sum().clamp(min=1)
        if output.condition_logits is not None:
            predicted = output.condition_logits.flatten(0, 1)
            output.condition_loss = cross_entropy(predicted, condition_ids[:, 1:].flatten())
            weight = self.config.condition_loss_weight
            output.loss = (1 - weight) * output.code_loss + weight * output.condition_loss

    def _head_step(self, inputs: torch.Tensor, depth: int, cache: Cache) -> torch.Tensor:
        """Logits (batch, codeword) of one depth from its input (batch, hidden)."""
        hidden, _ = self.head((inputs + self.depth_positions.weight[depth]).unsqueeze(1), past_key_values=cache)
        return self.classifier(hidden, depth).squeeze(1)

    def _next_position(self, context: torch.Tensor, chosen: Mapping, top_k: Sequence[int | None]) -> torch.Tensor:
        """Codes (batch, depth) of the position whose spatial output is `context` (batch, hidden)."""
        # A cache per position: depths see one another only within it.
        cache, codes, inputs = DynamicCache(), [], context
        above: torch.Tensor | int = 0
        for depth in range(self.config.num_quantizers):
            code = choose(self._head_step(inputs, depth, cache), top_k=top_k[depth], **chosen)
            codes.append(code)
            if depth + 1 < self.config.num_quantizers:
                made = code.reshape(-1, 1, 1)
                found = self._look_up(made, self.config.head_code_embedding, depth)[:, 0, 0]
                above = above + found if self.config.cumulative_depth_context else found
                inputs = above if self.head_projection is None else self.head_projection(above)
        return torch.stack(codes, dim=1)

    @torch.no_grad()
    def stream(
        self,
        batch_size: int | None = None,
        class_labels: torch.Tensor | None = None,
        condition_ids: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_codes: torch.Tensor | None = None,
        num_positions: int | None = None,
        do_sample: bool = True,
        temperature: float = 1.0,
        top_k: int | Sequence[int | None] | None = None,
        top_p: float | None = None,
        generator: Generators = None,
    ) -> Iterator[torch.Tensor]:
        """New codes as they are made, (batch, depth) for each position.

        Args:
            batch_size: rows, where no condition or beginning tells it; 1 if nothing does.
            class_labels, condition_ids, input_features: the condition, see `forward`.
            audio_codes: (batch, depth, position) beginning to continue.
            num_positions: length with the beginning; the configured one where `None`.
            do_sample: draw codes; otherwise take the likeliest.
            temperature: divides logits.
            top_k: draw among the likeliest so many, for all depths or one per depth.
            top_p: draw among the likeliest that reach this probability.
            generator: one, or one per row, which makes rows independent of their batch.

        Raises:
            ValueError: lengths or condition do not fit.
        """
        known = (class_labels, condition_ids, input_features, audio_codes)
        batch = next((len(value) for value in known if value is not None), batch_size or 1)
        depth, longest = self.config.num_quantizers, self.config.num_positions
        end = longest if num_positions is None else num_positions
        if not 1 <= end <= longest:
            raise ValueError(f"num_positions must be 1 to {longest}, got {end}.")
        top_ks = [top_k] * depth if top_k is None or isinstance(top_k, int) else list(top_k)
        if len(top_ks) != depth:
            raise ValueError(f"top_k must be one number, or one per depth ({depth}), got {top_k}.")
        chosen = {"do_sample": do_sample, "temperature": temperature, "top_p": top_p, "generator": generator}
        inputs, begin = self._condition(batch, class_labels, condition_ids, input_features), 0
        if audio_codes is not None:
            self._check_codes(audio_codes, end)
            inputs = torch.cat([inputs, self._position_inputs(audio_codes, 0)], dim=1)
            begin = audio_codes.shape[2]
        cache = DynamicCache()
        for position in range(begin, end):
            # The first call takes the condition and the beginning, every later one a single position.
            hidden, _ = self.body(inputs, past_key_values=cache)
            codes = self._next_position(hidden[:, -1], chosen, top_ks)
            yield codes
            inputs = self._position_inputs(codes.unsqueeze(2), position)

    @torch.no_grad()
    def generate(self, audio_codes: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        """All codes of `stream`, which takes the same arguments, behind the beginning: (batch, depth, position)."""
        made = [codes.unsqueeze(2) for codes in self.stream(audio_codes=audio_codes, **kwargs)]
        return torch.cat(made if audio_codes is None else [audio_codes, *made], dim=2)


__all__ = ["RQTransformerModel", "RQTransformerOutput", "RQTransformerPreTrainedModel"]
