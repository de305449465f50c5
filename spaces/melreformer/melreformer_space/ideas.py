"""The founding path: an idea is drawn, or taken from a recording, and expanded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import numpy as np
import torch

from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.pipelines.ideas import steps_of
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
from melreformer_hf.pipelines.pipeline_utils import bare, row_generators
from melreformer_hf.plotting import MelSummary, mel_figure
from melreformer_space.limits import (
    MAX_SECONDS,
    MIN_SECONDS,
    STEPS,
    STRETCH,
    check_number,
    checked,
    read_recording,
    refusal,
)
from melreformer_space.sound import Files, Shown, Sound, emptied

SECONDS_BETWEEN_PICTURES = 0.7
# The idea is drawn in coarse blocks: at its own resolution it could not be told from what it becomes.
IDEA_BLOCKS = 64
IDEA, MEL = "the idea, in coarse blocks", "the mel it becomes"


class IdeaPlayer:
    """Plays ideas.

    Args:
        pipeline: makes the music.
        live: whether chunks are sent to a live player.
        files: where its files go.
    """

    def __init__(self, pipeline: MelReformerPipeline, live: bool, files: Files) -> None:
        self.pipeline, self.live, self.files, self.rate = pipeline, live, files, pipeline.sampling_rate

    @property
    def steps(self) -> int:
        """Denoising steps that the slider begins with: the idea model's own."""
        own = steps_of(bare(self.pipeline.idea), None)
        return STEPS[0] if own is None else min(max(own, STEPS[0]), STEPS[1])

    @property
    def sources(self) -> list[str]:
        """What ideas are drawn from, the best first."""
        composes = self.pipeline.composer is not None and self.pipeline.performer is not None
        return ["notes", "noise"] if composes else ["noise"]

    def picture(self, mel: torch.Tensor, name: str, seconds: float, high: float, share: float = 1.0) -> np.ndarray:
        """(height, width, 3) figure of a (mel, column) log-mel over `seconds`; beyond `share` of them it stays grey."""
        config = self.pipeline.mel_config
        return np.asarray(mel_figure(mel, config, seconds, name, config.floor_value, high, share=share))

    def idea_picture(self, idea: torch.Tensor, seconds: float, high: float) -> np.ndarray:
        """Figure of a (mel, column) idea in coarse blocks."""
        blocks = min(IDEA_BLOCKS, idea.shape[1])
        wide = torch.arange(480) * blocks // 480  # as many columns as the figure has pixels: blocks keep their edges
        return self.picture(resize_mel(idea, blocks)[:, wide], IDEA, seconds, high)

    def blank(self, name: str, seconds: float) -> np.ndarray:
        """The figure before anything is drawn."""
        config = self.pipeline.mel_config
        return self.picture(torch.zeros(config.num_mel_bins, 0), name, seconds, config.floor_value + 1)

    def play(
        self,
        idea: torch.Tensor,
        num_frames: torch.Tensor,
        gain: float,
        started: float,
        origin: str,
        stopped: Callable,
        generator: list[torch.Generator] | None = None,
    ) -> Iterator[Shown]:
        """Make a piece.

        Args:
            idea: (1, mel, column).
            num_frames: (1,).
            gain: of the sound.
            started: when the visitor's wait began, of `time.perf_counter`.
            origin: for the status, such as the seed.
            stopped: tells whether the visitor has pressed Stop.
            generator: of the row, of what an expansion that samples draws.
        """
        frames, low = int(num_frames[0]), self.pipeline.mel_config.floor_value
        length = frames / self.pipeline.mel_config.frame_rate
        high = max(idea.max().item() + 1.0, low + 1.0)
        drawn = self.idea_picture(idea[0].cpu(), length, high)
        status = f"Expanding the idea to {length:.1f} s ..."
        yield Shown(emptied(self.live), None, None, None, drawn, self.blank(MEL, length), status)
        sound = Sound(self.files, self.rate, self.live, gain, None, started)
        summary, shown = MelSummary(frames), 0.0
        told = {"callback_on_mel": lambda mel: summary.add(mel[0]), "generator": generator}
        for chunk in self.pipeline.stream_idea(idea, num_frames, **told):
            heard, now = sound.add(chunk), time.perf_counter()
            if stopped():
                break
            if now - shown < SECONDS_BETWEEN_PICTURES:
                yield Shown(heard)
                continue
            shown = now
            picture = self.picture(summary.mel(), MEL, length, high, summary.position / frames)
            yield Shown(heard, mel=picture, status=f"{sound.made:.1f} of {length:.1f} s are made ...")
        heard, file = sound.finish(stopped())
        picture = self.picture(summary.mel(), MEL, length, high, summary.position / frames)
        yield Shown(heard, file, None, None, drawn, picture, sound.summary(length, origin, stopped()))

    def draw(self, seconds: float, seed: int, steps: float, idea_from: str, stopped: Callable) -> Iterator[Shown]:
        """Draw an idea from noise, or compose one, and play it."""
        started = time.perf_counter()
        seconds = check_number("The length in seconds", seconds, MIN_SECONDS, MAX_SECONDS)
        steps = check_number("The number of steps", steps, *STEPS, whole=True)
        if idea_from not in self.sources:
            raise refusal(f"What the idea comes from must be {' or '.join(self.sources)}, got {idea_from!r}.")
        empty = Shown(emptied(self.live), None, None, None, *(self.blank(name, seconds) for name in (IDEA, MEL)))
        if stopped():
            yield empty._replace(status="Stopped.")
            return
        rows = row_generators(torch.Generator().manual_seed(seed), 1)
        if idea_from == "notes":
            yield empty._replace(status="Writing the notes of an idea ...")
            drawn = checked(lambda: self.pipeline.compose_idea(seconds, generator=rows))
        else:
            yield empty._replace(status=f"Drawing an idea in {steps} steps ...")
            drawn = checked(lambda: self.pipeline.sample_idea(seconds, num_inference_steps=steps, generator=rows))
        gain = self.pipeline.live_gain(drawn.ideas)
        yield from self.play(*drawn, gain, started, f"Seed {seed}.", stopped, rows)

    def expand(self, recording: str | None, stretch: float, stopped: Callable) -> Iterator[Shown]:
        """Shrink a recording to its idea and play that, `stretch` times as long and as loud as it was."""
        started = time.perf_counter()
        stretch = check_number("The stretch", stretch, *STRETCH)
        waveform = read_recording(recording, self.rate)
        seconds = waveform.numel() / self.rate
        wanted = max(seconds * stretch, MIN_SECONDS)
        wanted = check_number("The length of the result in seconds", wanted, MIN_SECONDS, MAX_SECONDS)
        if stopped():
            yield Shown(emptied(self.live), status="Stopped.")
            return
        drawn = checked(lambda: self.pipeline.idea_of(waveform, self.rate, wanted))
        origin = f"From the idea of {seconds:.1f} s of {Path(recording).name}."
        yield from self.play(*drawn, 1.0, started, origin, stopped)


def figures(player: IdeaPlayer) -> list[gr.Image]:
    """The pictures of idea and mel, empty."""
    return [
        gr.Image(
            player.blank(name, 20.0),
            label=name,
            show_label=False,
            interactive=False,
            format="png",
            buttons=["download", "fullscreen"],
            elem_classes="picture",
            min_width=300,
        )
        for name in (IDEA, MEL)
    ]
