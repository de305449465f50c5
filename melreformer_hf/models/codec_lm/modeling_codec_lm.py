"""Language model of a codec's codes, whose probabilities an arithmetic coder turns into fewer bits.

Defossez, Copet, Synnaeve, Adi, High Fidelity Neural Audio Compression (arXiv 2210.13438, section 3.4), original
repository facebookresearch/encodec. All codes of a frame are predicted at once from the frames before it.

Deviations: with `frame_code_size` codes are also predicted from the earlier codebooks of their own frame, which the
original leaves out for speed; keys and values are cached instead of layer inputs, and never more than the context; the first codes may be
left out of a call; compression runs in fixed point (`fixed_point_codec_lm`), so that its probabilities do not depend on
batching, streaming, threads or the machine, which the original's do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy, dropout, gelu, relu
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from melreformer_hf.hub.bundled import BundledMixin
from melreformer_hf.hub.int8 import Int8StorageMixin
from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.codec_lm.configuration_codec_lm import CodecLMConfig
from melreformer_hf.models.codec_lm.fixed_point_codec_lm import FixedPointCodecLM
from melreformer_hf.models.codec_lm.weights_codec_lm import ORIGINAL_FORMAT
from melreformer_hf.nn.attention import AttentionMixin, attend, band_mask, split_heads
from melreformer_hf.nn.exporting import register_state
from melreformer_hf.originals.formats import OriginalCheckpointMixin

NO_CODE = -1  # stands for the codes of the frame before the first one
_TURN_BITS = 40  # of position angles; positions up to 2 ** 23 stay within int64


@register_state
@dataclass
class CodecLMCache:
    """What a stream keeps between calls: at most `num_context_frames` frames, whatever its length.

    Args:
        keys: for each layer (batch, head, frame, head_dim).
        values: for each layer (batch, head, frame, head_dim).
        num_frames: frames so far.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    num_frames: int


