"""Ideas that come from notes: of a sketch, or of what a composer writes; the part of a pipeline that makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.audio.sampler import SampledInstrument
from melreformer_hf.nn.ideas import IdeaSample
from melreformer_hf.pipelines.composing import Score, compose, sampling
from melreformer_hf.pipelines.hearing import SYNTHS, Music, score_end, score_of, score_snapshots
from melreformer_hf.pipelines.mel_to_audio import CHUNK_FRAMES
from melreformer_hf.pipelines.pipeline_utils import bare, check_count, row_generators
from melreformer_hf.processing.midi.sounding import sounding_notes


class NoteIdeas:
    """A base of a pipeline with the components `expansion`, `vocoder`, and perhaps `performer` and `composer`."""

    @torch.no_grad()
    def compose_idea(
        self,
        audio_length_in_s: float | None = None,
        num_waveforms_per_prompt: int = 1,
        *,
        temperature: float | Sequence[float] | None = None,
        top_p: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> IdeaSample:
        """Ideas (batch, mel, column) and lengths (batch,) in frames of pieces that the composer writes.

        Music expanded from them has the beat and the attacks that ideas drawn from noise lack; but the whole piece is
        written before its first sound.

        Args:
            audio_length_in_s: length in seconds; `None` lets the composer end each piece.
            num_waveforms_per_prompt: ideas.
            temperature: as `MidiGenerationPipeline.compose`.
            top_p: as there.
            generator: drives the notes; one, or one per piece.

        Raises:
            ValueError: an argument breaks its rule, the pipeline has no composer or performer, or a piece has no notes.
        """
        for name in ("composer", "performer"):
            if getattr(self, name) is None:
                raise ValueError(
                    f"Ideas from notes need a {name}, and this pipeline was saved without one: draw ideas from noise."
                )
        check_count("num_waveforms_per_prompt", num_waveforms_per_prompt)
        options, composer = sampling(temperature, top_p), bare(self.composer)
        frames = None if audio_length_in_s is None else self.frames_of(audio_length_in_s)
        drawn = []
        for row in row_generators(generator, int(num_waveforms_per_prompt)):
            score = compose(composer, audio_length_in_s, options=options, generator=row, module=self.composer)
            drawn.append(self._idea_of_score(score, frames, frames))
        ideas, lengths = zip(*drawn, strict=True)
        return IdeaSample(torch.cat(ideas), torch.cat(lengths))

    @torch.no_grad()
    def idea_of_midi(
        self, midi: Music, audio_length_in_s: float | None = None, *, synth: str | None = None
    ) -> IdeaSample:
        """Idea (1, mel, column) and length (1,) in frames of a sketch in notes, as it is played.

        Args:
            midi: a MIDI file (path, bytes or binary file), `Score(notes, pedal)`, or notes; drums are not played.
            audio_length_in_s: another length, to which the idea shall be expanded.
            synth: what plays: the pipeline's `performer`, or the `sampled` piano that comes with the package. `None` is
                the performer where there is one.

        Raises:
            ValueError: a damaged file, a note out of range, nothing to play, or no performer.
        """
        if self._synth(synth) == "sampled":
            return self.idea_of(self.sound_of_midi(midi, synth), self.sampling_rate, audio_length_in_s)
        frames = None if audio_length_in_s is None else self.frames_of(audio_length_in_s)
        return self._idea_of_score(score_of(midi), None, frames)

    def _idea_of_score(self, score: Score, played: int | None, frames: int | None) -> IdeaSample:
        """Of so many frames that are played, to be expanded to so many; `None` is until all notes have died away."""
        mel = torch.cat(list(self._performed(score, played)), dim=-1).float()
        idea = resize_mel(mel, bare(self.expansion).config.idea_columns)
        return IdeaSample(idea, torch.tensor([frames or mel.shape[-1]], device=mel.device))

    @torch.no_grad()
    def sound_of_midi(self, midi: Music, synth: str | None = None) -> torch.Tensor:
        """Sound (sample,) of a sketch in notes; arguments as `idea_of_midi`."""
        if self._synth(synth) == "performer":
            mels = list(self._performed(score_of(midi)))
            frames = torch.tensor([sum(mel.shape[-1] for mel in mels)])
            return torch.cat(list(self.make_audible(mels, frames)), dim=-1)[0, 0]
        score = score_of(midi)
        samples = self.frames_of(score_end(*score), "the length of midi") * self.mel_config.hop_length
        piano = SampledInstrument(None, self.sampling_rate)
        played = list(piano.stream(sounding_notes(*score), samples))
        return torch.cat(played, dim=-1)[0].to(self._execution_device)

    def _synth(self, synth: str | None) -> str:
        """What plays sketches."""
        known = SYNTHS if self.performer is not None else SYNTHS[1:]
        if synth is not None and synth not in known:
            raise ValueError(f"synth must be one of {known} in this pipeline, got {synth!r}.")
        return synth or known[0]

    def _performed(self, score: Score, frames: int | None = None) -> Iterator[torch.Tensor]:
        """Log-mel (1, mel, frame) of a piece, or of so many frames of it, part by part, by the performer."""
        performer, rate = bare(self.performer), self.mel_config.frame_rate
        if frames is None:
            frames = self.frames_of(score_end(*score), "the length of midi")
        lengths = {"num_frames": frames, "chunk": CHUNK_FRAMES, "rate": rate, "tail": performer.memory_in_s}
        return performer.stream(score_snapshots(*score, **lengths), module=self.performer)


__all__ = ["NoteIdeas"]
