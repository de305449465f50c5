"""MelReformer: a small idea mel becomes a mel of any length.

Source: TariqAHassan/MelReformer (2022), an encoder-decoder transformer over folded mel columns; no paper.
Deviations of the `"local"` architecture, the default: ideas are area averages; encoder columns and decoder steps lie on
one time axis, so that attention is local, the cost linear and the memory constant; the duration ends the piece; the
encoder draws curves inside the columns of the idea, which the decoder corrects; a head finishes the columns: a post-net
that joins the windows, or a sampler. The `"original"` architecture repeats the original program and loads its checkpoints.
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

from melreformer_hf.hub.int8 import Int8StorageMixin
from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.models.mel_reformer.encoder_mel_reformer import ColumnCurves, IdeaBlock2d, IdeaEncoder
from melreformer_hf.models.mel_reformer.heads_mel_reformer import HeadNet, mean_error
from melreformer_hf.models.mel_reformer.local_mel_reformer import EncodedIdea, ExpansionState, LocalExpansion
from melreformer_hf.models.mel_reformer.original_mel_reformer import OriginalExpansion, OriginalState
from melreformer_hf.models.mel_reformer.weights_mel_reformer import ORIGINAL_FORMAT
from melreformer_hf.nn.attention import AttentionMixin
from melreformer_hf.nn.convnext import ConvNeXtBlock, init_convnext_block
from melreformer_hf.nn.sampling import Generators
from melreformer_hf.nn.seeded_noise import row_seeds
from melreformer_hf.originals.formats import OriginalCheckpointMixin

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass
class MelReformerOutput(ModelOutput):
    """Output of `MelReformerModel`.

    Args:
        loss: scalar, over the frames inside the pieces; only with `labels`.
        output_features: (batch, mel, frame) log-mel; of a sampling head the first draw.
        decoder_features: (batch, mel, frame) log-mel before the head (local architecture).
        encoder_features: (batch, mel, frame) log-mel before the decoder (local architecture).
        generation_state: what the next step of a free expansion needs; only with `chunk_frames`.
    """

    loss: torch.Tensor | None = None
    output_features: torch.Tensor | None = None
    decoder_features: torch.Tensor | None = None
    encoder_features: torch.Tensor | None = None
    generation_state: ExpansionState | OriginalState | None = None


class MelReformerPreTrainedModel(HubMixin, Int8StorageMixin, AttentionMixin, PreTrainedModel):
    """Initial values, and what the family can do."""

    config_class = MelReformerConfig
    base_model_prefix = "expansion"
    main_input_name = "input_features"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]
    _supports_sdpa = True

    def _initialize_weights(self, module: nn.Module, *_, **__) -> None:
        # transformers would take modules without parameters of their own for initialized, as it cannot know whether
        # `_init_weights` spares loaded tensors; the functions that are called below do.
        super()._initialize_weights(module)

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
        elif isinstance(module, HeadNet):
            # What is known and noise are of about the same size; the columns are left as they are at first.
            for layer in (module.stem, module.told, module.modulation):
                init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
            init.zeros_(module.out.weight)
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
        # Several stretches of one piece lie side by side; the original knows no stretches.
        rows = len(told) if self.config.architecture == "local" and told.ndim and len(told) % batch == 0 else batch
        if told.ndim != 3 or tuple(told.shape[:2]) != (rows, bins) or not told.numel():
            raise ValueError(
                f"labels and decoder_input_features must have shape ({batch}, {bins}, frames), got {tuple(told.shape)}."
            )
        shapes = {"labels": tuple(told.shape), "previous_features": (rows, bins, fold_size), "start_frames": (rows,)}
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
        noise: torch.Tensor | None = None,
        heard_features: torch.Tensor | None = None,
        seeds: torch.Tensor | None = None,
        temperature: float = 1.0,
    ) -> MelReformerOutput | tuple:
        """Teacher-forced expansion of a stretch of music; its cost does not depend on the length of the piece.

        With `chunk_frames` one step of a free expansion instead, from `generation_state` on. Every computation goes
        through here, so that whatever wraps the model (offloading hooks, `torch.compile`) sees it.

        Args:
            input_features: (batch, mel, column) ideas of whole pieces.
            num_frames: (batch,) lengths of the pieces in frames.
            labels: (batch, mel, frame) true log-mel of the stretch; or several stretches of every piece, those of the first
                piece first, and so everything below.
            decoder_input_features: (batch, mel, frame) what each step is told of the past; default `labels`.
            start_frames: (batch,) frame at which the stretch begins; default 0.
            previous_features: (batch, mel, fold_size) the columns before it; default silence.
            return_dict: whether to return a named output.
            chunk_frames: expand freely by so many frames at least, or to the end.
            generation_state: of the step before; `None` begins a piece.
            prime: see `stream`; only when a piece begins.
            noise: (batch, draw, channel, place) of `draw_noise`, for a sampling head's loss; default one draw without.
            heard_features: (batch, mel, fold_size + frame) what a sampling head behind a decoder is told of the past, from
                `fold_size` columns before the stretch on; default what the decoder is told.
            seeds: (batch,) of a free expansion's noise, see `stream`; only when a piece begins.
            temperature: see `stream`; only when a piece begins.

        Returns:
            MelReformerOutput. The loss is the head's (mean absolute error, energy score, or that of a flow's direction) over
            the frames inside the pieces, and half the mean absolute error of the columns of decoder and encoder.

        Raises:
            ValueError: wrong shapes, lengths below 1, or neither labels nor decoder input.
        """
        num_frames = self._check(input_features, num_frames)
        named = self.config.return_dict if return_dict is None else return_dict
        if chunk_frames is not None:
            if generation_state is None:
                generation_state = self._begin(input_features, num_frames, prime, seeds, temperature)
            output = self._advance(num_frames, chunk_frames, generation_state)
            return output if named else output.to_tuple()
        told = labels if decoder_input_features is None else decoder_input_features
        if told is None:
            raise ValueError("forward needs labels or decoder_input_features; to expand freely call generate().")
        others = {"labels": labels, "previous_features": previous_features, "start_frames": start_frames}
        self._check_stretch(len(input_features), told, **others)
        if self.config.architecture == "original":
            others = (start_frames, previous_features, noise, heard_features)
            output = self._forward_original(input_features, num_frames, labels, told, others)
        else:
            encoded = self.expansion.encode(self._normalize(input_features), num_frames)
            encoded = encoded.repeated(len(told) // len(input_features))
            start_frames = torch.zeros_like(encoded.num_frames) if start_frames is None else start_frames
            self._check_sampling(noise, heard_features, told)
            sampling = (noise, None if heard_features is None else self._normalize(heard_features))
            output = self._forward_local(encoded, labels, told, start_frames, previous_features, *sampling)
        return output if named else output.to_tuple()

    def _check_sampling(self, noise: torch.Tensor | None, heard: torch.Tensor | None, told: torch.Tensor) -> None:
        if heard is not None:
            shape = (*told.shape[:2], self.config.fold_size + told.shape[2])
            if not self.samples or not self.config.num_decoder_layers or tuple(heard.shape) != shape:
                raise ValueError(
                    f"heard_features must have shape {shape}, and be None without a sampling head behind a decoder, got "
                    f"{tuple(heard.shape)}."
                )
        if noise is None:
            return
        if not self.samples:
            raise ValueError('noise must be None with head "l1", which has none; got a tensor.')
        places = self._noise_places(told.shape[-1])
        shape = (len(told), self.expansion.head.num_noise, places)
        if noise.ndim != 4 or (noise.shape[0], *noise.shape[2:]) != shape or not noise.shape[1]:
            raise ValueError(
                f"noise must be ({shape[0]}, draws, {shape[1]}, {shape[2]}), see draw_noise, got {tuple(noise.shape)}."
            )

    def _forward_local(
        self,
        encoded: EncodedIdea,
        labels: torch.Tensor | None,
        told: torch.Tensor,
        start_frames: torch.Tensor,
        previous_features: torch.Tensor | None,
        noise: torch.Tensor | None,
        heard: torch.Tensor | None,
    ) -> MelReformerOutput:
        if previous_features is None:
            shape = (told.shape[0], told.shape[1], self.config.fold_size)
            previous = told.new_full(shape, self.expansion.silence)
        else:
            previous = self._normalize(previous_features)
        target = None if labels is None else self._normalize(labels)
        made = self.expansion(encoded, self._normalize(told), previous, start_frames, target, noise, heard)
        loss = None
        if labels is not None:
            inside = self.expansion._inside(encoded, start_frames, labels.shape[-1], torch.float32)
            # The drawing and the decoder are held to the target too, or the last stage would do all.
            loss = made.loss + 0.5 * mean_error(made.drawing, target, inside)
            if self.expansion.has_decoder:
                loss = loss + 0.5 * mean_error(made.made, target, inside)
            loss = loss * self.config.mel_scale
        mels = (self._denormalize(mel) for mel in (made.result, made.made, made.drawing))
        return MelReformerOutput(loss, *mels)

    def _forward_original(
        self,
        mel: torch.Tensor,
        num_frames: torch.Tensor,
        labels: torch.Tensor | None,
        told: torch.Tensor,
        others: tuple[torch.Tensor | None, ...],
    ) -> MelReformerOutput:
        if any(value is not None for value in others):
            raise ValueError(
                "start_frames, previous_features, noise and heard_features belong to the local architecture; pass none."
            )
        made = self.expansion(mel, told)
        loss = None
        if labels is not None:
            inside = torch.arange(made.shape[-1], device=made.device) < num_frames[:, None]
            weight = inside[:, None] / (inside.sum().clamp(min=1) * made.shape[1])
            loss = ((made - labels).abs() * weight).sum()
        return MelReformerOutput(loss, made)

    @property
    def samples(self) -> bool:
        """Whether the head draws, so that free expansions differ from seed to seed."""
        return self.config.head != "l1"

    def _noise_places(self, frames: int) -> int:
        size = self.config.fold_size
        return -(-frames // size) * (size if self.config.num_decoder_layers else 1)

    def draw_noise(
        self, seeds: torch.Tensor, num_frames: torch.Tensor, start_frames: torch.Tensor, frames: int
    ) -> torch.Tensor:
        """Noise for the loss of a sampling head.

        Args:
            seeds: (batch, draw) int64.
            num_frames: (batch,) lengths of the pieces.
            start_frames: (batch,) frame at which the stretch begins.
            frames: of the stretch.

        Returns:
            (batch, draw, channel, place) float32.
        """
        places = self._noise_places(frames)
        draws = [self.expansion.noise(row, num_frames, start_frames, places) for row in seeds.unbind(1)]
        return torch.stack(draws, dim=1)

    def _begin(
        self,
        ideas: torch.Tensor,
        num_frames: torch.Tensor,
        prime: torch.Tensor | None,
        seeds: torch.Tensor | None,
        temperature: float,
    ) -> ExpansionState | OriginalState:
        if self.config.architecture == "original":
            return self.expansion.begin(ideas, num_frames, prime)
        if prime is not None:
            raise ValueError("prime belongs to the original architecture; pass None.")
        encoded = self.expansion.encode(self._normalize(ideas), num_frames)
        return self.expansion.begin(encoded, seeds, temperature)

    def _advance(
        self, num_frames: torch.Tensor, chunk_frames: int, state: ExpansionState | OriginalState
    ) -> MelReformerOutput:
        frame = state.emitted
        piece, state = self.expansion.advance(state, chunk_frames)
        piece = self._denormalize(piece) if self.config.architecture == "local" else piece
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
        generator: Generators = None,
        temperature: float = 1.0,
    ) -> Iterator[torch.Tensor]:
        """Expand freely, yielding columns while they are made, at constant memory.

        Args:
            input_features: (batch, mel, column) ideas.
            num_frames: (batch,) lengths in frames; rows shorter than the longest are filled with silence.
            chunk_frames: columns per piece, about; the first piece comes as early as possible.
            prime: (batch, mel, n * fold_size) beginning to continue (original architecture).
            module: called in place of the model: the model in a wrapper, such as `torch.compile(model)`.
            generator: draws a seed for each row, from which all of its noise follows whatever the chunks; one, or one
                per row. A head that does not sample asks it for nothing.
            temperature: scales the noise of a sampling head: 1 draws as it was trained, 0 always makes the same.

        Yields:
            (batch, mel, n) log-mel pieces that concatenate to `generate`'s result.

        Raises:
            ValueError: wrong shapes, ideas that are not finite, lengths below 1, `chunk_frames` below 1, a negative
                temperature or one for a head that does not sample, or generators that are not one per row.
        """
        num_frames = self._check(input_features, num_frames)
        if chunk_frames < 1:
            raise ValueError(f"chunk_frames must be at least 1, got {chunk_frames}.")
        if not input_features.isfinite().all():
            raise ValueError("input_features must be finite ideas, got NaN or infinite log-mels.")
        if not (0 <= temperature < math.inf) or (temperature != 1 and not self.samples):
            rule = (
                "be finite and at least 0" if self.samples else f"be 1 with head {self.config.head!r}, without noise"
            )
            raise ValueError(f"temperature must {rule}, got {temperature}.")
        seeds = row_seeds(generator, len(input_features)) if self.samples else None
        step, state = self if module is None else module, None
        while state is None or state.emitted < state.longest:
            first = state is None
            output = step(
                input_features,
                num_frames,
                return_dict=True,
                chunk_frames=1 if first else chunk_frames,
                generation_state=state,
                **({"prime": prime, "seeds": seeds, "temperature": temperature} if first else {}),
            )
            state = output.generation_state
            yield output.output_features

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.Tensor,
        num_frames: torch.Tensor,
        chunk_frames: int | None = None,
        prime: torch.Tensor | None = None,
        generator: Generators = None,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        """Expand freely to the end: the concatenation of `stream`, (batch, mel, longest).

        `chunk_frames` is chosen for speed where it is not given: long without a decoder, whose pieces are computed with
        their neighbors.
        """
        if chunk_frames is None:
            chunk_frames = 64 if self.config.num_decoder_layers else 1024
        pieces = list(
            self.stream(input_features, num_frames, chunk_frames, prime, generator=generator, temperature=temperature)
        )
        return torch.cat(pieces, dim=-1)


__all__ = ["MelReformerModel", "MelReformerOutput", "MelReformerPreTrainedModel"]
