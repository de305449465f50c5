"""Idea, expansion, vocoder: music of any length from noise, or from the idea of a recording."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

# Imported by name: diffusers resolves saved components among modules that are loaded.
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
from melreformer_hf.models.idea_stylegan2.modeling_idea_stylegan2 import IdeaStyleGan2Model
from melreformer_hf.models.idea_unet.unet_idea import IdeaUNetModel
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel
from melreformer_hf.models.melgan_vocoder.modeling_melgan_vocoder import MelGanVocoderModel
from melreformer_hf.models.note_performer.modeling_note_performer import NotePerformerModel
from melreformer_hf.models.note_transformer.modeling_note_transformer import NoteTransformerModel
from melreformer_hf.nn.ideas import IdeaEdit, IdeaSample
from melreformer_hf.pipelines.editing_spans import SpanEditing
from melreformer_hf.pipelines.hearing import Music
from melreformer_hf.pipelines.ideas import IdeaModel, check_settings, settings_of, steps_of
from melreformer_hf.pipelines.mel_to_audio import CHUNK_FRAMES, MelToAudio
from melreformer_hf.pipelines.note_ideas import NoteIdeas
from melreformer_hf.pipelines.outputs import MusicPipelineOutput
from melreformer_hf.pipelines.pipeline_utils import AudioPipeline, bare, check_count, check_seconds, row_generators
from melreformer_hf.processing.feature_extraction_mel import check_waveform

IDEA_SOURCES = ("noise", "notes")
_TENSOR_INPUTS = "callback_on_step_end_tensor_inputs"  # means nothing without the callback
OUTPUT_TYPES = ("pt", "np", "mel", "idea", "latent")


class MelReformerPipeline(SpanEditing, NoteIdeas, MelToAudio, AudioPipeline):
    """Music generation, and editing (see `IdeaEditing` and `SpanEditing`).

    Args:
        idea: draws ideas: `IdeaUNetModel`, `IdeaStyleGan2Model`, or another `pipelines.ideas.IdeaModel`.
        expansion: makes an idea a full-length mel.
        vocoder: makes a mel audible.
        scheduler: noise schedule of an idea model that denoises, `DPMSolverMultistepScheduler` or `DDIMScheduler`;
            `None` for one that does not.
        performer: plays sketches in notes; `None` leaves them to the sampled piano that comes with the package.
        composer: writes notes whose ideas are expanded, see `compose_idea`; `None` for a pipeline without.

    Raises:
        ValueError: the parts were trained with different mel contracts or idea sizes, or the scheduler is missing or
            one too many.

    Example:
        >>> import torch
        >>> from melreformer_hf import MelReformerPipeline
        >>> pipe = MelReformerPipeline.from_pretrained("piano-tiny")
        >>> output = pipe(audio_length_in_s=2, num_inference_steps=4, generator=torch.Generator().manual_seed(0))
        >>> output.audios.shape
        torch.Size([1, 1, 44032])
    """

    model_cpu_offload_seq = "composer->performer->idea->expansion->vocoder"
    _callback_tensor_inputs = ["latents", "num_frames"]
    _optional_components = ["scheduler", "performer", "composer"]

    def __init__(
        self,
        idea: IdeaUNetModel | IdeaStyleGan2Model | IdeaModel,
        expansion: MelReformerModel,
        vocoder: HifiVocoderModel | MelGanVocoderModel,
        scheduler: DPMSolverMultistepScheduler | DDIMScheduler | None = None,
        performer: NotePerformerModel | None = None,
        composer: NoteTransformerModel | None = None,
    ) -> None:
        super().__init__()
        parts = {"idea": idea, "scheduler": scheduler, "expansion": expansion, "vocoder": vocoder}
        self.register_modules(**parts, performer=performer, composer=composer)
        drawing, expanding, sounding = bare(idea), bare(expansion).config, bare(vocoder).config
        drawing.mel_config.check_matches(expanding.mel_config, "idea", "expansion")
        expanding.mel_config.check_matches(sounding.mel_config, "expansion", "vocoder")
        if performer is not None:
            bare(performer).config.mel_config.check_matches(expanding.mel_config, "performer", "expansion")
        if drawing.config.num_columns != expanding.idea_columns:
            raise ValueError(
                f"idea draws {drawing.config.num_columns} columns, expansion reads {expanding.idea_columns}; load "
                "parts that were trained together."
            )
        wanted = "scheduler" in settings_of(drawing)
        if wanted != (scheduler is not None):
            words = "denoises and needs a scheduler, got None" if wanted else f"takes no scheduler, got {scheduler!r}"
            raise ValueError(f"{type(drawing).__name__} {words}.")

    def check_inputs(self, num_inference_steps: int | None, num_waveforms: int, output_type: str) -> None:
        """Raise ValueError naming argument, rule and value."""
        check_count("num_waveforms_per_prompt", num_waveforms)
        if num_inference_steps is not None:
            most = None if self.scheduler is None else self.scheduler.config.num_train_timesteps
            check_count("num_inference_steps", num_inference_steps, most)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}.")

    @torch.no_grad()
    def sample_idea(
        self,
        audio_length_in_s: float | None = None,
        num_waveforms_per_prompt: int = 1,
        *,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        truncation_psi: float | None = None,
        audio_end_in_s: float | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        edit: IdeaEdit | None = None,
    ) -> IdeaSample:
        """Draw ideas and durations; arguments as `__call__`, and `edit`: ideas that are given to be changed.

        Returns:
            ideas (batch, mel, column) as log-mels, and num_frames (batch,). Each row's noise and duration come from a
            generator of its own: rows do not change when others join the batch.

        Raises:
            ValueError: an argument breaks its rule.
        """
        self.check_inputs(num_inference_steps, num_waveforms_per_prompt, "idea")
        model, batch = bare(self.idea), int(num_waveforms_per_prompt)
        given = {"num_inference_steps": num_inference_steps, "latents": latents, "truncation_psi": truncation_psi}
        given["edit"] = edit
        settings, known = check_settings(model, given), settings_of(model)
        seconds, num_frames = one_length(audio_length_in_s, audio_end_in_s), None
        if seconds is not None:
            num_frames = torch.full((batch,), self.frames_of(seconds), device=self._execution_device)
        total = steps_of(model, num_inference_steps, edit)
        with self.telling(callback_on_step_end, callback_on_step_end_tensor_inputs, total) as on_step:
            if "on_step" in known:
                settings["on_step"] = on_step
            elif callback_on_step_end is not None:
                raise ValueError(f"callback_on_step_end: {type(model).__name__} has no steps; leave it out.")
            if self.scheduler is not None:
                settings["scheduler"] = self.scheduler
            return model.sample(
                batch,
                row_generators(generator, batch),
                num_frames,
                device=self._execution_device,
                module=self.idea,
                **settings,
            )

    @torch.no_grad()
    def __call__(
        self,
        audio_length_in_s: float | None = None,
        num_waveforms_per_prompt: int = 1,
        *,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        truncation_psi: float | None = None,
        audio_end_in_s: float | None = None,
        midi: Music | None = None,
        idea_from: str = "noise",
        output_type: str = "pt",
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> MusicPipelineOutput | tuple:
        """Generate music: from noise, from a sketch in notes, or from notes that are composed.

        Args:
            audio_length_in_s: length in seconds; `None` draws lengths from what the idea model was trained on, or keeps
                the sketch's.
            num_waveforms_per_prompt: pieces; 1 with `midi`.
            num_inference_steps: denoising steps of the idea; default: the idea model's own (`sampling_steps` of a UNet).
            generator: drives everything random; one, or one per piece. The same gives the same samples.
            latents: noise to begin with in place of noise that is drawn: (batch, 1, mel, column) of unit variance for
                a UNet, (batch, style_size) for StyleGAN2.
            truncation_psi: how far StyleGAN2's styles keep from their mean; 1 draws freely.
            audio_end_in_s: another name of `audio_length_in_s`.
            midi: a sketch, see `idea_of_midi`: its idea is expanded in place of one that is drawn, so that the settings of
                drawing do not go with it. To draw something like it, `vary` it.
            idea_from: `noise`, of which the idea model draws ideas, or `notes`, which the pipeline's composer writes (see
                `compose_idea`; settings of drawing do not go with them).
            output_type: what `audios` holds: sound (batch, channel, sample) as `pt` (tensor) or `np` (array), or, to
                stop earlier, `mel` (batch, mel, frame) or `idea`, also called `latent`, (batch, mel, column).
            callback_on_step_end: called as `(pipeline, step, timestep, tensors)` after each denoising step; returns the
                dictionary, whose entries replace the pipeline's. Setting `pipeline._interrupt = True` ends the
                denoising.
            callback_on_step_end_tensor_inputs: what `tensors` holds: `latents` (batch, 1, mel, column), the noisy idea,
                and `num_frames` (batch,), the durations.
            return_dict: whether to return `MusicPipelineOutput` rather than a tuple of `audios`.

        Raises:
            ValueError: an argument breaks its rule.
        """
        self.check_inputs(num_inference_steps, num_waveforms_per_prompt, output_type)
        rows = row_generators(generator, int(num_waveforms_per_prompt))
        drawing = {"num_inference_steps": num_inference_steps, "latents": latents, "truncation_psi": truncation_psi}
        drawing["callback_on_step_end"] = callback_on_step_end
        drawing[_TENSOR_INPUTS] = callback_on_step_end_tensor_inputs
        seconds = one_length(audio_length_in_s, audio_end_in_s)
        drawn = self._begin(seconds, rows, midi, idea_from, drawing)
        output = self.render_idea(*drawn, generator=rows, output_type=output_type)
        return output if return_dict else (output.audios,)

    def _begin(
        self,
        seconds: float | None,
        rows: list[torch.Generator],
        midi: Music | None,
        idea_from: str,
        drawing: dict[str, object],
    ) -> IdeaSample:
        """Ideas of noise, of a sketch, or of composed notes; settings of drawing go with the first alone.

        Raises:
            ValueError: an argument breaks its rule, or does not go with another.
        """
        if idea_from not in IDEA_SOURCES:
            raise ValueError(f"idea_from must be one of {IDEA_SOURCES}, got {idea_from!r}.")
        if midi is None and idea_from == "noise":
            return self.sample_idea(seconds, len(rows), generator=rows, **drawing)
        given = {name: value for name, value in drawing.items() if value is not None and name != _TENSOR_INPUTS}
        if midi is not None:
            given |= {"num_waveforms_per_prompt": len(rows)} if len(rows) > 1 else {}
            given |= {"idea_from": idea_from} if idea_from != "noise" else {}
        what = 'idea_from="notes"' if midi is None else "midi"
        advice = "" if midi is None else " To draw something like it, call vary."
        for name, value in given.items():
            shown = type(value).__name__ if isinstance(value, torch.Tensor) else repr(value)
            raise ValueError(
                f"{name} does not go with {what}, whose idea is taken as it is; got {shown}. Leave it out.{advice}"
            )
        if midi is not None:
            return self.idea_of_midi(midi, seconds)
        return self.compose_idea(seconds, len(rows), generator=rows)

    def _mels(
        self,
        ideas: torch.Tensor,
        num_frames: torch.Tensor,
        chunk_frames: int,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> Iterator[torch.Tensor]:
        """Log-mels (batch, mel, frame) of ideas while they are made."""
        if not isinstance(ideas, torch.Tensor) or not ideas.is_floating_point():
            kind = ideas.dtype if isinstance(ideas, torch.Tensor) else type(ideas).__name__
            raise ValueError(f"ideas must be a floating point tensor (batch, mel, column), got {kind}.")
        if not ideas.isfinite().all():
            raise ValueError("ideas must be finite log-mels, got NaN or infinite values.")
        expansion, settings = bare(self.expansion), {"module": self.expansion}
        # An expansion that draws nothing takes no generator.
        if "generator" in inspect.signature(expansion.stream).parameters:
            settings["generator"] = row_generators(generator, len(ideas))
        ideas = ideas.to(self._execution_device, expansion.dtype)
        yield from expansion.stream(ideas, num_frames, chunk_frames, **settings)

    @torch.no_grad()
    def render_idea(
        self,
        ideas: torch.Tensor,
        num_frames: torch.Tensor,
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pt",
        peak_db: float | None = -1.0,
    ) -> MusicPipelineOutput:
        """Expand ideas and make them audible, whole: the concatenation of `stream_idea`.

        Args:
            ideas: (batch, mel, column) log-mels.
            num_frames: (batch,) lengths in frames.
            generator: as `__call__`, of what an expansion that samples draws.
            output_type: as `__call__`.
            peak_db: the output's.

        Raises:
            ValueError: an argument breaks its rule.
        """
        self.check_inputs(None, 1, output_type)
        num_frames = torch.as_tensor(num_frames)
        mels = ideas[..., :0]
        audios: torch.Tensor | np.ndarray = ideas
        try:
            if output_type not in ("idea", "latent"):
                pieces = list(self._mels(ideas, num_frames, CHUNK_FRAMES, generator))
                audios = mels = torch.cat(pieces, dim=-1)
            if output_type in ("pt", "np"):
                audios = torch.cat(list(self.make_audible(pieces, num_frames)), dim=-1)
        finally:
            self.maybe_free_model_hooks()
        if output_type == "np":
            audios = audios.cpu().numpy()
        samples = num_frames * self.mel_config.hop_length
        return MusicPipelineOutput(
            audios=audios,
            num_samples=samples,
            sampling_rate=self.sampling_rate,
            peak_db=peak_db,
            mels=mels.float(),
            ideas=ideas.float(),
            num_frames=num_frames,
        )

    def stream_idea(
        self,
        ideas: torch.Tensor,
        num_frames: torch.Tensor,
        chunk_length_in_s: float | None = None,
        callback_on_mel: Callable[[torch.Tensor], None] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Expand ideas and make them audible, chunk by chunk at constant memory.

        With `enable_model_cpu_offload` expansion and vocoder take turns on the device for every chunk: longer chunks
        then cost less.

        Args:
            ideas: (batch, mel, column) log-mels, of `sample_idea`, `idea_of` or your own.
            num_frames: (batch,) lengths in frames.
            chunk_length_in_s: about how much audio a chunk holds; default 1.5 seconds, about. The first comes as
                early as it can.
            callback_on_mel: told every (batch, mel, frame) piece of the mel before it becomes audible.
            generator: as `__call__`, of what an expansion that samples draws.

        Yields:
            (batch, channel, sample) float32 tensors; rows shorter than the longest end in silence.

        Raises:
            ValueError: an argument breaks its rule (when the first chunk is asked for).
        """
        chunk_frames, num_frames = self.chunk_frames_of(chunk_length_in_s), torch.as_tensor(num_frames)
        mels = self._mels(ideas, num_frames, chunk_frames, generator)
        yield from self.calmly(self.make_audible(mels, num_frames, callback_on_mel))

    def stream(
        self,
        audio_length_in_s: float | None = None,
        num_waveforms_per_prompt: int = 1,
        *,
        chunk_length_in_s: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        midi: Music | None = None,
        idea_from: str = "noise",
        **arguments,
    ) -> Iterator[torch.Tensor]:
        """Generate music and yield it while it is made, at constant memory whatever its length.

        Args:
            audio_length_in_s: as `__call__`.
            num_waveforms_per_prompt: as `__call__`.
            chunk_length_in_s: as `stream_idea`.
            generator: as `__call__`.
            midi: as `__call__`.
            idea_from: as `__call__`; notes are written before the first sound.
            arguments: all others of `sample_idea`.

        Yields:
            (batch, channel, sample) tensors whose concatenation equals the `audios` of `__call__` with the same
            generator.

        Raises:
            ValueError: an argument breaks its rule (when the first chunk is asked for).
        """
        self.chunk_frames_of(chunk_length_in_s)
        check_count("num_waveforms_per_prompt", num_waveforms_per_prompt)
        rows = row_generators(generator, int(num_waveforms_per_prompt))
        seconds = one_length(audio_length_in_s, arguments.pop("audio_end_in_s", None))
        drawn = self._begin(seconds, rows, midi, idea_from, arguments)
        yield from self.stream_idea(*drawn, chunk_length_in_s, generator=rows)

    def check_rate(self, sampling_rate: int) -> None:
        """Raise ValueError where a recording has another rate than the pipeline."""
        if sampling_rate != self.sampling_rate:
            raise ValueError(
                f"sampling_rate must be {self.sampling_rate}, the rate of this pipeline, got {sampling_rate}. Resample "
                "first, for example by reading the file with melreformer_hf.audio.io.read_audio(path, rate)."
            )

    @torch.no_grad()
    def idea_of(
        self, waveform: np.ndarray | torch.Tensor, sampling_rate: int, audio_length_in_s: float | None = None
    ) -> IdeaSample:
        """Idea (1, mel, column) and length (1,) in frames of a recording.

        Args:
            waveform: (samples,) mono floating point, full scale at 1.
            sampling_rate: its samples per second; must be the pipeline's.
            audio_length_in_s: another length, to which the idea shall be expanded.

        Raises:
            ValueError: another rate, more channels, empty, too short, or not finite.
        """
        self.check_rate(sampling_rate)
        frames = None if audio_length_in_s is None else self.frames_of(audio_length_in_s)
        with torch.no_grad():
            mel = log_mel_spectrogram(check_waveform(waveform).to(self._execution_device), self.mel_config)[None]
            idea = resize_mel(mel, bare(self.expansion).config.idea_columns)
        return IdeaSample(idea, torch.tensor([frames or mel.shape[-1]], device=mel.device))

    def expand(
        self,
        waveform: np.ndarray | torch.Tensor,
        sampling_rate: int,
        audio_length_in_s: float | None = None,
        *,
        generator: torch.Generator | None = None,
        output_type: str = "pt",
    ) -> MusicPipelineOutput:
        """Shrink a recording to its idea and expand that freely: what the pipeline can say in one idea.

        The result is as loud as the recording, and `save` keeps it so: silence stays silence.

        Args:
            waveform: (samples,) mono floating point, full scale at 1.
            sampling_rate: its samples per second; must be the pipeline's.
            audio_length_in_s: length of the result; `None` keeps the recording's.
            generator: as `__call__`, of what an expansion that samples draws.
            output_type: as `__call__`.

        Raises:
            ValueError: an argument breaks its rule.
        """
        self.check_inputs(None, 1, output_type)
        drawn = self.idea_of(waveform, sampling_rate, audio_length_in_s)
        return self.render_idea(*drawn, generator=generator, output_type=output_type, peak_db=None)

    def expand_stream(
        self,
        waveform: np.ndarray | torch.Tensor,
        sampling_rate: int,
        audio_length_in_s: float | None = None,
        *,
        chunk_length_in_s: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[torch.Tensor]:
        """`expand`, yielding (1, 1, samples) chunks while they are made."""
        self.chunk_frames_of(chunk_length_in_s)
        drawn = self.idea_of(waveform, sampling_rate, audio_length_in_s)
        yield from self.stream_idea(*drawn, chunk_length_in_s, generator=generator)


def one_length(audio_length_in_s: float | None, audio_end_in_s: float | None) -> float | None:
    """A length that has two names.

    Raises:
        ValueError: they say different things.
    """
    if audio_length_in_s is None and audio_end_in_s is not None:
        return check_seconds("audio_end_in_s", audio_end_in_s)
    if audio_end_in_s is not None and audio_end_in_s != audio_length_in_s:
        raise ValueError(
            f"audio_end_in_s is another name of audio_length_in_s; give one, got {audio_end_in_s!r} and "
            f"{audio_length_in_s!r}."
        )
    return audio_length_in_s


__all__ = ["MelReformerPipeline"]
