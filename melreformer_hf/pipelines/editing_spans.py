"""Editing spans of a piece: filled, extended or looped, while the rest is kept to the last sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch

from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.nn.ideas import IdeaSample
from melreformer_hf.pipelines.editing import Generators, IdeaEditing, Source, check_strength, level_of
from melreformer_hf.pipelines.mel_to_audio import CHUNK_FRAMES
from melreformer_hf.pipelines.outputs import MusicPipelineOutput
from melreformer_hf.pipelines.pipeline_utils import (
    MAX_SECONDS,
    RowGenerators,
    bare,
    check_number,
    check_seconds,
    row_generators,
    row_seed,
)
from melreformer_hf.pipelines.splicing import (
    FADE_FRAMES,
    Taken,
    Timeline,
    crossfade,
    join_mels,
    mirrored,
    touched_columns,
)

Told: TypeAlias = "Callable[[torch.Tensor], None] | None"
# What an idea sees of the kept music on each side of a span: so much that with the span it is as long as what idea models
# learn from, and no more, since each of its columns then stands for little.
CONTEXT_SECONDS = 10.0


class SpanEditing(IdeaEditing):
    """The verbs of a pipeline of ideas that keep a part of a piece; see `IdeaEditing`."""

    def inpaint(
        self,
        source: Source,
        start_in_s: float,
        end_in_s: float,
        strength: float = 1.0,
        context_in_s: float = CONTEXT_SECONDS,
        *,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        output_type: str = "pt",
    ) -> MusicPipelineOutput:
        """Make a span of a piece anew and keep the rest: the whole of `inpaint_stream`; arguments as there, `output_type`
        as `__call__`.

        Raises:
            ValueError: an argument breaks its rule.
        """
        drawing = {"num_inference_steps": num_inference_steps, "generator": generator}

        def stream(told: Told) -> Iterator[torch.Tensor]:
            place = (start_in_s, end_in_s, strength, context_in_s)
            return self.inpaint_stream(source, *place, **drawing, callback_on_mel=told)

        return self._whole(stream, source, output_type)

    def inpaint_stream(
        self,
        source: Source,
        start_in_s: float,
        end_in_s: float,
        strength: float = 1.0,
        context_in_s: float = CONTEXT_SECONDS,
        *,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        callback_on_mel: Told = None,
    ) -> Iterator[torch.Tensor]:
        """Make a span of a piece anew, and yield the piece while it is made.

        Args:
            source: see the class.
            start_in_s: where the span begins.
            end_in_s: where it ends, at most at the end of the piece.
            strength: how much of what was in the span is forgotten; 1 fills a gap.
            context_in_s: seconds on each side that the new music is drawn to fit.
            num_inference_steps: as `vary`.
            generator: as `__call__`, one.
            callback_on_mel: told every (1, mel, frame) piece of the result's mel before its sound.

        Yields:
            (1, 1, sample). Outside the span the source's own samples, but for a crossfade of 4 frames on each side.

        Raises:
            ValueError: an argument breaks its rule, the span does not lie in the piece or is all of it, or the idea model
                does not denoise.
        """
        (row,) = row_generators(generator, 1)
        timeline = self._timeline(self.heard(source, RowGenerators([row])))
        span = self._span(start_in_s, end_in_s, timeline.num_frames)
        timeline = Timeline(timeline.waveform, timeline.mel, (span,))
        settings = (strength, context_in_s, num_inference_steps, row, callback_on_mel)
        yield from self._spliced(timeline, *settings)

    def extend(
        self,
        source: Source,
        left_in_s: float = 0.0,
        right_in_s: float = 0.0,
        strength: float = 0.8,
        context_in_s: float = CONTEXT_SECONDS,
        *,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        output_type: str = "pt",
    ) -> MusicPipelineOutput:
        """Go on with a piece before its beginning, after its end, or both: the whole of `extend_stream`; arguments as
        there, `output_type` as `__call__`.

        Raises:
            ValueError: an argument breaks its rule.
        """
        drawing = {"num_inference_steps": num_inference_steps, "generator": generator}

        def stream(told: Told) -> Iterator[torch.Tensor]:
            place = (left_in_s, right_in_s, strength, context_in_s)
            return self.extend_stream(source, *place, **drawing, callback_on_mel=told)

        return self._whole(stream, source, output_type)

    def extend_stream(
        self,
        source: Source,
        left_in_s: float = 0.0,
        right_in_s: float = 0.0,
        strength: float = 0.8,
        context_in_s: float = CONTEXT_SECONDS,
        *,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        callback_on_mel: Told = None,
    ) -> Iterator[torch.Tensor]:
        """Go on with a piece, and yield it while it is made.

        What is added begins as the piece in a mirror at its border, of which `strength` is forgotten: so the song stays
        recognisable.

        Args:
            source: see the class.
            left_in_s: seconds that are added before it.
            right_in_s: seconds that are added after it.
            strength: 1 draws freely what may stand beside the piece.
            context_in_s: seconds of the piece that the new music is drawn to fit.
            num_inference_steps: as `vary`.
            generator: as `__call__`, one.
            callback_on_mel: as `inpaint_stream`.

        Yields:
            (1, 1, sample). Of the source its own samples, but for a crossfade of 4 frames at each border.

        Raises:
            ValueError: an argument breaks its rule, nothing is to be added, so much that the piece is too short beside it,
                or the idea model does not denoise.
        """
        rate = self.mel_config.frame_rate
        added = {"left_in_s": left_in_s, "right_in_s": right_in_s}
        left, right = (round(check_number(name, value, 0, MAX_SECONDS) * rate) for name, value in added.items())
        if not left and not right:
            raise ValueError(f"left_in_s or right_in_s must be at least a frame ({1 / rate:.3f} s), got {added}.")
        (row,) = row_generators(generator, 1)
        kept = self._timeline(self.heard(source, RowGenerators([row])))
        hop, total = self.mel_config.hop_length, left + kept.num_frames + right
        check_seconds("the length of the result", total / rate)
        waveform = torch.nn.functional.pad(kept.waveform, (left * hop, right * hop))
        spans = [(0, left)] * (left > 0) + [(total - right, total)] * (right > 0)
        timeline = Timeline(waveform, mirrored(kept.mel, left, right), tuple(spans))
        yield from self._spliced(timeline, strength, context_in_s, num_inference_steps, row, callback_on_mel)

    def loop(
        self,
        source: Source,
        seam_in_s: float = 2.0,
        strength: float = 0.8,
        context_in_s: float = CONTEXT_SECONDS,
        *,
        num_inference_steps: int | None = None,
        generator: Generators = None,
    ) -> MusicPipelineOutput:
        """A piece whose end leads into its beginning: played again and again it has no seam.

        The piece is turned, so that its end and its beginning meet in the middle, the music there is made anew, and the
        result is turned back.

        Args:
            source: see the class.
            seam_in_s: seconds that are made anew, half of them at the end and half at the beginning.
            strength: as `inpaint_stream`.
            context_in_s: as `inpaint_stream`.
            num_inference_steps: as `vary`.
            generator: as `__call__`, one.

        Raises:
            ValueError: an argument breaks its rule, the seam is not shorter than the piece, or the idea model does not
                denoise.
        """
        (row,) = row_generators(generator, 1)
        waveform, hop = self.heard(source, RowGenerators([row])), self.mel_config.hop_length
        turned = len(waveform) // hop // 2
        timeline = self._timeline(waveform, turned)
        frames = timeline.num_frames
        seam, meeting = self.frames_of(seam_in_s, "seam_in_s"), frames - turned
        if seam >= frames:
            rate = self.mel_config.frame_rate
            raise ValueError(f"seam_in_s must be less than the piece's {frames / rate:.2f} s, got {seam_in_s!r}.")
        span = (meeting - seam // 2, meeting + seam - seam // 2)
        timeline = Timeline(timeline.waveform, timeline.mel, (span,))
        mels: list[torch.Tensor] = []
        settings = (strength, context_in_s, num_inference_steps, row, mels.append)
        audio = torch.cat(list(self._spliced(timeline, *settings)), dim=-1).roll(turned * hop, dims=-1)
        return self._output(audio, torch.cat(mels, dim=-1).roll(turned, dims=-1), source)

    def _timeline(self, waveform: torch.Tensor, turned: int = 0) -> Timeline:
        """A recording of which nothing is to be made; `turned` by so many frames, which come after its end."""
        hop, rate = self.mel_config.hop_length, self.mel_config.frame_rate
        frames, least = len(waveform) // hop, 2 * FADE_FRAMES
        if frames < least:
            raise ValueError(
                f"A piece must last at least {least / rate:.2f} s for a part of it to be edited, got {frames / rate:.2f}."
            )
        whole = waveform[: frames * hop].float().roll(-turned * hop)
        # Contracts that center their frames have one more of them, others of odd transforms one less.
        mel = log_mel_spectrogram(whole, self.mel_config)[:, :frames]
        return Timeline(whole[: mel.shape[-1] * hop], mel, ())

    def _span(self, start_in_s: float, end_in_s: float, frames: int) -> tuple[int, int]:
        rate = self.mel_config.frame_rate
        seconds = frames / rate
        for name, value in (("start_in_s", start_in_s), ("end_in_s", end_in_s)):
            # What was cut off after the last whole frame belongs to the piece for whoever names its length.
            check_number(name, value, 0, seconds + 1 / rate, "which lies within the piece")
        begin, end = (min(round(value * rate), frames) for value in (start_in_s, end_in_s))
        if end <= begin:
            raise ValueError(f"end_in_s must lie after start_in_s, got {start_in_s!r} to {end_in_s!r}.")
        if end - begin == frames:
            raise ValueError(
                f"start_in_s to end_in_s must leave something of the piece's {seconds:.2f} s, got {start_in_s!r} to "
                f"{end_in_s!r}. To make all of it anew, vary it."
            )
        return begin, end

    def _spliced(
        self,
        timeline: Timeline,
        strength: float,
        context_in_s: float,
        num_inference_steps: int | None,
        row: torch.Generator | None,
        told: Told,
    ) -> Iterator[torch.Tensor]:
        """Sound (1, 1, sample) of a timeline, whose spans are made when they are reached."""
        check_strength(strength)
        context = self.frames_of(context_in_s, "context_in_s")
        self.check_inputs(num_inference_steps, 1, "pt")
        # Each span has a generator of its own: how much of it is made beyond its end does not change the next one.
        rows = [row if row is None else torch.Generator(row.device).manual_seed(row_seed(row)) for _ in timeline.spans]
        windows = [timeline.window(index, context) for index in range(len(timeline.spans))]
        # All that can be refused is refused before the first sound; ideas are drawn when their span is reached.
        if strength:
            self.check_denoises(strength)
        touched = [self._touched(span, window) for span, window in zip(timeline.spans, windows, strict=True)]
        hop, done, waveform = self.mel_config.hop_length, 0, timeline.waveform[None, None]
        tell = told or (lambda mel: None)

        def kept(first: int, last: int) -> torch.Tensor:
            return waveform[..., first * hop : last * hop]

        for (begin, end), window, columns, own in zip(timeline.spans, windows, touched, rows, strict=True):
            near = max(window[0], begin - FADE_FRAMES), min(window[1], end + FADE_FRAMES)
            if done < begin:
                tell(timeline.mel[None, :, done:begin])
                yield kept(done, near[0])
            single = RowGenerators([own])
            idea = self._window_idea(timeline, window, columns, strength, num_inference_steps, single)
            made = Taken(self._window_sound(timeline, (begin, end), window, idea, single, tell))
            for _ in made.pieces((near[0] - window[0]) * hop):
                pass  # the vocoder's own rendering of what is kept
            if near[0] < begin:
                yield crossfade(kept(near[0], begin), made.whole((begin - near[0]) * hop))
            yield from made.pieces((end - begin) * hop)
            tell(timeline.mel[None, :, end : near[1]])
            if end < near[1]:
                yield crossfade(made.whole((near[1] - end) * hop), kept(end, near[1]))
            done = near[1]
        if done < timeline.num_frames:
            tell(timeline.mel[None, :, done:])
            yield kept(done, timeline.num_frames)

    def _touched(self, span: tuple[int, int], window: tuple[int, int]) -> torch.Tensor:
        """(1, column) bool, the columns of a window's idea that are drawn anew."""
        first, last = window
        columns = bare(self.expansion).config.idea_columns
        touched = touched_columns(last - first, (span[0] - first, span[1] - first), columns)
        if touched.all():
            raise ValueError(
                f"The {(span[1] - span[0]) / self.mel_config.frame_rate:.2f} s that shall be made leave no column of the "
                "idea to what is kept around them: make less at once, or give a longer piece."
            )
        return touched

    def _window_idea(
        self,
        timeline: Timeline,
        window: tuple[int, int],
        touched: torch.Tensor,
        strength: float,
        num_inference_steps: int | None,
        rows: RowGenerators,
    ) -> IdeaSample:
        """Idea of a window of a timeline, with some columns drawn anew."""
        first, last = window
        idea = resize_mel(timeline.mel[None, :, first:last], touched.shape[1])
        frames = torch.tensor([last - first], device=idea.device)
        if strength == 0:
            return IdeaSample(idea, frames)
        return self._redrawn(idea, frames, strength, touched.to(idea.device), num_inference_steps, rows)

    def _window_sound(
        self,
        timeline: Timeline,
        span: tuple[int, int],
        window: tuple[int, int],
        idea: IdeaSample,
        rows: RowGenerators,
        tell: Callable[[torch.Tensor], None],
    ) -> Iterator[torch.Tensor]:
        """Sound (1, 1, sample) of a window, whose span is expanded from its idea; its mel within the span is told."""
        first, last = window
        inner, done = (span[0] - first, span[1] - first), 0

        def mels() -> Iterator[torch.Tensor]:
            nonlocal done
            made = (piece.float() for piece in self._mels(*idea, CHUNK_FRAMES, rows))
            for mel in join_mels(timeline.mel[:, first:last], made, inner, self.mel_config.floor_value):
                told = mel[..., max(inner[0] - done, 0) : max(inner[1] - done, 0)]
                if told.shape[-1]:
                    tell(told)
                done += mel.shape[-1]
                yield mel

        yield from self.calmly(self.make_audible(mels(), torch.tensor([last - first])))

    def _whole(
        self, stream: Callable[[Told], Iterator[torch.Tensor]], source: Source, output_type: str
    ) -> MusicPipelineOutput:
        """What a stream that tells its mel comes to."""
        self.check_inputs(None, 1, output_type)
        mels: list[torch.Tensor] = []
        audio = torch.cat(list(stream(mels.append)), dim=-1)
        return self._output(audio, torch.cat(mels, dim=-1), source, output_type)

    def _output(
        self, audio: torch.Tensor, mel: torch.Tensor, source: Source, output_type: str = "pt"
    ) -> MusicPipelineOutput:
        idea = resize_mel(mel, bare(self.expansion).config.idea_columns)
        frames = torch.tensor([mel.shape[-1]])
        kinds = {"np": lambda: audio.cpu().numpy(), "mel": lambda: mel, "idea": lambda: idea, "latent": lambda: idea}
        return MusicPipelineOutput(
            audios=kinds.get(output_type, lambda: audio)(),
            num_samples=frames * self.mel_config.hop_length,
            sampling_rate=self.sampling_rate,
            peak_db=level_of(source),
            mels=mel,
            ideas=idea,
            num_frames=frames,
        )


__all__ = ["CONTEXT_SECONDS", "SpanEditing"]
