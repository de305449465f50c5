"""The ear: log-mel to notes, whole or as a stream.

What is predicted follows Hawthorne et al., Onsets and Frames (arXiv 1710.11153), with offsets and the triangular targets
of Kong et al. (arXiv 2010.01815): for every key and step the probabilities that a note begins, sounds, and ends, and how
hard it was struck. Deviations: convolutions that look few steps ahead in place of recurrent networks in both directions,
so that a stream equals the whole; one trunk for all four, since it has to be small.

It hears log-mels, so that it judges a waveform as well as a mel that no vocoder has seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, pad
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.note_ear.blocks_note_ear import EarLayer, EarStem
from melreformer_hf.models.note_ear.configuration_note_ear import NoteEarConfig
from melreformer_hf.models.note_ear.listening_note_ear import ListeningMixin

_RARE = -4.0  # logit at the start of training: most keys are silent most of the time


@dataclass
class NoteEarOutput(ModelOutput):
    """Output of `NoteEarModel`. A step is `fold_size` mel frames, rounded up at the end.

    Args:
        loss: scalar, sum of the losses below; nats per step, summed over keys.
        onset_logits: (batch, step, key) of a note that begins here.
        frame_logits: (batch, step, key) of a note that sounds.
        offset_logits: (batch, step, key) of a note that ends here.
        velocities: (batch, step, key) in 0..1, of a note that begins here.
        last_hidden_state: (batch, step, hidden), what the four are read from.
        onset_loss: scalar, cross-entropy, steps with onsets weighted.
        frame_loss: scalar, cross-entropy.
        offset_loss: scalar, cross-entropy, steps with offsets weighted.
        velocity_loss: scalar, weighted squared error at onsets.
    """

    loss: torch.FloatTensor | None = None
    onset_logits: torch.FloatTensor | None = None
    frame_logits: torch.FloatTensor | None = None
    offset_logits: torch.FloatTensor | None = None
    velocities: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    onset_loss: torch.FloatTensor | None = None
    frame_loss: torch.FloatTensor | None = None
    offset_loss: torch.FloatTensor | None = None
    velocity_loss: torch.FloatTensor | None = None


class NoteEarPreTrainedModel(HubMixin, PreTrainedModel):
    """Initial values and loading."""

    config_class = NoteEarConfig
    base_model_prefix = "note_ear"
    main_input_name = "input_features"
    input_modalities = "audio"
    card_pipeline_tag = "audio-classification"
    card_tags = ("music", "mel-spectrogram", "transcription", "midi")
    supports_gradient_checkpointing = True
    _no_split_modules = ["EarLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            # Keeps the power of the signal: variance 1 / fan-in.
            init.normal_(module.weight, 0.0, module.weight[0].numel() ** -0.5)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, 0.0, self.config.initializer_range)
            init.constant_(module.bias, _RARE if module is getattr(self, "head", None) else 0.0)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class NoteEarModel(ListeningMixin, NoteEarPreTrainedModel):
    """Log-mel spectrograms, or waveforms, to notes.

    Args:
        config: sizes, thresholds and mel contract.

    Example:

        >>> import torch
        >>> from melreformer_hf.models.note_ear.configuration_note_ear import NoteEarConfig
        >>> from melreformer_hf.models.note_ear.modeling_note_ear import NoteEarModel
        >>> ear = NoteEarModel(NoteEarConfig.preset("test")).eval()
        >>> tuple(ear(torch.randn(1, ear.config.num_mel_bins, 41)).onset_logits.shape)
        (1, 21, 88)
        >>> ear.transcribe(torch.zeros(22050), 22050)
        []
    """

    def __init__(self, config: NoteEarConfig) -> None:
        super().__init__(config)
        # Read here: a contract that is built while `forward` is traced would break its graph.
        self.num_mel_bins, self.silence = config.num_mel_bins, config.mel_config.floor_value
        self.stem = EarStem(config)
        pairs = zip(config.dilations, config.look_ahead, strict=True)
        self.layers = nn.ModuleList([EarLayer(config, dilation, taps) for dilation, taps in pairs])
        self.norm = nn.LayerNorm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, 4 * config.num_keys)
        self.post_init()

    @property
    def receptive_field_steps(self) -> tuple[int, int]:
        """Steps (before, after) of the mel that what is heard in a step depends on, derived from the layers."""
        stem = -(-self.stem.reach // self.config.fold_size)
        before, after = (sum(column) for column in zip(*(layer.reach for layer in self.layers), strict=True))
        return stem + before, stem + after

    def forward(
        self, input_features: torch.Tensor, labels: torch.Tensor | None = None, return_dict: bool | None = None
    ) -> NoteEarOutput | tuple:
        """What is heard in every step, and with `labels` the loss.

        Args:
            input_features: (batch, mel, frame) log-mel under `config.mel_config`; silence is added up to a whole step.
            labels: (batch, step, key, 4) onset, sounding, offset (each in 0..1) and velocity / 127, which is looked at
                where the onset is above 0.
            return_dict: `False` gives a tuple.

        Raises:
            ValueError: shapes do not fit the configuration or one another.
        """
        self._check(input_features, labels)
        config = self.config
        missing = -input_features.shape[-1] % config.fold_size
        features = pad(input_features, (0, missing), value=self.silence)
        features = ((features - config.input_mean) / config.input_std).to(self.head.weight.dtype)
        hidden = self.stem(features)
        for layer in self.layers:
            hidden = layer(hidden)
        hidden = self.norm(hidden.transpose(1, 2))  # (batch, step, hidden)
        onsets, frames, offsets, velocities = self.head(hidden).unflatten(-1, (4, config.num_keys)).unbind(2)
        output = NoteEarOutput(
            onset_logits=onsets,
            frame_logits=frames,
            offset_logits=offsets,
            velocities=velocities.sigmoid(),
            last_hidden_state=hidden,
        )
        if labels is not None:
            self._add_losses(output, labels.float())
        return output.to_tuple() if return_dict is False else output

    def _check(self, input_features: torch.Tensor, labels: torch.Tensor | None) -> None:
        config = self.config
        if input_features.ndim != 3 or input_features.shape[1] != self.num_mel_bins or not input_features.shape[2]:
            raise ValueError(
                f"input_features must be (batch, {self.num_mel_bins}, frames), got {tuple(input_features.shape)}. A "
                "single mel needs a batch axis: mel.unsqueeze(0)."
            )
        steps = -(-input_features.shape[2] // config.fold_size)
        expected = (len(input_features), steps, config.num_keys, 4)
        if labels is not None and labels.shape != expected:
            raise ValueError(f"labels must be {expected}, got {tuple(labels.shape)}.")

    def _add_losses(self, output: NoteEarOutput, labels: torch.Tensor) -> None:
        onsets, frames, offsets, velocities = labels.unbind(-1)
        weight = self.config.onset_weight

        def distance(logits: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
            losses = binary_cross_entropy_with_logits(logits.float(), wanted, weights, reduction="none")
            return losses.sum(-1).mean()

        # The weight is the step's, not the positive term's alone: what is learned stays the triangle, whose slopes tell
        # where between the steps a note begins.
        output.onset_loss = distance(output.onset_logits, onsets, 1 + (weight - 1) * onsets)
        output.frame_loss = distance(output.frame_logits, frames)
        output.offset_loss = distance(output.offset_logits, offsets, 1 + (weight - 1) * offsets)
        # Weighted by the onset's triangle: decoding reads the velocity at its peak.
        errors = (output.velocities.float() - velocities).square() * onsets
        output.velocity_loss = self.config.velocity_weight * errors.sum(-1).mean()
        output.loss = output.onset_loss + output.frame_loss + output.offset_loss + output.velocity_loss


__all__ = ["NoteEarModel", "NoteEarOutput", "NoteEarPreTrainedModel"]
