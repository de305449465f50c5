"""Idea, expansion, vocoder: music of any length from noise, or from the idea of a recording."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

# Imported by name: diffusers resolves saved components among modules that are loaded.
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
from melreformer_hf.models.idea_unet.unet_idea import IdeaUNetModel, set_spaced_timesteps
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel
from melreformer_hf.pipelines.pipeline_utils import (
    MelPipeline,
    MusicPipelineOutput,
    check_callback,
    row_generators,
    tell_callback,
)
from melreformer_hf.processing.feature_extraction_mel import check_waveform

MAX_SECONDS = 6 * 3600.0
OUTPUT_TYPES = ("pt", "np", "mel", "idea")


class MelReformerPipeline(MelPipeline):
    """Music generation.

    Args:
        unet: draws ideas.
        scheduler: its noise schedule, `DPMSolverMultistepScheduler` or `DDIMScheduler`.
        expansion: makes an idea a full-length mel.
        vocoder: makes a mel audible.

    Raises:
        ValueError: the parts were trained with different mel contracts or idea sizes.

    Example:
        >>> import torch
        >>> from melreformer_hf import MelReformerPipeline
        >>> pipe = MelReformerPipeline.from_pretrained("piano-tiny")
        >>> output = pipe(audio_length_in_s=2, num_inference_steps=4, generator=torch.Generator().manual_seed(0))
        >>> output.audios.shape
        torch.Size([1, 44032])
    """

    model_cpu_offload_seq = "unet->expansion->vocoder"
    _callback_tensor_inputs = ["latents", "log2_num_frames"]

    def __init__(
        self,
        unet: IdeaUNetModel,
        scheduler: DPMSolverMultistepScheduler | DDIMScheduler,
        expansion: MelReformerModel,
        vocoder: HifiVocoderModel,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, expansion=expansion, vocoder=vocoder)
        self._interrupt = False
        unet.mel_config.check_matches(expansion.config.mel_config, "unet", "expansion")
        expansion.config.mel_config.check_matches(vocoder.config.mel_config, "expansion", "vocoder")
        if unet.config.num_columns != expansion.config.idea_columns:
            raise ValueError(
                f"unet draws ideas of {unet.config.num_columns} columns, expansion reads "
                f"{expansion.config.idea_columns}; load parts that were trained together."
            )

    @property
    def mel_config(self):
        """The mel contract of all parts."""
        return self.vocoder.config.mel_config

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the audio."""
        return self.mel_config.sampling_rate

    def frames_of(self, audio_length_in_s: float, name: str = "audio_length_in_s") -> int:
        """Frames of a duration in seconds, at least one.

        Args:
            audio_length_in_s: the duration.
            name: of the argument, for the error.

        Raises:
            ValueError: the duration is not a positive number of at most six hours.
        """
        seconds = audio_length_in_s
        if isinstance(seconds, bool) or not isinstance(seconds, numbers.Real) or not 0 < seconds <= MAX_SECONDS:
            raise ValueError(
                f"{name} must be a number of seconds above 0 and at most {MAX_SECONDS:.0f}, got {seconds!r}."
            )
        return max(1, round(float(seconds) * self.mel_config.frame_rate))

    def check_inputs(self, num_inference_steps: int, num_waveforms: int, output_type: str) -> None:
        """Raise ValueError naming argument, rule and value."""
        for name, value in (
            ("num_inference_steps", num_inference_steps),
            ("num_waveforms_per_prompt", num_waveforms),
        ):
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        most = self.scheduler.config.num_train_timesteps
        if num_inference_steps > most:
            raise ValueError(f"num_inference_steps must be at most {most}, got {num_inference_steps}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}.")

    @torch.no_grad()
    def sample_idea(
        self,
        num_inference_steps: int = 20,
        audio_length_in_s: float | None = None,
        num_waveforms_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw ideas and durations.

        Returns:
            ideas (batch, mel, column) as log-mels, and lengths (batch,) in frames. Each row's noise and duration come
            from a generator of its own: rows do not change when others join the batch.

        Raises:
            ValueError: an argument breaks its rule.
        """
        self.check_inputs(num_inference_steps, num_waveforms_per_prompt, "idea")
        names = check_callback(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        unet, device = self.unet, self._execution_device
        generators = row_generators(generator, num_waveforms_per_prompt)
        shape = (1, 1, unet.mel_config.num_mel_bins, unet.config.num_columns)
        noise, durations = [], []
        for row in generators:
            source = row.device if row is not None else "cpu"
            noise.append(torch.randn(shape, generator=row, device=source).to(device))
            durations.append(unet.sample_log2_num_frames(1, row).to(device))
        latents, durations = torch.cat(noise) * self.scheduler.init_noise_sigma, torch.cat(durations)
        if audio_length_in_s is not None:
            durations = torch.full_like(durations, math.log2(self.frames_of(audio_length_in_s)))
        set_spaced_timesteps(self.scheduler, num_inference_steps, unet.config.noise_power, device)
        self._interrupt = False
        with self.progress_bar(total=num_inference_steps) as bar:
            for index, timestep in enumerate(self.scheduler.timesteps):
                if self._interrupt:
                    break
                model_input = self.scheduler.scale_model_input(latents, timestep)
                predicted = unet(model_input.to(unet.dtype), timestep, durations).sample.float()
                latents = self.scheduler.step(predicted, timestep, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    tensors = {"latents": latents, "log2_num_frames": durations}
                    tensors = tell_callback(self, callback_on_step_end, names, index, timestep, tensors)
                    latents, durations = tensors["latents"], tensors["log2_num_frames"]
                bar.update()
        ideas = unet.denormalize_idea(latents).clamp(min=self.mel_config.floor_value)
        return ideas, durations.exp2().round().long().clamp(min=1)

    @torch.no_grad()
    def __call__(
        self,
        num_inference_steps: int = 20,
        audio_length_in_s: float | None = None,
        num_waveforms_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pt",
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> MusicPipelineOutput | tuple:
        """Generate music.

        Args:
            num_inference_steps: denoising steps of the idea.
            audio_length_in_s: length in seconds; `None` draws lengths from what the idea model was trained on.
            num_waveforms_per_prompt: pieces.
            generator: drives everything random; one, or one per piece. The same gives the same samples.
            output_type: `pt` (tensor), `np` (array), or stop at the `mel` or the `idea` (then `audios` holds that).
            callback_on_step_end: called as `(pipeline, step, timestep, tensors)` after each denoising step; returns the
                dictionary, whose entries replace the pipeline's. Setting `pipeline._interrupt = True` ends the
                denoising.
            callback_on_step_end_tensor_inputs: what `tensors` holds: `latents` (batch, 1, mel, column), the noisy idea,
                and `log2_num_frames` (batch,), the durations.
            return_dict: whether to return `MusicPipelineOutput` rather than a tuple of `audios`.

        Raises:
            ValueError: an argument breaks its rule.
        """
        self.check_inputs(num_inference_steps, num_waveforms_per_prompt, output_type)
        ideas, num_frames = self.sample_idea(
            num_inference_steps,
            audio_length_in_s,
            num_waveforms_per_prompt,
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        output = self._render(ideas, num_frames, output_type)
        self.maybe_free_model_hooks()
        return output if return_dict else (output.audios,)

    def _render(self, ideas: torch.Tensor, num_frames: torch.Tensor, output_type: str) -> MusicPipelineOutput:
        samples = num_frames * self.mel_config.hop_length
        mels = ideas[..., :0]
        audios: torch.Tensor | np.ndarray = ideas
        if output_type != "idea":
            pieces = list(self._mel_stream(ideas, num_frames, 64))
            mels = torch.cat(pieces, dim=-1)
            audios = mels
        if output_type in ("pt", "np"):
            audios = torch.cat(list(self.vocoder.stream(iter(pieces))), dim=-1).float()
            inside = torch.arange(audios.shape[-1], device=audios.device) < samples[:, None]
            audios = audios * inside
            if output_type == "np":
                audios = audios.cpu().numpy()
        return MusicPipelineOutput(audios, mels.float(), ideas.float(), num_frames, samples, self.sampling_rate)

    def _mel_stream(self, ideas: torch.Tensor, num_frames: torch.Tensor, chunk_frames: int) -> Iterator[torch.Tensor]:
        if not isinstance(ideas, torch.Tensor) or not ideas.is_floating_point():
            kind = ideas.dtype if isinstance(ideas, torch.Tensor) else type(ideas).__name__
            raise ValueError(f"ideas must be a floating point tensor (batch, mel, column), got {kind}.")
        if not ideas.isfinite().all():
            raise ValueError("ideas must be finite log-mels, got NaN or infinite values.")
        chunks = self.expansion.stream(ideas.to(self.expansion.dtype), num_frames, chunk_frames)
        return (chunk.to(self.vocoder.dtype) for chunk in chunks)

    @torch.no_grad()
    def stream_idea(
        self,
        ideas: torch.Tensor,
        num_frames: torch.Tensor,
        chunk_length_in_s: float = 0.75,
        callback_on_mel: Callable[[torch.Tensor], None] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Expand ideas and make them audible, chunk by chunk at constant memory.

        Args:
            ideas: (batch, mel, column) log-mels, of `sample_idea`, `idea_of` or your own.
            num_frames: (batch,) lengths in frames.
            chunk_length_in_s: about how much audio a chunk holds.
            callback_on_mel: told every (batch, mel, frame) piece of the mel before it becomes audible.

        Yields:
            (batch, samples) float32 tensors; rows shorter than the longest end in silence.

        Raises:
            ValueError: an argument breaks its rule (when the first chunk is asked for).
        """
        chunk_frames = self.frames_of(chunk_length_in_s, "chunk_length_in_s")

        def told(pieces: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
            for piece in pieces:
                if callback_on_mel is not None:
                    callback_on_mel(piece.float())
                yield piece

        num_frames, position = torch.as_tensor(num_frames), 0
        for chunk in self.vocoder.stream(told(self._mel_stream(ideas, num_frames, chunk_frames))):
            samples = num_frames.to(chunk.device) * self.mel_config.hop_length
            inside = torch.arange(position, position + chunk.shape[-1], device=chunk.device) < samples[:, None]
            position += chunk.shape[-1]
            yield chunk.float() * inside

    def stream(
        self,
        num_inference_steps: int = 20,
        audio_length_in_s: float | None = None,
        num_waveforms_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        chunk_length_in_s: float = 0.75,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Iterator[torch.Tensor]:
        """Generate music and yield it while it is made, at constant memory whatever its length.

        Args: as `__call__`, and
            chunk_length_in_s: about how much audio a chunk holds; the first comes as early as it can.

        Yields:
            (batch, samples) tensors whose concatenation equals the `audios` of `__call__` with the same generator.

        Raises:
            ValueError: an argument breaks its rule (when the first chunk is asked for).
        """
        self.frames_of(chunk_length_in_s, "chunk_length_in_s")
        ideas, num_frames = self.sample_idea(
            num_inference_steps,
            audio_length_in_s,
            num_waveforms_per_prompt,
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        yield from self.stream_idea(ideas, num_frames, chunk_length_in_s)

    @torch.no_grad()
    def idea_of(self, waveform: np.ndarray | torch.Tensor, sampling_rate: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Idea (1, mel, column) and length (1,) in frames of a recording.

        Args:
            waveform: (samples,) mono floating point, full scale at 1.
            sampling_rate: its samples per second; must be the pipeline's.

        Raises:
            ValueError: another rate, more channels, empty, too short, or not finite.
        """
        if sampling_rate != self.sampling_rate:
            raise ValueError(
                f"sampling_rate must be {self.sampling_rate}, the rate of this pipeline, got {sampling_rate}. Resample "
                "first, for example by reading the file with melreformer_hf.audio.io.read_audio(path, rate)."
            )
        mel = log_mel_spectrogram(check_waveform(waveform).to(self._execution_device), self.mel_config)[None]
        idea = resize_mel(mel, self.expansion.config.idea_columns)
        return idea, torch.tensor([mel.shape[-1]], device=mel.device)

    @torch.no_grad()
    def expand(
        self,
        waveform: np.ndarray | torch.Tensor,
        sampling_rate: int,
        audio_length_in_s: float | None = None,
        output_type: str = "pt",
    ) -> MusicPipelineOutput:
        """Shrink a recording to its idea and expand that freely: what the pipeline can say in one idea.

        Args:
            waveform: (samples,) mono floating point, full scale at 1.
            sampling_rate: its samples per second; must be the pipeline's.
            audio_length_in_s: length of the result; `None` keeps the recording's.
            output_type: as `__call__`.

        Raises:
            ValueError: an argument breaks its rule.
        """
        self.check_inputs(1, 1, output_type)
        idea, num_frames = self.idea_of(waveform, sampling_rate)
        if audio_length_in_s is not None:
            num_frames = torch.full_like(num_frames, self.frames_of(audio_length_in_s))
        return self._render(idea, num_frames, output_type)

    def expand_stream(
        self,
        waveform: np.ndarray | torch.Tensor,
        sampling_rate: int,
        audio_length_in_s: float | None = None,
        chunk_length_in_s: float = 0.75,
    ) -> Iterator[torch.Tensor]:
        """`expand`, yielding (1, samples) chunks while they are made."""
        idea, num_frames = self.idea_of(waveform, sampling_rate)
        if audio_length_in_s is not None:
            num_frames = torch.full_like(num_frames, self.frames_of(audio_length_in_s))
        yield from self.stream_idea(idea, num_frames, chunk_length_in_s)


__all__ = ["MelReformerPipeline"]
