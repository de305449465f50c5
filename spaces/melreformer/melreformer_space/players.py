"""Everything that can be asked for, by visitors and by programs: one method for each endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gradio as gr

from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
from melreformer_hf.pipelines.pipeline_midi_generation import MidiGenerationPipeline
from melreformer_hf.pipelines.pipeline_separation import SeparationPipeline
from melreformer_hf.pipelines.pipeline_token_generation import TokenGenerationPipeline
from melreformer_space.edits import EditPlayer
from melreformer_space.ideas import IdeaPlayer
from melreformer_space.limits import choose_seed, refusal
from melreformer_space.notes import NotePlayer
from melreformer_space.sound import Files, Shown
from melreformer_space.sounds import SoundPlayer
from melreformer_space.stems import StemPlayer
from melreformer_space.stops import Stops, visitor_of

MIDI_TASKS = ("continue", "fill", "accompany", "perform", "transcribe")
EDIT_TASKS = ("vary", "blend", "inpaint", "extend", "loop")
SOUND_TASKS = ("sound", "repair", "between")
TASKS = ("generate", "expand", "separate", *MIDI_TASKS, *EDIT_TASKS, *SOUND_TASKS)
GENERATED = ("sound", "wav", "midi", "roll", "idea", "mel", "status")
EXPANDED = ("sound", "wav", "idea", "mel", "status")
PLAYED = ("sound", "wav", "midi", "roll", "status")
EDITED = ("sound", "wav", "picture", "status")


class Players:
    """What makes the music of the page.

    Args:
        notes: composes and performs; `None` for a checkpoint without a composer.
        ideas: draws and expands ideas; `None` for a checkpoint without an idea model.
        live: whether chunks are sent to a live player.
        separation: splits recordings; `None` for a page that does not.
        sounds: draws sounds from tokens; `None` for a page without them.
    """

    def __init__(
        self,
        notes: MidiGenerationPipeline | None,
        ideas: MelReformerPipeline | None,
        live: bool,
        separation: SeparationPipeline | None = None,
        sounds: TokenGenerationPipeline | None = None,
    ) -> None:
        files = Files()
        self.live, self.stops = live, Stops(TASKS)
        self.notes = None if notes is None else NotePlayer(notes, live, files)
        self.ideas = None if ideas is None else IdeaPlayer(ideas, live, files)
        self.stems = None if separation is None else StemPlayer(separation, files)
        self.edits = None if ideas is None else EditPlayer(ideas, live, files)
        self.sounds = None if sounds is None else SoundPlayer(sounds, live, files)

    @property
    def sources(self) -> list[str]:
        """What music can be generated from, the default first."""
        return [name for name, player in (("notes", self.notes), ("idea", self.ideas)) if player is not None]

    def generate(
        self,
        seconds: float,
        seed: float,
        new_seed: bool,
        source: str,
        temperature: float,
        top_p: float,
        steps: float,
        idea_from: str = "noise",
        request: gr.Request | None = None,
    ) -> Iterator[tuple]:
        """Generate music from notes or from an idea; the last output is the seed."""
        with self.stops.piece(visitor_of(request), "generate") as stopped:
            if source not in self.sources:
                raise refusal(f"The source must be {' or '.join(self.sources)}, got {source!r}.")
            seed = choose_seed(seed, new_seed)
            if source == "notes":
                steps = self.notes.compose(seconds, seed, temperature, top_p, stopped)
            else:
                steps = self.ideas.draw(seconds, seed, steps, idea_from, stopped)
            for step in steps:
                yield *step.of(GENERATED), seed

    def expand(self, recording: str | None, stretch: float, request: gr.Request | None = None) -> Iterator[tuple]:
        """Expand the idea of a recording."""
        with self.stops.piece(visitor_of(request), "expand") as stopped:
            for step in self.ideas.expand(recording, stretch, stopped):
                yield step.of(EXPANDED)

    def separate(self, recording: str | None, request: gr.Request | None = None) -> Iterator[tuple]:
        """Split a recording into vocals and instrumental."""
        with self.stops.piece(visitor_of(request), "separate") as stopped:
            for step in self.stems.separate(recording, stopped):
                yield tuple(step)

    def go_on(
        self,
        file: str | None,
        seconds: float,
        seed: float,
        new_seed: bool,
        temperature: float,
        top_p: float,
        request: gr.Request | None = None,
    ) -> Iterator[tuple]:
        """Continue a MIDI file; the last output is the seed."""

        def steps(seed: int, stopped: Callable) -> Iterator[Shown]:
            return self.notes.go_on(file, seconds, seed, temperature, top_p, stopped)

        yield from self._seeded("continue", seed, new_seed, steps, request)

    def fill(
        self,
        file: str | None,
        start: float,
        end: float,
        seed: float,
        new_seed: bool,
        temperature: float,
        top_p: float,
        request: gr.Request | None = None,
    ) -> Iterator[tuple]:
        """Fill a gap of a MIDI file; the last output is the seed."""

        def steps(seed: int, stopped: Callable) -> Iterator[Shown]:
            return self.notes.fill(file, start, end, seed, temperature, top_p, stopped)

        yield from self._seeded("fill", seed, new_seed, steps, request)

    def accompany(
        self,
        file: str | None,
        seed: float,
        new_seed: bool,
        temperature: float,
        top_p: float,
        request: gr.Request | None = None,
    ) -> Iterator[tuple]:
        """Accompany the melody of a MIDI file; the last output is the seed."""

        def steps(seed: int, stopped: Callable) -> Iterator[Shown]:
            return self.notes.accompany(file, seed, temperature, top_p, stopped)

        yield from self._seeded("accompany", seed, new_seed, steps, request)

    def vary(
        self,
        recording: str | None,
        strength: float,
        seed: float,
        new_seed: bool,
        steps: float,
        request: gr.Request | None = None,
    ) -> Iterator[tuple]:
        """Vary a recording; the last output is the seed."""

        def play(seed: int, stopped: Callable) -> Iterator[Shown]:
            return self.edits.vary(recording, strength, seed, steps, stopped)

        yield from self._seeded("vary", seed, new_seed, play, request, EDITED)

    def blend(
        self,
        recording: str | None,
        other: str | None,
        weight: float,
        strength: float,
        seed: float,
        new_seed: bool,
        steps: float,
        request: gr.Request | None = None,
    ) -> Iterator[tuple]:
        """Blend two recordings; the last output is the seed."""

        def play(seed: int, stopped: Callable) -> Iterator[Shown]:
            return self.edits.blend(recording, other, weight, strength, seed, steps, stopped)

        yield from self._seeded("blend", seed, new_seed, play, request, EDITED)

    def inpaint(
        self,
        recording: str | None,
        start: float,
        end: float,
        strength: float,
        seed: float,
        new_seed: bool,
        steps: float,
        request: gr.Request | None = None,
    ) -> Iterator[tuple]:
        """Make a span of a recording anew; the last output is the seed."""

        def play(seed: int, stopped: Callable) -> Iterator[Shown]:
            return self.edits.inpaint(recording, start, end, strength, seed, steps, stopped)

        yield from self._seeded("inpaint", seed, new_seed, play, request, EDITED)

    def extend(
        self,
        recording: str | None,
        left: float,
        right: float,
        strength: float,
        seed: float,
        new_seed: bool,
        steps: float,
        request: gr.Request | None = None,
    ) -> Iterator[tuple]:
        """Extend a recording; the last output is the seed."""

        def play(seed: int, stopped: Callable) -> Iterator[Shown]:
            return self.edits.extend(recording, left, right, strength, seed, steps, stopped)

        yield from self._seeded("extend", seed, new_seed, play, request, EDITED)

    def loop(
        self,
        recording: str | None,
        seam: float,
        strength: float,
        seed: float,
        new_seed: bool,
        steps: float,
        request: gr.Request | None = None,
    ) -> Iterator[tuple]:
        """Make a loop of a recording; the last output is the seed."""

        def play(seed: int, stopped: Callable) -> Iterator[Shown]:
            return self.edits.loop(recording, seam, strength, seed, steps, stopped)

        yield from self._seeded("loop", seed, new_seed, play, request, EDITED)

    def sound(
        self,
        name: str,
        seconds: float,
        guidance: float,
        temperature: float,
        seed: float,
        new_seed: bool,
        request: gr.Request | None = None,
    ) -> Iterator[tuple]:
        """Draw a sound of a class; the last output is the seed."""

        def play(seed: int, stopped: Callable) -> Iterator[Shown]:
            return self.sounds.draw(name, seconds, guidance, temperature, seed, stopped)

        yield from self._seeded("sound", seed, new_seed, play, request, EDITED)

    def repair(
        self,
        recording: str | None,
        start: float,
        end: float,
        name: str,
        seed: float,
        new_seed: bool,
        request: gr.Request | None = None,
    ) -> Iterator[tuple]:
        """Fill a gap of a recording; the last output is the seed."""

        def play(seed: int, stopped: Callable) -> Iterator[Shown]:
            return self.sounds.repair(recording, start, end, name, seed, stopped)

        yield from self._seeded("repair", seed, new_seed, play, request, EDITED)

    def between(
        self,
        recording: str | None,
        other: str | None,
        weight: float,
        seed: float,
        new_seed: bool,
        request: gr.Request | None = None,
    ) -> Iterator[tuple]:
        """What lies between two recordings; the last output is the seed."""

        def play(seed: int, stopped: Callable) -> Iterator[Shown]:
            return self.sounds.between(recording, other, weight, seed, stopped)

        yield from self._seeded("between", seed, new_seed, play, request, EDITED)

    def _seeded(
        self,
        task: str,
        seed: float,
        new_seed: bool,
        steps: Callable[..., Iterator[Shown]],
        request: gr.Request | None,
        names: tuple[str, ...] = PLAYED,
    ) -> Iterator[tuple]:
        with self.stops.piece(visitor_of(request), task) as stopped:
            seed = choose_seed(seed, new_seed)
            for step in steps(seed, stopped):
                yield *step.of(names), seed

    def perform(self, file: str | None, request: gr.Request | None = None) -> Iterator[tuple]:
        """Play a MIDI file."""
        with self.stops.piece(visitor_of(request), "perform") as stopped:
            for step in self.notes.perform(file, stopped):
                yield step.of(PLAYED)

    def transcribe(self, recording: str | None, request: gr.Request | None = None) -> Iterator[tuple]:
        """Write down the notes of a recording."""
        with self.stops.piece(visitor_of(request), "transcribe") as stopped:
            for step in self.notes.transcribe(recording, stopped):
                yield step.of(PLAYED)
