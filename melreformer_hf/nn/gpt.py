"""GPT blocks shared by the token models: pre-norm causal or bidirectional transformers with learned positions.

Radford et al. (GPT-2, 2019) in the form of minGPT: separate query, key and value projections, four times wider
perceptrons, exact GELU. Attention runs through `attn_implementation`; weights are computed only where asked for.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.functional import gelu
from transformers import GenerationMixin, StaticCache
from transformers import initialization as init
from transformers.cache_utils import Cache

from melreformer_hf.nn.attention import attend, eager_attention, split_heads


def quick_gelu(values: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x)."""
    return values * torch.sigmoid(1.702 * values)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}


def causal_mask(places: torch.Tensor, keys: int) -> torch.Tensor:
    """(query, key), true where visible: key k holds position k, and a query sees the positions up to its own.

    A static cache returns its whole length; what lies behind the newest query is not written yet, and hidden here.
    """
    return torch.arange(keys, device=places.device)[None, :] <= places[:, None]


class GptAttention(nn.Module):
    """Multi-head self-attention with a cache of keys and values."""

    attn_implementation = "sdpa"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        layer_idx: int,
        attention_dropout: float,
        residual_dropout: float,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads, self.layer_idx, self.attention_dropout = num_heads, layer_idx, attention_dropout
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias)
        self.out_proj = nn.Linear(hidden_size, hidden_size, bias)
        self.residual_dropout = nn.Dropout(residual_dropout)

    def forward(
        self,
        hidden: torch.Tensor,
        places: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend.

        Args:
            hidden: (batch, step, hidden).
            places: (step,) position of each step, which sees no later one; `None` sees everything.
            past_key_values: cache that these steps' keys and values are added to.
            output_attentions: whether to return the weights.

        Returns:
            (batch, step, hidden), and the weights (batch, head, step, key) where asked for.
        """
        query, key, value = (
            split_heads(project(hidden), self.num_heads) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        mask = None
        # One step of a growing cache sees all there is; any other case needs the mask.
        if places is not None and (query.shape[2] > 1 or isinstance(past_key_values, StaticCache)):
            mask = causal_mask(places, key.shape[2])
        dropout = self.attention_dropout if self.training else 0.0
        attended, weights = attend(self, query, key, value, mask, dropout=dropout)
        if output_attentions and weights is None:
            weights = eager_attention(self, query, key, value, mask)[1]  # fused kernels keep none
        output = self.residual_dropout(self.out_proj(attended.flatten(2)))
        return output, weights if output_attentions else None


class GptBlock(nn.Module):
    """Attention and perceptron, each behind a layer norm and added to its input."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        layer_idx: int,
        attention_dropout: float = 0.0,
        residual_dropout: float = 0.0,
        activation: str = "gelu",
        attention_bias: bool = True,
        mlp_bias: bool = True,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = GptAttention(
            hidden_size, num_heads, layer_idx, attention_dropout, residual_dropout, attention_bias
        )
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.up_proj = nn.Linear(hidden_size, 4 * hidden_size, mlp_bias)
        self.activation = ACTIVATIONS[activation]
        self.down_proj = nn.Linear(4 * hidden_size, hidden_size, mlp_bias)
        self.residual_dropout = nn.Dropout(residual_dropout)

    def forward(
        self,
        hidden: torch.Tensor,
        places: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `GptAttention.forward`."""
        change, weights = self.attention(self.attention_norm(hidden), places, past_key_values, output_attentions)
        hidden = hidden + change
        change = self.down_proj(self.activation(self.up_proj(self.mlp_norm(hidden))))
        return hidden + self.residual_dropout(change), weights


class GptLayers(nn.Module):
    """A pile of `GptBlock`s without embeddings or final norm.

    Args:
        hidden_size: width.
        num_layers: blocks.
        num_heads: heads per block; must divide the width.
        causal: whether a step sees only itself and the past.
        attention_dropout: on attention weights.
        residual_dropout: on what a block adds.
        activation: `"gelu"` (exact) or `"quick_gelu"`.
        attention_bias: whether queries, keys, values and their output have biases.
        mlp_bias: whether the perceptron has.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        causal: bool = True,
        attention_dropout: float = 0.0,
        residual_dropout: float = 0.0,
        activation: str = "gelu",
        attention_bias: bool = True,
        mlp_bias: bool = True,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.gradient_checkpointing = False  # set by transformers' switch, together with the function that is called
        self.blocks = nn.ModuleList(
            GptBlock(
                hidden_size,
                num_heads,
                index,
                attention_dropout,
                residual_dropout,
                activation,
                attention_bias,
                mlp_bias,
            )
            for index in range(num_layers)
        )

    def forward(
        self, hidden: torch.Tensor, past_key_values: Cache | None = None, output_attentions: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """(batch, step, hidden) -> the same shape, and each block's weights where asked for."""
        places = None
        if self.causal:
            # Asked before the first block writes into the cache; a static cache answers with a tensor.
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            places = past + torch.arange(hidden.shape[1], device=hidden.device)
        attentions = []
        for block in self.blocks:
            arguments = (hidden, places, past_key_values, output_attentions)
            if self.gradient_checkpointing and self.training:
                if past_key_values is not None:
                    raise ValueError("use_cache must be False while gradient checkpointing trains: got a cache.")
                hidden, weights = self._gradient_checkpointing_func(block.__call__, *arguments)
            else:
                hidden, weights = block(*arguments)
            attentions.append(weights)
        return hidden, tuple(attentions) if output_attentions else None


class GptBackbone(nn.Module):
    """Token and position embeddings, layers and final norm, with vectors in front of the tokens where given.

    Args:
        vocab_size: tokens.
        num_positions: longest sequence, prefix vectors included.
        hidden_size, num_layers, num_heads, causal, attention_dropout, residual_dropout: see `GptLayers`.
        embedding_dropout: on the sum of embeddings.
        any_order: whether vectors are told where they are in the sequence besides what they are to predict, so that both
            may be in any order.
    """

    def __init__(
        self,
        vocab_size: int,
        num_positions: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        causal: bool = True,
        attention_dropout: float = 0.0,
        residual_dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        any_order: bool = False,
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, hidden_size)
        # By the position that is predicted next; in the usual order that is the vector's own, counted from the prefix.
        self.position_embedding = nn.Embedding(num_positions, hidden_size)
        self.origin_embedding = nn.Embedding(num_positions, hidden_size) if any_order else None
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.layers = GptLayers(hidden_size, num_layers, num_heads, causal, attention_dropout, residual_dropout)
        self.final_norm = nn.LayerNorm(hidden_size)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        prefix: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
        order: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """Run.

        Args:
            input_ids: (batch, step) int64, or `None` for the prefix alone.
            prefix: (batch, prefix step, hidden) vectors before the tokens.
            past_key_values: cache of what came before; positions continue after it.
            output_attentions: whether to return the attention weights.
            order: with `any_order`: what each position of the whole sequence predicts and where it is, two of
                (batch, position), those of a cache included. `None`: the usual order.

        Returns:
            (batch, prefix step + step, hidden) and the weights of each layer or `None`.

        Raises:
            ValueError: the sequence is empty or longer than the positions.
        """
        parts = [] if prefix is None else [prefix.to(self.token_embedding.weight.dtype)]
        if input_ids is not None:
            parts.append(self.token_embedding(input_ids))
        hidden = torch.cat(parts, dim=1)
        start = 0 if past_key_values is None else past_key_values.get_seq_length()
        self._check_length(hidden.shape[1], start, past_key_values)
        places = start + torch.arange(hidden.shape[1], device=hidden.device)
        predicted = origins = places
        if order is not None:
            predicted, origins = (part[:, places] for part in order)
        hidden = hidden + self.position_embedding(predicted)
        if self.origin_embedding is not None:
            hidden = hidden + self.origin_embedding(origins)
        hidden = self.embedding_dropout(hidden)
        hidden, attentions = self.layers(hidden, past_key_values, output_attentions)
        return self.final_norm(hidden), attentions

    def _check_length(self, steps: int, start: int | torch.Tensor, past_key_values: Cache | None) -> None:
        if torch.compiler.is_compiling() and isinstance(start, torch.Tensor):
            return  # reading the number would break the graph; the embedding itself refuses what is too far
        end, longest = int(start) + steps, self.position_embedding.num_embeddings
        if steps < 1 or end > longest:
            raise ValueError(
                f"The sequence must have 1 to {longest} positions (prefix included), got {end}. Ask for fewer tokens, or "
                "configure more."
            )
        if isinstance(past_key_values, StaticCache) and end > past_key_values.layers[0].max_cache_len:
            raise ValueError(
                f"past_key_values must have room for {end} positions (the prefix takes one besides the tokens), got "
                f"max_cache_len={past_key_values.layers[0].max_cache_len}."
            )


@torch.no_grad()
def init_gpt_weights(module: nn.Module, std: float) -> None:
    """Initial values of GPT-2: normal weights, zero biases."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        init.normal_(module.weight, 0.0, std)
        if getattr(module, "bias", None) is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)


class PrefixGenerationMixin(GenerationMixin):
    """transformers' generation for models whose first position is a vector (a class, a latent), not a token.

    Subclasses name the `forward` argument that gives the vector in `prefix_name`, and the longest token sequence in
    `max_tokens`.
    """

    prefix_name: str

    @property
    def max_tokens(self) -> int:
        """Longest token sequence."""
        raise AttributeError(f"{type(self).__name__} must define max_tokens")

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, use_cache=True, **kwargs
    ):
        """Inputs of one step: only tokens that the cache lacks; the prefix counts as its first position.

        `attention_mask` is all ones (`generate` sees to that) and the models take none.
        """
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        prefix = kwargs[self.prefix_name] if past == 0 else None
        inputs = {self.prefix_name: prefix, "use_cache": use_cache, "past_key_values": past_key_values}
        inputs["output_attentions"] = kwargs.get("output_attentions", False)
        # The prefix is the first of the `past` positions and no token.
        inputs["input_ids"] = input_ids[:, max(past - 1, 0) :]
        return inputs

    @torch.no_grad()
    def generate(
        self, input_ids: torch.Tensor | None = None, generator: torch.Generator | None = None, **kwargs
    ) -> torch.Tensor:
        """Continue `input_ids`, or begin with the first token where there are none.

        Takes the arguments of transformers' `generate` and the prefix, which is required. Decoding modes have
        transformers' names: greedy unless `do_sample=True` (with `temperature`, `top_k`, `top_p`) or `num_beams`.

        Args:
            input_ids: (batch, step) int64 beginning that is kept.
            generator: makes sampling repeatable and leaves torch's own random state alone.
            kwargs: the prefix, and transformers' arguments. Without any length, the longest sequence is made.
                `cache_implementation` is `"dynamic"` or `"static"`.

        Returns:
            (batch, token) int64, beginning included.

        Raises:
            ValueError: the prefix is missing, the lengths do not fit, or `input_ids` has another batch size.
        """
        input_ids = self._check_request(input_ids, kwargs)
        if not {"max_length", "max_new_tokens", "generation_config"} & kwargs.keys():
            kwargs["max_new_tokens"] = self.max_tokens - input_ids.shape[1]
        wanted = kwargs.get("max_length", kwargs.get("max_new_tokens", 0) + input_ids.shape[1])
        if wanted > self.max_tokens:
            raise ValueError(f"at most {self.max_tokens} tokens can be made (beginning included), got {wanted}.")
        kwargs["attention_mask"] = torch.ones_like(input_ids)
        self._make_static_cache(kwargs, input_ids.shape[1])
        if generator is None:
            return super().generate(inputs=input_ids, **kwargs)
        # transformers draws from torch's global state: a seed from the generator is put there for the call.
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        devices = [input_ids.device] if input_ids.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            return super().generate(inputs=input_ids, **kwargs)

    @staticmethod
    def begins(past_key_values: Cache | None, prefix: torch.Tensor | None) -> bool:
        """Whether a call is the first of its sequence, so that the prefix goes in front of the tokens."""
        if past_key_values is None:
            return True
        if torch.compiler.is_compiling() and isinstance(past_key_values, StaticCache):
            return prefix is not None  # its length is a tensor, which a graph cannot branch on
        return int(past_key_values.get_seq_length()) == 0

    def _make_static_cache(self, kwargs: dict, beginning: int) -> None:
        """Serve `cache_implementation="static"` with a cache of the right length.

        `generate` would count tokens alone, and the prefix takes a position besides.

        Raises:
            ValueError: a kind of static cache that is not supported.
        """
        settings = kwargs.get("generation_config")
        name = kwargs.get("cache_implementation", getattr(settings, "cache_implementation", None))
        if name is None or "static" not in name or kwargs.get("past_key_values") is not None:
            return
        if name != "static":
            raise ValueError(f'cache_implementation must be "dynamic" or "static", got {name!r}.')
        if kwargs.get("use_cache") is False:
            raise ValueError('cache_implementation="static" needs use_cache=True, got False.')
        settings = copy.deepcopy(settings if settings is not None else self.generation_config)
        settings.cache_implementation = None
        longest = kwargs.get("max_length", settings.max_length)
        fresh = kwargs.get("max_new_tokens", settings.max_new_tokens)
        longest = self.max_tokens if longest is None and fresh is None else longest
        longest = beginning + fresh if fresh is not None else longest
        kwargs.pop("cache_implementation", None)
        kwargs["generation_config"] = settings
        kwargs["past_key_values"] = StaticCache(self.config, max_cache_len=longest + 1)

    def _check_request(self, input_ids: torch.Tensor | None, kwargs: dict) -> torch.Tensor:
        """The beginning, empty where there is none, after checking that prefix and masks fit it."""
        prefix = kwargs.get(self.prefix_name)
        if prefix is None:
            raise ValueError(f"generate needs {self.prefix_name}, got None.")
        if input_ids is None:
            input_ids = torch.empty(prefix.shape[0], 0, dtype=torch.long, device=prefix.device)
        if input_ids.shape[0] != prefix.shape[0]:
            raise ValueError(
                f"input_ids must have the batch size of {self.prefix_name}, {prefix.shape[0]}, got "
                f"{input_ids.shape[0]}."
            )
        settings = kwargs.get("generation_config")
        if kwargs.get("output_hidden_states") or getattr(settings, "output_hidden_states", False):
            raise ValueError(
                "output_hidden_states must be False in generate: the models return attention weights only."
            )
        mask = kwargs.get("attention_mask")
        if mask is not None and not mask.all():
            raise ValueError("attention_mask must be all ones: beginnings of different lengths go one by one.")
        return input_ids


# Original minGPT name, our name, under a backbone and its head.
GPT_TABLE = [
    ("tok_emb.weight", "backbone.token_embedding.weight"),
    ("pos_emb", "backbone.position_embedding.weight"),
    ("blocks.{N}.ln1.", "backbone.layers.blocks.{N}.attention_norm."),
    ("blocks.{N}.ln2.", "backbone.layers.blocks.{N}.mlp_norm."),
    ("blocks.{N}.attn.query.", "backbone.layers.blocks.{N}.attention.q_proj."),
    ("blocks.{N}.attn.key.", "backbone.layers.blocks.{N}.attention.k_proj."),
    ("blocks.{N}.attn.value.", "backbone.layers.blocks.{N}.attention.v_proj."),
    ("blocks.{N}.attn.proj.", "backbone.layers.blocks.{N}.attention.out_proj."),
    ("blocks.{N}.mlp.0.", "backbone.layers.blocks.{N}.up_proj."),
    ("blocks.{N}.mlp.2.", "backbone.layers.blocks.{N}.down_proj."),
    ("ln_f.", "backbone.final_norm."),
    ("head.weight", "head.weight"),
]


def original_mask(block_size: int, causal: bool) -> torch.Tensor:
    """The mask buffer of minGPT's attention: (1, 1, block_size, block_size) of ones and zeros."""
    ones = torch.ones(block_size, block_size)
    return (ones.tril() if causal else ones)[None, None]


__all__ = [
    "ACTIVATIONS",
    "GPT_TABLE",
    "GptAttention",
    "GptBackbone",
    "GptBlock",
    "GptLayers",
    "PrefixGenerationMixin",
    "causal_mask",
    "init_gpt_weights",
    "original_mask",
    "quick_gelu",
]
