"""MelReformer: a small idea mel becomes a mel of any length.

Source: TariqAHassan/MelReformer (2022), an encoder-decoder transformer over folded mel columns; no paper.
Deviations of the `"local"` architecture, the default: ideas are area averages; encoder columns and decoder steps lie on
one time axis, so that attention is local, the cost linear and the memory constant; the duration ends the piece; the
encoder draws curves inside the columns of the idea, which the decoder corrects; a convolutional net joins the windows. The `"original"`
architecture repeats the original program and loads its checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.models.mel_reformer.encoder_mel_reformer import ColumnCurves, IdeaBlock2d, IdeaEncoder
from melreformer_hf.models.mel_reformer.local_mel_reformer import EncodedIdea, ExpansionState, LocalExpansion
from melreformer_hf.models.mel_reformer.original_mel_reformer import OriginalExpansion, OriginalState
from melreformer_hf.models.mel_reformer.weights_mel_reformer import ORIGINAL_FORMAT
from melreformer_hf.nn.attention import AttentionMixin
from melreformer_hf.nn.convnext import ConvNeXtBlock, init_convnext_block
from melreformer_hf.originals.formats import OriginalCheckpointMixin

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass
class MelReformerOutput(ModelOutput):
    """Output of `MelReformerModel`.

    Args:
        loss: scalar, mean absolute error over the frames inside the pieces; only with `labels`.
        output_features: (batch, mel, frame) log-mel.
        decoder_features: (batch, mel, frame) log-mel before the post-net (local architecture).
        encoder_features: (batch, mel, frame) log-mel before the decoder (local architecture).
        generation_state: what the next step of a free expansion needs; only with `chunk_frames`.
    """

    loss: torch.Tensor | None = None
    output_features: torch.Tensor | None = None
    decoder_features: torch.Tensor | None = None
    encoder_features: torch.Tensor | None = None
    generation_state: ExpansionState | OriginalState | None = None


class MelReformerPreTrainedModel(AttentionMixin, HubMixin, PreTrainedModel):
    """Initial values, and what the family can do."""

    config_class = MelReformerConfig
    base_model_prefix = "expansion"
    main_input_name = "input_features"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ConvNeXtBlock):
            init_convnext_block(module, self.config.initializer_range)
        elif isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, IdeaBlock2d):
            init.kaiming_uniform_(module.first.weight, a=math.sqrt(5))
        elif isinstance(module, ColumnCurves):
            # A narrow network: the common small deviation would leave it nearly linear for long.
            for layer in module.curves[::2]:
                init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        elif isinstance(module, IdeaEncoder):
            init.normal_(module.place, std=0.1)
            for layer in (module.stem, *module.down, *module.up, module.stretch[0], module.stretch[2]):
                init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
        elif isinstance(module, OriginalExpansion):
            init.normal_(module.start_token)


class MelReformerModel(OriginalCheckpointMixin, MelReformerPreTrainedModel):
    """Idea mel and duration in, mel of that duration out.

    Example:
        >>> import torch
        >>> from melreformer_hf import MelReformerConfig, MelReformerModel
        >>> model = MelReformerModel(MelReformerConfig.preset("tiny")).eval()
        >>> idea = torch.full((1, 128, 256), -8.0)
        >>> model.generate(idea, torch.tensor([300])).shape
        torch.Size([1, 128, 300])
    """

    original_format = ORIGINAL_FORMAT

    def __init__(self, config: MelReformerConfig) -> None:
        super().__init__(config)
        self.num_mel_bins = config.num_mel_bins
        self.expansion = LocalExpansion(config) if config.architecture == "local" else OriginalExpansion(config)
        self.post_init()

    def _normalize(self, mel: torch.Tensor) -> torch.Tensor:
        return (mel - self.config.mel_shift) / self.config.mel_scale

    def _denormalize(self, mel: torch.Tensor) -> torch.Tensor:
        return mel * self.config.mel_scale + self.config.mel_shift

    def _check(self, input_features: torch.Tensor, num_frames: torch.Tensor) -> torch.Tensor:
        bins, columns = self.num_mel_bins, self.config.idea_columns
        if self.config.architecture == "original" and input_features.ndim == 3:
            columns = input_features.shape[-1]  # the original resizes by itself what is longer than its block
        shape = tuple(input_features.shape)
        if len(shape) != 3 or shape[1:] != (bins, columns) or not shape[0] or not input_features.is_floating_point():
            raise ValueError(
                f"input_features must be floating point ideas of shape (batch, {bins}, {columns}), got {shape} of "
                f"{input_features.dtype}. Make them with resize_mel(mel, {columns})."
            )
        num_frames = torch.as_tensor(num_frames, device=input_features.device)
        if num_frames.dtype not in _INTEGERS or num_frames.shape != input_features.shape[:1]:
            raise ValueError(
                f"num_frames must hold one integer per idea, shape ({input_features.shape[0]},), got "
                f"{tuple(num_frames.shape)} of {num_frames.dtype}."
            )
        # Values cannot be read while a graph is traced; the shapes above are checked then as well.
        if not torch.compiler.is_compiling() and int(num_frames.min()) < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames.tolist()}.")
        return num_frames

    def _check_stretch(self, batch: int, told: torch.Tensor, **others: torch.Tensor | None) -> None:
        bins, fold_size = self.num_mel_bins, self.config.fold_size
        if told.ndim != 3 or tuple(told.shape[:2]) != (batch, bins) or not told.shape[2]:
            raise ValueError(
                f"labels and decoder_input_features must have shape ({batch}, {bins}, frames), got {tuple(told.shape)}."
            )
        shapes = {"labels": tuple(told.shape), "previous_features": (batch, bins, fold_size), "start_frames": (batch,)}
        for name, value in others.items():
            if value is not None and tuple(value.shape) != shapes[name]:
                raise ValueError(f"{name} must have shape {shapes[name]}, got {tuple(value.shape)}.")

    def forward(
        self,
        input_features: torch.Tensor,
        num_frames: torch.Tensor,
        labels: torch.Tensor | None = None,
        decoder_input_features: torch.Tensor | None = None,
        start_frames: torch.Tensor | None = None,
        previous_features: torch.Tensor | None = None,
        return_dict: bool | None = None,
        chunk_frames: int | None = None,
        generation_state: ExpansionState | OriginalState | None = None,
        prime: torch.Tensor | None = None,
    ) -> MelReformerOutput | tuple:
        """Teacher-forced expansion of a stretch of music; its cost does not depend on the length of the piece.

        With `chunk_frames` one step of a free expansion instead, from `generation_state` on. Every computation goes
        through here, so that whatever wraps the model (offloading hooks, `torch.compile`) sees it.

        Args:
            input_features: (batch, mel, column) ideas of whole pieces.
            num_frames: (batch,) lengths of the pieces in frames.
            labels: (batch, mel, frame) true log-mel of the stretch.
            decoder_input_features: (batch, mel, frame) what each step is told of the past; default `labels`.
            start_frames: (batch,) frame at which the stretch begins; default 0.
            previous_features: (batch, mel, fold_size) the columns before it; default silence.
            return_dict: whether to return a named output.
            chunk_frames: expand freely by so many frames at least, or to the end.
            generation_state: of the step before; `None` begins a piece.
            prime: see `stream`; only when a piece begins.

        Returns:
            MelReformerOutput. The loss counts the frames inside the pieces, half as much for the columns of decoder and encoder.

        Raises:
            ValueError: wrong shapes, lengths below 1, or neither labels nor decoder input.
        """
        num_frames = self._check(input_features, num_frames)
        named = self.config.return_dict if return_dict is None else return_dict
        if chunk_frames is not None:
            output = self._advance(input_features, num_frames, chunk_frames, generation_state, prime)
            return output if named else output.to_tuple()
        told = labels if decoder_input_features is None else decoder_input_features
        if told is None:
            raise ValueError("forward needs labels or decoder_input_features; to expand freely call generate().")
        others = {"labels": labels, "previous_features": previous_features, "start_frames": start_frames}
        self._check_stretch(len(input_features), told, **others)
        if self.config.architecture == "original":
            if start_frames is not None or previous_features is not None:
                raise ValueError("start_frames and previous_features belong to the local architecture; pass neither.")
            output = self._forward_original(input_features, num_frames, labels, told)
        else:
            start_frames = torch.zeros_like(num_frames) if start_frames is None else start_frames
            encoded = self.expansion.encode(self._normalize(input_features), num_frames)
            output = self._forward_local(encoded, labels, told, start_frames, previous_features)
        return output if named else output.to_tuple()

    def _forward_local(
        self,
        encoded: EncodedIdea,
        labels: torch.Tensor | None,
        told: torch.Tensor,
        start_frames: torch.Tensor,
        previous_features: torch.Tensor | None,
    ) -> MelReformerOutput:
        if previous_features is None:
            shape = (told.shape[0], told.shape[1], self.config.fold_size)
            previous = told.new_full(shape, self.expansion.silence)
        else:
            previous = self._normalize(previous_features)
        drawn, made, improved = self.expansion(encoded, self._normalize(told), previous, start_frames)
        loss = None
        if labels is not None:
            target = self._normalize(labels)
            inside = self.expansion._inside(encoded, start_frames, labels.shape[-1], torch.float32)
            # A mean over the frames inside, of all rows together: short pieces do not weigh more per frame.
            weight = inside / (inside.sum().clamp(min=1) * labels.shape[1])
            # The drawing and the decoder are held to the target too, or the last stage would do all.
            error = (improved - target).abs() + 0.5 * (made - target).abs() + 0.5 * (drawn - target).abs()
            loss = (error * weight).sum() * self.config.mel_scale
        return MelReformerOutput(loss, *(self._denormalize(mel) for mel in (improved, made, drawn)))

    def _forward_original(
        self, mel: torch.Tensor, num_frames: torch.Tensor, labels: torch.Tensor | None, told: torch.Tensor
    ) -> MelReformerOutput:
        made = self.expansion(mel, told)
        loss = None
        if labels is not None:
            inside = torch.arange(made.shape[-1], device=made.device) < num_frames[:, None]
            weight = inside[:, None] / (inside.sum().clamp(min=1) * made.shape[1])
            loss = ((made - labels).abs() * weight).sum()
        return MelReformerOutput(loss, made)

    def _advance(
        self,
        ideas: torch.Tensor,
        num_frames: torch.Tensor,
        chunk_frames: int,
        state: ExpansionState | OriginalState | None,
        prime: torch.Tensor | None,
    ) -> MelReformerOutput:
        local = self.config.architecture == "local"
        if local and prime is not None:
            raise ValueError("prime belongs to the original architecture; pass None.")
        if state is None and local:
            state = self.expansion.begin(self.expansion.encode(self._normalize(ideas), num_frames))
        elif state is None:
            state = self.expansion.begin(ideas, num_frames, prime)
        frame = state.emitted
        piece, state = self.expansion.advance(state, chunk_frames)
        piece = self._denormalize(piece) if local else piece
        # (batch, 1, frame): rows that are shorter than the longest end in silence.
        outside = frame + torch.arange(piece.shape[-1], device=piece.device) >= num_frames[:, None, None]
        piece = piece.masked_fill(outside, self.config.mel_config.floor_value)
        return MelReformerOutput(output_features=piece, generation_state=state)

    @torch.no_grad()
    def stream(
        self,
        input_features: torch.Tensor,
        num_frames: torch.Tensor,
        chunk_frames: int = 64,
        prime: torch.Tensor | None = None,
        module: Callable[..., MelReformerOutput] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Expand freely, yielding columns while they are made, at constant memory.

        Args:
            input_features: (batch, mel, column) ideas.
            num_frames: (batch,) lengths in frames; rows shorter than the longest are filled with silence.
            chunk_frames: columns per piece, about; the first piece comes as early as possible.
            prime: (batch, mel, n * fold_size) beginning to continue (original architecture).
            module: called in place of the model: the model in a wrapper, such as `torch.compile(model)`.

        Yields:
            (batch, mel, n) log-mel pieces that concatenate to `generate`'s result.

        Raises:
            ValueError: wrong shapes, ideas that are not finite, lengths below 1, or `chunk_frames` below 1.
        """
        num_frames = self._check(input_features, num_frames)
        if chunk_frames < 1:
            raise ValueError(f"chunk_frames must be at least 1, got {chunk_frames}.")
        if not input_features.isfinite().all():
            raise ValueError("input_features must be finite ideas, got NaN or infinite log-mels.")
        step, state = self if module is None else module, None
        while state is None or state.emitted < state.longest:
            output = step(
                input_features,
                num_frames,
                return_dict=True,
                chunk_frames=1 if state is None else chunk_frames,
                generation_state=state,
                prime=prime if state is None else None,
            )
            state = output.generation_state
            yield output.output_features

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.Tensor,
        num_frames: torch.Tensor,
        chunk_frames: int = 64,
        prime: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Expand freely to the end: the concatenation of `stream`, (batch, mel, longest)."""
        pieces = list(self.stream(input_features, num_frames, chunk_frames, prime))
        return torch.cat(pieces, dim=-1)


__all__ = ["MelReformerModel", "MelReformerOutput", "MelReformerPreTrainedModel"]