@dataclass
class CodecLMOutput(ModelOutput):
    """Output of `CodecLMModel`.

    Args:
        loss: scalar, mean cross-entropy of `labels` in nats per code.
        logits: (batch, quantizer, frame, code) of the frames that follow those of the input.
        past_key_values: cache, where asked for.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: CodecLMCache | None = None


def frame_positions(positions: torch.Tensor, width: int, period: float) -> torch.Tensor:
    """Cosines, then sines, of `positions * period ** (-i / (width / 2 - 1))`: (...) int64 -> (..., width) float32."""
    half = width // 2
    # Angles as integers, in units of 2 ** -40 turns, of which only the part below one turn matters: in float32 positions
    # of a long stream would be off by more than the fastest wave's step, and some devices have no float64.
    turns = [round(period ** (-index / (half - 1)) / math.tau * 2**_TURN_BITS) for index in range(half)]
    phases = positions[..., None] * torch.tensor(turns, dtype=torch.long, device=positions.device)
    angles = (phases & (2**_TURN_BITS - 1)).float() * (math.tau / 2**_TURN_BITS)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class CodecLMAttention(nn.Module):
    """Causal self-attention within the context.

    The frame before the first one is a layer input of zeros, whose key and value are the biases.
    """

    attn_implementation = "sdpa"

    def __init__(self, config: CodecLMConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.context = config.num_context_frames
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def start(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value of the frame before the first one: (batch, head, 1, head_dim) each."""
        # A layer input of zeros leaves the biases alone: the original's streaming state begins with it, and so it is
        # seen.
        _, key, value = self.qkv.bias.expand(batch, 1, -1).chunk(3, dim=-1)
        return split_heads(key, self.num_heads), split_heads(value, self.num_heads)

    def forward(
        self, hidden: torch.Tensor, past: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """(batch, frame, hidden) and keys and values of the past -> (batch, frame, hidden) and those of the next call."""
        query, key, value = (split_heads(x, self.num_heads) for x in self.qkv(hidden).chunk(3, dim=-1))
        key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        keys = torch.arange(key.shape[2], device=hidden.device)
        # The newest keys are the queries' own frames; each sees `context` frames before it, and itself.
        mask = band_mask(keys[-hidden.shape[1] :], keys, self.context, 0)
        attended, _ = attend(self, query, key, value, mask, dropout=self.dropout if self.training else 0.0)
        # What no later frame can see is dropped: memory does not grow with the stream.
        kept = max(0, key.shape[2] - self.context)
        return self.out_proj(attended.flatten(2)), (key[:, :, kept:], value[:, :, kept:])


class CodecLMLayer(GradientCheckpointingLayer):
    """Attention and two linear layers, each added to its input, normalized after (or before) that."""

    def __init__(self, config: CodecLMConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.dropout = config.dropout
        self.activation = gelu if config.activation == "gelu" else relu
        self.attention = CodecLMAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def _mlp(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = dropout(self.activation(self.up_proj(hidden)), self.dropout, self.training)
        return dropout(self.down_proj(inner), self.dropout, self.training)

    def forward(
        self, hidden: torch.Tensor, past: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """(batch, frame, hidden) and keys and values of the past -> the same, and those of the next call."""
        attended, kept = self.attention(self.attention_norm(hidden) if self.norm_first else hidden, past)
        hidden = hidden + dropout(attended, self.dropout, self.training)
        if self.norm_first:
            return hidden + self._mlp(self.mlp_norm(hidden)), kept
        hidden = self.attention_norm(hidden)
        return self.mlp_norm(hidden + self._mlp(hidden)), kept


class FrameCodes(nn.Module):
    """Distributions of the codes of a frame, each of which sees the frames before it and the earlier codes of its own.

    Every codebook has one table of narrow vectors; what goes in and what comes out are projections of it.

    Args:
        config: with `frame_code_size`.
    """

    def __init__(self, config: CodecLMConfig) -> None:
        super().__init__()
        width, narrow, levels = config.hidden_size, config.frame_code_size, config.num_quantizers
        self.activation = gelu if config.activation == "gelu" else relu
        # Row 0 is NO_CODE, as in the full tables.
        self.tables = nn.ModuleList(nn.Embedding(config.codebook_size + 1, narrow) for _ in range(levels))
        self.input_projs = nn.ModuleList(nn.Linear(narrow, width, bias=False) for _ in range(levels))
        # The last codebook's codes have no later ones to be seen by.
        self.frame_projs = nn.ModuleList(nn.Linear(narrow, width, bias=False) for _ in range(levels - 1))
        self.levels = nn.Embedding(levels, width)
        self.mlp_norm, self.output_norm = (nn.LayerNorm(width, eps=config.layer_norm_eps) for _ in range(2))
        self.up_proj = nn.Linear(width, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, width)
        self.heads = nn.ModuleList(nn.Linear(width, narrow) for _ in range(levels))
        self.code_bias = nn.Embedding(levels, config.codebook_size)

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """(batch, quantizer, frame) of -1 and codes -> what the layers see of them, (batch, frame, hidden)."""
        return sum(self.input_projs[level](self.tables[level](row + 1)) for level, row in enumerate(codes.unbind(1)))

    def forward(self, hidden: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Logits of the codes of frames.

        Args:
            hidden: (batch, frame, hidden) of the frames before.
            codes: (batch, quantizer, frame) of these frames; those of the last codebook do not matter.

        Returns:
            (batch, quantizer, frame, code).
        """
        inputs = []
        for level, row in enumerate(codes.unbind(1)):
            inputs.append(hidden + self.levels.weight[level])
            if level + 1 < codes.shape[1]:
                hidden = hidden + self.frame_projs[level](self.tables[level](row + 1))
        stacked = torch.stack(inputs, dim=1)  # (batch, quantizer, frame, hidden)
        stacked = stacked + self.down_proj(self.activation(self.up_proj(self.mlp_norm(stacked))))
        stacked = self.output_norm(stacked)
        return torch.stack(
            [
                nn.functional.linear(head(part), table.weight[1:], bias)
                for head, part, table, bias in zip(
                    self.heads, stacked.unbind(1), self.tables, self.code_bias.weight, strict=False
                )
            ],
            dim=1,
        )


class CodecLMPreTrainedModel(AttentionMixin, HubMixin, BundledMixin, Int8StorageMixin, PreTrainedModel):
    """Initial values, loading and the model card."""

    card_pipeline_tag = "audio-to-audio"
    card_tags = ("music", "audio-codec", "entropy-coding")
    config_class = CodecLMConfig
    base_model_prefix = "codec_lm"
    main_input_name = "audio_codes"
    _no_split_modules = ["CodecLMLayer"]
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, 0.0, self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, FrameCodes):
            # Logits are products of two of these: with both small, nothing would move for long.
            for table in module.tables:
                init.normal_(table.weight, 0.0, table.embedding_dim**-0.5)
            init.zeros_(module.code_bias.weight)


class CodecLMModel(OriginalCheckpointMixin, CodecLMPreTrainedModel):
    """Probabilities of a frame's codes given the frames before, and lossless compression with them.

    Args:
        config: sizes.

    Example:

        >>> import torch
        >>> from melreformer_hf.models.codec_lm.configuration_codec_lm import CodecLMConfig
        >>> from melreformer_hf.models.codec_lm.modeling_codec_lm import CodecLMModel
        >>> model = CodecLMModel(CodecLMConfig.preset("tiny")).eval()
        >>> codes = torch.randint(16, (2, 3, 40))  # (batch, quantizer, frame)
        >>> bool(model(labels=codes).loss > 0)
        True
        >>> streams = model.compress(codes)
        >>> all(torch.equal(back, row) for back, row in zip(model.decompress(streams), codes))
        True
    """

    original_format = ORIGINAL_FORMAT

    def __init__(self, config: CodecLMConfig) -> None:
        super().__init__(config)
        width, size = config.hidden_size, config.codebook_size
        levels = range(0 if config.frame_code_size else config.num_quantizers)
        self.frame_codes = FrameCodes(config) if config.frame_code_size else None
        self.code_embeddings = nn.ModuleList(nn.Embedding(size + 1, width) for _ in levels)
        self.input_norm = nn.LayerNorm(width, eps=1e-5) if config.input_norm else nn.Identity()
        self.layers = nn.ModuleList(CodecLMLayer(config) for _ in range(config.num_hidden_layers))
        self.heads = nn.ModuleList(nn.Linear(width, size) for _ in levels)
        for name, parameter in self.layers.named_parameters():
            # They exist all the same: the frame before the first one has them as its key and value.
            parameter.requires_grad_(config.bias or not name.endswith("bias"))
        self.post_init()

    def _inputs(self, audio_codes: torch.Tensor | None, labels: torch.Tensor | None) -> torch.Tensor:
        """Codes of the frames before those to predict, checked."""
        if audio_codes is None:
            if labels is None:
                raise ValueError("audio_codes (batch, quantizer, frame) or labels of that shape are required.")
            # Teacher forcing: every frame is predicted from the true ones before it. Ignored labels (-100) become "no
            # code".
            audio_codes = nn.functional.pad(labels[..., :-1], (1, 0), value=NO_CODE).clamp(min=NO_CODE)
        depth = self.config.num_quantizers
        if audio_codes.ndim != 3 or not 1 <= audio_codes.shape[1] <= depth or audio_codes.shape[2] < 1:
            raise ValueError(
                f"audio_codes must be (batch, 1 to {depth} quantizers, frame), got {tuple(audio_codes.shape)}."
            )
        if labels is not None and labels.shape != audio_codes.shape:
            raise ValueError(
                f"labels must have the shape of audio_codes {tuple(audio_codes.shape)}, got {tuple(labels.shape)}."
            )
        return audio_codes

    def _frame_codes(
        self, frame_codes: torch.Tensor | None, labels: torch.Tensor | None, shape: torch.Size
    ) -> torch.Tensor | None:
        """Codes of the frames to predict, where the model sees them."""
        if self.frame_codes is None:
            if frame_codes is not None:
                raise ValueError("frame_codes must be None where config.frame_code_size is 0, got codes.")
            return None
        if frame_codes is None:
            if labels is None:
                raise ValueError("frame_codes (batch, quantizer, frame) or labels are required by frame_code_size.")
            frame_codes = labels.clamp(min=NO_CODE)
        if frame_codes.shape != shape:
            raise ValueError(
                f"frame_codes must have the shape of audio_codes {tuple(shape)}, got {tuple(frame_codes.shape)}."
            )
        return frame_codes

    def forward(
        self,
        audio_codes: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: CodecLMCache | None = None,
        use_cache: bool = False,
        position_offset: int | torch.Tensor = 0,
        frame_codes: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> CodecLMOutput | tuple:
        """Logits of codes.

        Args:
            audio_codes: (batch, quantizer, frame) int64 of the frames *before* those to predict: the first frame of a
                stream is predicted from -1 (no code yet) in every quantizer, the next from the first's codes.
                `None` to take them from `labels`.
            labels: (batch, quantizer, frame) int64 codes to predict, -100 ignored.
            past_key_values: cache of a former call, which stays as it is.
            use_cache: whether to return a cache.
            position_offset: added to positions, a number or (batch,); drawn at random in the original's training.
            frame_codes: (batch, quantizer, frame) int64 codes of the frames to predict, of which a codebook's logits see
                the earlier codebooks'; needed with `config.frame_code_size` where there are no labels.
            return_dict: `False` gives a tuple.

        Raises:
            ValueError: both codes and labels are missing, or shapes do not fit.
        """
        codes = self._inputs(audio_codes, labels)
        batch, depth, frames = codes.shape
        own = self._frame_codes(frame_codes, labels, codes.shape)
        # One vector per frame, whatever the number of codebooks; embedding 0 is NO_CODE, hence the + 1.
        if self.frame_codes is not None:
            hidden = self.frame_codes.embed(codes)
        else:
            hidden = sum(self.code_embeddings[level](codes[:, level] + 1) for level in range(depth))
        past_frames = 0 if past_key_values is None else past_key_values.num_frames
        places = torch.arange(past_frames, past_frames + frames, device=codes.device)
        # (frame,) + (1 or batch, 1) -> (1 or batch, frame)
        places = places + torch.as_tensor(position_offset, device=codes.device).reshape(-1, 1)
        positions = frame_positions(places, hidden.shape[-1], self.config.position_period)
        hidden = self.input_norm(hidden) + positions.to(hidden.dtype)
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            if past_key_values is None:
                past = layer.attention.start(batch)
            else:
                past = past_key_values.keys[index], past_key_values.values[index]
            hidden, (key, value) = layer(hidden, past)
            keys.append(key)
            values.append(value)
        if self.frame_codes is not None:
            logits = self.frame_codes(hidden, own)
        else:
            # (batch, frame, code) per codebook -> (batch, quantizer, frame, code); the codebooks of a frame do not see
            # each other.
            logits = torch.stack([self.heads[level](hidden) for level in range(depth)], dim=1)
        loss = None if labels is None else cross_entropy(logits.flatten(0, 2), labels.flatten())
        cache = CodecLMCache(keys, values, past_frames + frames) if use_cache else None
        output = CodecLMOutput(loss=loss, logits=logits, past_key_values=cache)
        return output.to_tuple() if return_dict is False else output

    def fixed_point(self) -> FixedPointCodecLM:
        """A frozen copy of this model in exact arithmetic; keep it to compress more than once."""
        return FixedPointCodecLM(self.config, self.state_dict())

    @torch.no_grad()
    def compress(self, audio_codes: torch.Tensor) -> list[bytes]:
        """Lossless streams of codes.

        Args:
            audio_codes: (batch, quantizer, frame) int64.

        Returns:
            for each row its stream; the same bytes alone or in a batch, on any number of threads, on any machine.

        Raises:
            ValueError: codes are out of range or of a wrong shape.
        """
        return self.fixed_point().compress(audio_codes)

    @torch.no_grad()
    def stream_compress(self, chunks: Iterable[torch.Tensor]) -> list[bytes]:
        """The streams of `compress` from codes that come piece by piece, at constant memory beside the streams.

        Args:
            chunks: (batch, quantizer, any number of frames) int64 each, one after the other.

        Raises:
            ValueError: there is no chunk, or codes are out of range or of a wrong shape.
        """
        return self.fixed_point().stream_compress(chunks)

    @torch.no_grad()
    def decompress(self, streams: Sequence[bytes]) -> list[torch.Tensor]:
        """Codes of streams that `compress` made with the same weights.

        Returns:
            for each stream (quantizer, frame) int64.

        Raises:
            ValueError: a stream is truncated, corrupt, or was made with other weights.
        """
        return self.fixed_point().decompress(streams)

    @torch.no_grad()
    def stream_decompress(self, stream: bytes) -> Iterator[torch.Tensor]:
        """Codes frame by frame, at constant memory: yields (quantizer,) int64. Errors as of `decompress`."""
        yield from self.fixed_point().stream_decompress(stream)


__all__ = ["CodecLMCache", "CodecLMModel", "CodecLMOutput", "CodecLMPreTrainedModel", "frame_positions"]
