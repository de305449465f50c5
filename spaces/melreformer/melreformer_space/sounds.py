"""Sounds are drawn of a class, gaps of recordings are repaired, one recording is turned into another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from melreformer_hf.nn.token_drawing import TokenSampling
from melreformer_hf.pipelines.outputs import SoundPipelineOutput
from melreformer_hf.pipelines.pipeline_token_generation import TokenGenerationPipeline
from melreformer_hf.plotting import Panel, panels_picture
from melreformer_space.limits import MAX_SECONDS, TEMPERATURE, check_number, checked, read_recording, refusal
from melreformer_space.sound import PEAK_DB, Files, Shown, Sound

ANY = "any"
GUIDANCE = (1.0, 4.0)
SOUND_SECONDS = (1, 30)
WIDTH = 640


class SoundPlayer:
    """Plays sounds from tokens.

    Args:
        pipeline: draws and repairs.
        live: whether the player of the page is one for chunks.
        files: where its files go.
    """

    def __init__(self, pipeline: TokenGenerationPipeline, live: bool, files: Files) -> None:
        self.pipeline, self.live, self.files, self.rate = pipeline, live, files, pipeline.sampling_rate

    @property
    def names(self) -> list[str]:
        """Classes that can be chosen."""
        return [*self.pipeline.class_names, ANY]

    @property
    def blends(self) -> bool:
        """Whether there are latents to go from one recording to another."""
        return self.pipeline.gpt_vae is not None

    def draw(
        self, name: str, seconds: float, guidance: float, temperature: float, seed: int, stopped: Callable
    ) -> Iterator[Shown]:
        """A sound of a class."""
        label = self._label(name)
        seconds = check_number("The length in seconds", seconds, *SOUND_SECONDS)
        sampling = self._sampling(guidance, temperature)

        def make(generator: torch.Generator) -> SoundPipelineOutput:
            return self.pipeline(label, seconds, sampling=sampling, generator=generator)

        yield from self._play(make, f"{name}, seed {seed}.", seed, stopped, PEAK_DB)

    def repair(
        self, recording: str | None, start: float, end: float, name: str, seed: int, stopped: Callable
    ) -> Iterator[Shown]:
        """A recording whose gap is filled."""
        label = self._label(name)
        start, end = (
            check_number(f"The gap's {which}", value, 0, MAX_SECONDS)
            for which, value in (("beginning", start), ("end", end))
        )
        waveform = read_recording(recording, self.rate)

        def make(generator: torch.Generator) -> SoundPipelineOutput:
            return self.pipeline.repair((waveform, self.rate), [(start, end)], label, generator=generator)

        origin = f"{Path(recording).name}, {start:g} to {end:g} s repaired, seed {seed}."
        yield from self._play(make, origin, seed, stopped, None, [(start, end)])

    def between(
        self, recording: str | None, other: str | None, weight: float, seed: int, stopped: Callable
    ) -> Iterator[Shown]:
        """What lies between two recordings."""
        weight = check_number("The weight", weight, 0, 1)
        sources = [(read_recording(file, self.rate), self.rate) for file in (recording, other)]

        def make(generator: torch.Generator) -> SoundPipelineOutput:
            first, second = (self.pipeline.latents_of(source) for source in sources)
            return self.pipeline(latents=first + weight * (second - first), generator=generator)

        origin = f"{weight:g} of the way from {Path(recording).name} to {Path(other).name}, seed {seed}."
        yield from self._play(make, origin, seed, stopped, PEAK_DB)

    def _label(self, name: str) -> str | None:
        if name not in self.names:
            raise refusal(f"The class must be one of {', '.join(self.names)}, got {name!r}.")
        return None if name == ANY else name

    def _sampling(self, guidance: float, temperature: float) -> TokenSampling:
        return TokenSampling(
            guidance_scale=check_number("The guidance", guidance, *GUIDANCE),
            temperature=check_number("The temperature", temperature, *TEMPERATURE),
        )

    def _play(
        self,
        make: Callable[[torch.Generator], SoundPipelineOutput],
        origin: str,
        seed: int,
        stopped: Callable,
        peak_db: float | None,
        spans: list[tuple[float, float]] | None = None,
    ) -> Iterator[Shown]:
        started = time.perf_counter()
        yield Shown(wav=None, status="Drawing tokens ...")
        made = checked(lambda: make(torch.Generator().manual_seed(seed)))
        # A sound is a few seconds: it is heard whole, at the level that its file has.
        audio = made.audios.cpu()
        peak = float(audio.abs().max())
        gain = 1.0 if peak_db is None else 10 ** (peak_db / 20) / max(peak, 1e-4)
        sound = Sound(self.files, self.rate, self.live, gain, peak_db, started)
        length = audio.shape[-1] / self.rate
        panel = Panel(made.mels[0].cpu(), origin, length, spans=spans or [])
        picture = panels_picture([panel], self.pipeline.mel_config, width=WIDTH)
        yield Shown(sound=sound.add(audio), picture=picture)
        player, file = sound.finish(stopped())
        yield Shown(sound=player, wav=file, picture=picture, status=sound.summary(length, origin, stopped()))


__all__ = ["ANY", "GUIDANCE", "SOUND_SECONDS", "SoundPlayer"]
