"""Editing whole pieces: recordings, pieces of notes and ideas are varied, blended, stretched and drawn again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from melreformer_hf.audio.io import AUDIO_SUFFIXES, read_audio
from melreformer_hf.nn.ideas import IdeaEdit, IdeaSample
from melreformer_hf.pipelines.hearing import Music
from melreformer_hf.pipelines.ideas import settings_of
from melreformer_hf.pipelines.outputs import MusicPipelineOutput
from melreformer_hf.pipelines.pipeline_utils import (
    RowGenerators,
    bare,
    check_number,
    check_seconds,
    row_generators,
)
from melreformer_hf.pipelines.splicing import (
    slerp,
)
from melreformer_hf.processing.feature_extraction_mel import check_waveform
from melreformer_hf.processing.midi.notes import MidiNote

Source: TypeAlias = "IdeaSample | tuple[np.ndarray | torch.Tensor, int] | Music"
Generators: TypeAlias = "torch.Generator | list[torch.Generator] | None"


class IdeaEditing:
    """Base of a pipeline of ideas, `MelReformerPipeline`, that edits.

    What is edited, `source`, is a recording (a path, or the pair (waveform, sampling rate) that `read_audio` gives), a piece
    of notes (`midi` of `idea_of_midi`), or an idea (`IdeaSample`). What is kept of it is kept to the last sample. `strength`
    says how much of what was there is forgotten before it is drawn anew: 0 nothing, 1 all of it. Where something is drawn,
    the idea model must denoise, as `IdeaUNetModel` does.
    """

    def heard(self, source: Source, generator: Generators = None) -> torch.Tensor:
        """Sound (sample,) of what shall be edited.

        Args:
            source: see the class.
            generator: of what an expansion that samples draws, where the source is an idea.

        Raises:
            ValueError: it breaks a rule of its kind.
            FileNotFoundError: no file at this path.
        """
        if isinstance(source, IdeaSample):
            return self.render_idea(*one_idea(source), generator=generator).audios[0, 0].to(self._execution_device)
        if is_audio_file(source):
            source = read_audio(source, self.sampling_rate)
        if not is_recording(source):
            return self.sound_of_midi(source)
        waveform, rate = source
        self.check_rate(rate)
        return check_waveform(waveform).to(self._execution_device)

    def idea_from(self, source: Source, audio_length_in_s: float | None = None) -> IdeaSample:
        """Idea (1, mel, column) of what shall be edited, and its length (1,) in frames, or the one that is asked for."""
        if isinstance(source, IdeaSample):
            idea, frames = one_idea(source)
            if audio_length_in_s is not None:
                frames = torch.full_like(frames, self.frames_of(audio_length_in_s))
            return IdeaSample(idea.to(self._execution_device), frames.to(self._execution_device))
        if is_recording(source) or is_audio_file(source):
            return self.idea_of(self.heard(source), self.sampling_rate, audio_length_in_s)
        return self.idea_of_midi(source, audio_length_in_s)

    def vary_idea(
        self,
        source: Source,
        strength: float = 0.5,
        audio_length_in_s: float | None = None,
        num_waveforms_per_prompt: int = 1,
        *,
        num_inference_steps: int | None = None,
        generator: Generators = None,
    ) -> IdeaSample:
        """The idea of `vary`, for `stream_idea`; arguments as there."""
        check_strength(strength)
        self.check_inputs(num_inference_steps, num_waveforms_per_prompt, "idea")
        given, batch = self.idea_from(source, audio_length_in_s), int(num_waveforms_per_prompt)
        ideas, frames = given.ideas.expand(batch, -1, -1), given.num_frames.expand(batch)
        if strength == 0:
            return IdeaSample(ideas, frames)
        return self._redrawn(ideas, frames, strength, None, num_inference_steps, row_generators(generator, batch))

    def vary(
        self,
        source: Source,
        strength: float = 0.5,
        audio_length_in_s: float | None = None,
        num_waveforms_per_prompt: int = 1,
        *,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        output_type: str = "pt",
    ) -> MusicPipelineOutput:
        """Play variations: the idea of the source is noised and denoised, and expanded.

        Args:
            source: see the class.
            strength: 0 is the expansion of the source's own idea; 1 is independent of all but its length.
            audio_length_in_s: length of the result; `None` keeps the source's.
            num_waveforms_per_prompt: variations.
            num_inference_steps: of a whole denoising; a lesser strength takes fewer of them.
            generator: as `__call__`.
            output_type: as `__call__`.

        Raises:
            ValueError: an argument breaks its rule, or the idea model does not denoise.
        """
        rows = row_generators(generator, int(num_waveforms_per_prompt))
        lengths = {"audio_length_in_s": audio_length_in_s, "num_waveforms_per_prompt": num_waveforms_per_prompt}
        drawn = self.vary_idea(source, strength, **lengths, num_inference_steps=num_inference_steps, generator=rows)
        return self.render_idea(*drawn, generator=rows, output_type=output_type, peak_db=level_of(source))

    def blend_ideas(
        self,
        first: Source,
        second: Source,
        weight: float = 0.5,
        strength: float = 0.0,
        audio_length_in_s: float | None = None,
        *,
        num_inference_steps: int | None = None,
        generator: Generators = None,
    ) -> IdeaSample:
        """The idea of `blend`, for `stream_idea`; arguments as there."""
        check_number("weight", weight, 0, 1)
        check_strength(strength)
        ends = [self.idea_from(source, audio_length_in_s) for source in (first, second)]
        ideas = slerp(ends[0].ideas, ends[1].ideas, float(weight))
        if 0 < weight < 1:
            # An arc may go below silence.
            ideas = ideas.clamp(min=self.mel_config.floor_value)
        lengths = [end.num_frames.double() for end in ends]
        frames = ((1 - weight) * lengths[0] + weight * lengths[1]).round().long()
        arguments = {"num_inference_steps": num_inference_steps, "generator": generator}
        return self.vary_idea(IdeaSample(ideas, frames), strength, **arguments)

    def blend(
        self,
        first: Source,
        second: Source,
        weight: float = 0.5,
        strength: float = 0.0,
        audio_length_in_s: float | None = None,
        *,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        output_type: str = "pt",
    ) -> MusicPipelineOutput:
        """Play what lies between two pieces: a point on the arc between their ideas (see `slerp`), and between their
        lengths.

        Args:
            first: heard at weight 0, see the class.
            second: heard at weight 1.
            weight: 0 to 1.
            strength: how much the blend is then varied (see `vary`): what merely lies over one another becomes one music.
            audio_length_in_s: length of the result; `None` lies between the two.
            num_inference_steps: as `vary`.
            generator: as `__call__`.
            output_type: as `__call__`.

        Raises:
            ValueError: an argument breaks its rule, or the idea model does not denoise and `strength` is not 0.
        """
        rows = row_generators(generator, 1)
        drawing = {"num_inference_steps": num_inference_steps, "generator": rows}
        drawn = self.blend_ideas(first, second, weight, strength, audio_length_in_s, **drawing)
        peak_db = None if None in (level_of(first), level_of(second)) else level_of(first)
        return self.render_idea(*drawn, generator=rows, output_type=output_type, peak_db=peak_db)

    def stretch(
        self, source: Source, audio_length_in_s: float, *, generator: Generators = None, output_type: str = "pt"
    ) -> MusicPipelineOutput:
        """Play the same idea at another duration: slower or faster music, not a slower tape.

        Args:
            source: see the class.
            audio_length_in_s: length of the result.
            generator: as `__call__`, of what an expansion that samples draws.
            output_type: as `__call__`.

        Raises:
            ValueError: an argument breaks its rule.
        """
        drawn = self.idea_from(source, check_seconds("audio_length_in_s", audio_length_in_s))
        return self.render_idea(*drawn, generator=generator, output_type=output_type, peak_db=level_of(source))

    def sweep(
        self,
        seeds: Sequence[int],
        source: Source | None = None,
        strength: float = 0.5,
        audio_length_in_s: float | None = None,
        *,
        num_inference_steps: int | None = None,
        output_type: str = "pt",
    ) -> MusicPipelineOutput:
        """The same with several seeds: row `i` is what seed `i` alone gives.

        Args:
            seeds: whole numbers, at least one.
            source: to be varied, see `vary`; `None` generates (see `__call__`).
            strength: of the variations.
            audio_length_in_s: as `vary` or `__call__`.
            num_inference_steps: as `vary` or `__call__`.
            output_type: as `__call__`.

        Raises:
            ValueError: an argument breaks its rule.
        """
        if not len(seeds):
            raise ValueError("seeds must hold at least one whole number, got none.")
        rows = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        arguments = {"num_inference_steps": num_inference_steps, "generator": rows, "output_type": output_type}
        if source is None:
            return self(audio_length_in_s, len(rows), **arguments)
        return self.vary(source, strength, audio_length_in_s, len(rows), **arguments)

    def check_denoises(self, strength: float) -> None:
        """Raise ValueError where the idea model draws ideas in one step, and can change none."""
        model = bare(self.idea)
        if "edit" not in settings_of(model):
            raise ValueError(
                f"strength must be 0 with {type(model).__name__}, which draws ideas in one step, got {strength!r}: to "
                "change a part of an idea takes one that denoises, such as IdeaUNetModel."
            )

    def _redrawn(
        self,
        ideas: torch.Tensor,
        num_frames: torch.Tensor,
        strength: float,
        drawn: torch.Tensor | None,
        num_inference_steps: int | None,
        rows: RowGenerators,
    ) -> IdeaSample:
        """Given ideas (batch, mel, column), of which columns `drawn` (batch, column), or all, are drawn anew."""
        self.check_denoises(strength)
        seconds = int(num_frames[0]) / self.mel_config.frame_rate
        edit = IdeaEdit(ideas, float(strength), drawn)
        return self.sample_idea(
            seconds, len(ideas), num_inference_steps=num_inference_steps, generator=rows, edit=edit
        )


def is_recording(source: Source) -> bool:
    """Whether it is a pair (waveform, sampling rate), and neither a `Score` nor two notes."""
    return type(source) is tuple and len(source) == 2 and not isinstance(source[1], MidiNote)


def is_audio_file(source: Source) -> bool:
    """Whether it is the path of a recording, by its suffix."""
    return isinstance(source, (str, os.PathLike)) and Path(source).suffix.lower() in AUDIO_SUFFIXES


def one_idea(source: IdeaSample) -> IdeaSample:
    """An idea that is one.

    Raises:
        ValueError: it is a batch of several.
    """
    if source.ideas.ndim != 3 or len(source.ideas) != 1:
        raise ValueError(f"An idea to be edited must have shape (1, mel, column), got {tuple(source.ideas.shape)}.")
    return source


def level_of(source: Source) -> float | None:
    """`peak_db` of what is made of it: recordings keep their level, ideas that were drawn are as soft as training data."""
    return -1.0 if isinstance(source, IdeaSample) else None


def check_strength(strength: object) -> None:
    """Refuse what is no share.

    Raises:
        ValueError: no number from 0 to 1.
    """
    check_number("strength", strength, 0, 1)


__all__ = ["IdeaEditing", "Source", "check_strength", "level_of"]
