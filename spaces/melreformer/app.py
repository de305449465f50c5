"""Gradio demo: generate piano music and hear it while it is made; shrink a recording to its idea and expand it."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import numpy as np
import torch

from melreformer_hf.audio.io import read_audio
from melreformer_hf.audio.pictures import mel_picture
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline

MAX_SECONDS = 120
MIN_SECONDS = 1
MAX_UPLOAD_MEGABYTES = 20
MAX_SEED = 2**31 - 1
PICTURE_WIDTH = 512
SECONDS_BETWEEN_PICTURES = 0.7
DESCRIPTION = """# MelReformer
A diffusion model draws a small **idea** of a piece, 256 columns wide. An autoregressive model **expands** it to any
length, a vocoder makes it **audible** while it grows. Everything runs on this machine's own processor."""
NO_LIVE = "The live player needs `ffmpeg`, which is not installed here: the piece can be heard when it is finished."
LIMITS = f"""A recording of up to {MAX_SECONDS} seconds and {MAX_UPLOAD_MEGABYTES} MB (WAV, FLAC, OGG, MP3) is shrunk to
its idea and expanded again. The bundled model knows piano only: whatever it hears, it plays as piano."""
CSS = ".picture img {object-fit: fill; width: 100%; height: 100%}"


def launch_settings() -> dict:
    """What `launch` of this demo needs beside address and port."""
    return {"max_file_size": f"{MAX_UPLOAD_MEGABYTES}mb", "css": CSS, "theme": gr.themes.Default(primary_hue="indigo")}


def refusal(message: str) -> gr.Error:
    """An error for the visitor to read until closed; the log stays free of it."""
    return gr.Error(message, duration=None, print_exception=False)


def to_int16(audio: torch.Tensor) -> np.ndarray:
    """(samples,) float to int16 at its own level; Gradio would raise floats to full scale."""
    return (audio.clamp(-1, 1) * 32767).round().to(torch.int16).cpu().numpy()


def picture_of(mel: torch.Tensor, low: float, high: float, num_frames: int | None = None) -> np.ndarray:
    """(2 * mel, PICTURE_WIDTH, 3) picture of a log-mel; what is missing up to `num_frames` stays grey."""
    share = 1.0 if num_frames is None else mel.shape[1] / num_frames
    width = min(max(round(PICTURE_WIDTH * share), 1), PICTURE_WIDTH)
    canvas = np.full((mel.shape[0], PICTURE_WIDTH, 3), 96, dtype=np.uint8)
    canvas[:, :width] = mel_picture(mel, low, high, width)
    return canvas.repeat(2, axis=0)


def check_length(seconds: float) -> float:
    """A length that this demo makes, or an error that the visitor sees."""
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise refusal(f"The length must be {MIN_SECONDS} to {MAX_SECONDS} seconds, got {seconds:g}.")
    return float(seconds)


def read_recording(recording: str | None, rate: int) -> torch.Tensor:
    """The uploaded recording as (samples,), or an error that the visitor sees."""
    if recording is None:
        raise refusal("Upload or record something first.")
    name, size = Path(recording).name, Path(recording).stat().st_size / 1e6
    if size > MAX_UPLOAD_MEGABYTES:
        raise refusal(f"{name} has {size:.1f} MB; at most {MAX_UPLOAD_MEGABYTES} MB are accepted.")
    try:
        return read_audio(recording, rate, max_seconds=MAX_SECONDS)[0]
    except (ValueError, FileNotFoundError) as error:
        raise refusal(str(error).replace(recording, name)) from error


class Player:
    """Plays ideas of one pipeline: what the outputs of both tabs show, step by step.

    Args:
        pipeline: makes the music.
        live: whether chunks are sent to a live player.
    """

    def __init__(self, pipeline: MelReformerPipeline, live: bool) -> None:
        self.pipeline, self.live, self.rate = pipeline, live, pipeline.sampling_rate

    def play(self, idea: torch.Tensor, num_frames: torch.Tensor, started: float, origin: str) -> Iterator[tuple]:
        """(chunk, whole piece, idea, mel, status) while the piece is made.

        Args:
            idea: (1, mel, column).
            num_frames: (1,).
            started: when the visitor's wait began, of `time.perf_counter`.
            origin: for the status, such as the seed.
        """
        frames, low = int(num_frames[0]), self.pipeline.mel_config.floor_value
        length = frames / self.pipeline.mel_config.frame_rate
        high = max(idea.max().item() + 1.0, low + 1.0)
        drawn = picture_of(idea[0].cpu(), low, high)
        yield gr.skip(), None, drawn, None, f"Expanding the idea to {length:.1f} s ..."
        mels: list[torch.Tensor] = []
        chunks: list[torch.Tensor] = []
        shown, heard_after = 0.0, None
        for chunk in self.pipeline.stream_idea(
            idea, num_frames, callback_on_mel=lambda mel: mels.append(mel[0].cpu())
        ):
            chunks.append(chunk[0].cpu())
            now = time.perf_counter()
            heard_after = heard_after or now - started
            sound = (self.rate, to_int16(chunks[-1])) if self.live else gr.skip()
            if now - shown < SECONDS_BETWEEN_PICTURES:
                yield sound, gr.skip(), gr.skip(), gr.skip(), gr.skip()
                continue
            shown = now
            made = sum(len(part) for part in chunks) / self.rate
            picture = picture_of(torch.cat(mels, dim=1), low, high, frames)
            yield sound, gr.skip(), gr.skip(), picture, f"{made:.1f} of {length:.1f} s are made ..."
        seconds = time.perf_counter() - started
        picture = picture_of(torch.cat(mels, dim=1), low, high)
        status = (
            f"**{length:.1f} s of music in {seconds:.1f} s**, {length / seconds:.1f} times faster than it sounds; the "
            f"first sound was ready after {heard_after:.1f} s. {origin}"
        )
        yield gr.skip(), (self.rate, to_int16(torch.cat(chunks))), drawn, picture, status

    def generate(self, seconds: float, seed: float, new_seed: bool, steps: float) -> Iterator[tuple]:
        """Draw an idea and play it; the last output is the seed."""
        started, seconds = time.perf_counter(), check_length(seconds)
        if new_seed:
            seed = random.SystemRandom().randrange(MAX_SEED)
        if seed is None or not 0 <= seed <= MAX_SEED:
            raise refusal(f"The seed must be a whole number from 0 to {MAX_SEED}, got {seed}.")
        seed = int(seed)
        yield gr.skip(), None, None, None, f"Drawing an idea in {int(steps)} steps ...", seed
        generator = torch.Generator().manual_seed(seed)
        drawn = _checked(lambda: self.pipeline.sample_idea(int(steps), seconds, generator=generator))
        for output in self.play(*drawn, started, f"Seed {seed}."):
            yield *output, seed

    def expand(self, recording: str | None, stretch: float) -> Iterator[tuple]:
        """Shrink a recording to its idea and play that, `stretch` times as long."""
        started, waveform = time.perf_counter(), read_recording(recording, self.rate)
        seconds = waveform.numel() / self.rate
        idea, _ = _checked(lambda: self.pipeline.idea_of(waveform, self.rate))
        frames = self.pipeline.frames_of(check_length(max(seconds * stretch, MIN_SECONDS)))
        origin = f"From the idea of {seconds:.1f} s of {Path(recording).name}."
        yield from self.play(idea, torch.tensor([frames], device=idea.device), started, origin)


