"""Class GPT: mel tokens of a sound class, one after the other.

minGPT with the class as a vector in front of the tokens, as in the original repository karchkha/MelSpec_GPT_VQVAE
(after SpecVQGAN, arXiv 2110.08791). Tokens are those of the mel VQ-VAE, column by column.

Deviations: a class that stands for any, and tokens in any order, where asked for; keys and values are cached; decoding modes have transformers' names (the original's "beam" is top-k sampling,
its "sample" takes the likeliest token).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from melreformer_hf.hub.int8 import Int8StorageMixin
from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.class_gpt.configuration_class_gpt import ClassGptConfig
from melreformer_hf.models.class_gpt.weights_class_gpt import ORIGINAL_FORMAT
from melreformer_hf.nn.attention import AttentionMixin
from melreformer_hf.nn.gpt import GptBackbone, PrefixGenerationMixin, init_gpt_weights
from melreformer_hf.originals.formats import OriginalCheckpointMixin


@dataclass
class ClassGptOutput(ModelOutput):
    """Output of `ClassGptModel`.

    Args:
        loss: scalar, mean cross-entropy of `labels` in nats per token.
        logits: (batch, step + 1, vocab) of the next token after the class and after every input token; without the first
            of these where the class came from the cache.
        past_key_values: cache of keys and values.
        attentions: for each layer (batch, head, position, position), where asked for.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class ClassGptPreTrainedModel(AttentionMixin, HubMixin, Int8StorageMixin, PreTrainedModel):
    """Initial values and loading."""

    config_class = ClassGptConfig
    base_model_prefix = "class_gpt"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GptBlock"]
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        init_gpt_weights(module, self.config.initializer_range)


class ClassGptModel(OriginalCheckpointMixin, ClassGptPreTrainedModel, PrefixGenerationMixin):
    """Next-token model of mel tokens, given a class.

    Args:
        config: sizes.

    Example:

        >>> import torch
        >>> from melreformer_hf.models.class_gpt.configuration_class_gpt import ClassGptConfig
        >>> from melreformer_hf.models.class_gpt.modeling_class_gpt import ClassGptModel
        >>> model = ClassGptModel(ClassGptConfig.preset("tiny")).eval()
        >>> classes = torch.tensor([0, 3])
        >>> tokens = model.generate(class_labels=classes, do_sample=True, top_k=16, max_new_tokens=12)
        >>> tuple(tokens.shape)
        (2, 12)
        >>> continued = model.generate(tokens, class_labels=classes, max_new_tokens=4)
        >>> bool((continued[:, :12] == tokens).all())
        True
    """

    original_format = ORIGINAL_FORMAT

    prefix_name = "class_labels"

    def __init__(self, config: ClassGptConfig) -> None:
        super().__init__(config)
        self.class_embedding = nn.Embedding(config.num_classes + config.null_class, config.hidden_size)
        # One position more than tokens: the class stands in front of them.
        self.backbone = GptBackbone(
            config.vocab_size,
            config.num_tokens + 1,
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            attention_dropout=config.attention_dropout,
            residual_dropout=config.residual_dropout,
            embedding_dropout=config.embedding_dropout,
            any_order=config.any_order,
        )
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def max_tokens(self) -> int:
        """Longest token sequence."""
        return self.config.num_tokens

    def _check_classes(self, class_labels: torch.Tensor) -> None:
        if torch.compiler.is_compiling() or class_labels.numel() == 0:
            return
        last = self.class_embedding.num_embeddings - 1
        if class_labels.min() < 0 or class_labels.max() > last:
            raise ValueError(
                f"class_labels must be in 0..{last}, got {int(class_labels.min())}..{int(class_labels.max())}."
            )

    def _places(self, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What each position of the sequence is to predict and where it comes from: two of (batch, token + 1)."""
        if not self.config.any_order:
            raise ValueError("order must be None: this model was configured with any_order=False.")
        # The class is at place 0 and token n at n + 1; what is predicted last is nothing.
        ends = order.new_full((len(order), 1), self.config.num_tokens)
        return torch.cat([order, ends], 1), torch.cat([torch.zeros_like(ends), order + 1], 1)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool = False,
        order: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> ClassGptOutput | tuple:
        """Logits of next tokens.

        Args:
            input_ids: (batch, step) int64 tokens; `None` or no steps for the first token's logits alone.
            class_labels: (batch,) int64; required unless the cache holds the class already.
            labels: (batch, token) int64 targets of all positions, -100 ignored. With `input_ids` equal to the labels the
                last logits, which have no target, are left out of the loss.
            past_key_values: cache of a former call.
            use_cache: whether to return a cache.
            output_attentions: whether to return attention weights.
            order: (batch, token) int64, of a configuration with `any_order`: the place in the grid of every token of the
                sequence, those of former calls and those to come included. `None`: 0, 1, 2, ...
            return_dict: `False` gives a tuple.

        Raises:
            ValueError: the class is missing or unknown, the sequence is too long, or an order is given to a model that
                was not configured for one.
        """
        prefix = None
        if self.begins(past_key_values, class_labels):
            if class_labels is None:
                raise ValueError(f"class_labels (batch,) with values 0..{self.config.num_classes - 1} are required.")
            self._check_classes(class_labels)
            # (batch,) -> (batch, 1, hidden): one vector before the first token.
            prefix = self.class_embedding(class_labels.reshape(-1, 1))
        if use_cache and past_key_values is None:
            # Only where the caller wants a cache and brings none; training and scoring keep nothing.
            past_key_values = DynamicCache(config=self.config)
        places = None if order is None else self._places(order)
        hidden, attentions = self.backbone(input_ids, prefix, past_key_values, output_attentions, places)
        # Position p has seen the class and p tokens, so its logits are those of token p.
        logits = self.head(hidden)
        loss = None
        if labels is not None:
            if labels.shape[1] > logits.shape[1]:
                raise ValueError(f"labels must have at most {logits.shape[1]} tokens, got {labels.shape[1]}.")
            # (batch, token, vocab) -> (batch * token, vocab); the last logits have no label and are cut off.
            loss = cross_entropy(logits[:, : labels.shape[1]].flatten(0, 1), labels.flatten())
        output = ClassGptOutput(loss=loss, logits=logits, past_key_values=past_key_values, attentions=attentions)
        return output.to_tuple() if return_dict is False else output


__all__ = ["ClassGptModel", "ClassGptOutput", "ClassGptPreTrainedModel"]