def _checked(function: Callable):
    try:
        return function()
    except ValueError as error:
        raise refusal(str(error)) from error


def _outputs(live: bool) -> list[gr.components.Component]:
    """Status, players and pictures, below the controls of a tab."""
    status = gr.Markdown("")
    with gr.Row():
        streamed = gr.Audio(
            label="Live, while it is made",
            streaming=True,
            autoplay=True,
            interactive=False,
            visible=live,
            buttons=[],
        )
        whole = gr.Audio(label="The whole piece, to keep", type="numpy", interactive=False, buttons=["download"])
    pictures = []
    with gr.Row():
        for caption in ("**Idea**: low notes at the bottom", "**Mel** it becomes, from left to right"):
            with gr.Column(min_width=300):
                gr.Markdown(caption)
                pictures.append(_picture())
    return [streamed, whole, *pictures, status]


def _picture() -> gr.Image:
    return gr.Image(
        show_label=False,
        interactive=False,
        format="png",
        height=220,
        buttons=["download", "fullscreen"],
        elem_classes="picture",
    )


def build_demo(pipeline: MelReformerPipeline, live: bool | None = None) -> gr.Blocks:
    """The demo around a pipeline; nothing is loaded or launched here.

    Args:
        pipeline: makes the music.
        live: whether there is a live player; default: when ffmpeg is installed, which Gradio needs for it.
    """
    pipeline.set_progress_bar_config(disable=True)
    live = shutil.which("ffmpeg") is not None if live is None else live
    player = Player(pipeline, live)
    shared = {"concurrency_id": "model", "concurrency_limit": 1}
    with gr.Blocks(title="MelReformer", analytics_enabled=False) as demo:
        gr.Markdown(DESCRIPTION if live else f"{DESCRIPTION}\n\n{NO_LIVE}")
        with gr.Tab("Generate"):
            with gr.Row():
                seconds = gr.Slider(MIN_SECONDS, MAX_SECONDS, value=20, step=1, label="Seconds of music")
                seed = gr.Number(
                    0,
                    precision=0,
                    minimum=0,
                    maximum=MAX_SEED,
                    label="Seed",
                    info="The same seed gives the same music.",
                )
            new_seed = gr.Checkbox(True, label="A new seed each time", elem_id="new_seed")
            with gr.Accordion("More settings", open=False):
                steps = gr.Slider(4, 50, value=20, step=1, label="Denoising steps of the idea")
            with gr.Row():
                start = gr.Button("Generate", variant="primary", elem_id="generate", min_width=120)
                stop = gr.Button("Stop", elem_id="stop", min_width=120)
            outputs = _outputs(live)
            playing = start.click(
                player.generate,
                [seconds, seed, new_seed, steps],
                [*outputs, seed],
                api_name="generate",
                show_progress_on=outputs[-1],
                **shared,
            )
            stop.click(None, cancels=[playing])
        with gr.Tab("Expand a recording"):
            gr.Markdown(LIMITS)
            recording = gr.Audio(
                label="Recording", type="filepath", sources=["upload", "microphone"], elem_id="recording"
            )
            stretch = gr.Slider(0.25, 4.0, value=1.0, step=0.25, label="Length, in times the recording's")
            with gr.Row():
                again = gr.Button("Expand its idea", variant="primary", elem_id="expand", min_width=120)
                halt = gr.Button("Stop", elem_id="stop_expanding", min_width=120)
            outputs = _outputs(live)
            expanding = again.click(
                player.expand,
                [recording, stretch],
                outputs,
                api_name="expand",
                show_progress_on=outputs[-1],
                **shared,
            )
            halt.click(None, cancels=[expanding])
    return demo.queue(max_size=16)


if __name__ == "__main__":
    build_demo(MelReformerPipeline.from_pretrained("piano-tiny")).launch(**launch_settings())
