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
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
from melreformer_hf.plotting import mel_figure

MAX_SECONDS = 120
MIN_SECONDS = 1
MAX_UPLOAD_MEGABYTES = 20
MAX_SEED = 2**31 - 1
SECONDS_BETWEEN_PICTURES = 0.7
IDEA, MEL = "the idea", "the mel it becomes"
EXAMPLE = Path(__file__).parent / "prelude.ogg"
HOW = """A diffusion model draws a small **idea** of a piece, {columns} columns wide. An autoregressive model **expands** it
to any length; a vocoder makes it **audible** while it grows. Everything runs on this machine; nothing is downloaded."""
NO_LIVE = "The live player needs `ffmpeg`, which is not installed here: the piece can be heard when it is finished."
LIMITS = f"""Up to {MAX_SECONDS} seconds and {MAX_UPLOAD_MEGABYTES} MB of WAV, FLAC, OGG or MP3 are shrunk to an idea and
expanded again. The bundled model knows piano only: whatever it hears, it plays as piano."""
HEARD_PEAK = 0.35  # of the idea made audible; the piece's own peaks are higher
MAX_GAIN = 100.0
# In the browser: what is left unfinished says so; a finished piece keeps its numbers.
STOPPED = "(status) => status.trim().endsWith('...') ? status + ' stopped.' : status"
CSS = """
.picture img {width: 100%; height: auto; background: white}
.picture button, .picture .image-frame, .picture .image-container {height: auto; width: 100%}
.status {min-height: 3em}
"""


def launch_settings() -> dict:
    """What `launch` of this demo needs beside address and port."""
    return {"max_file_size": f"{MAX_UPLOAD_MEGABYTES}mb", "css": CSS, "theme": gr.themes.Default(primary_hue="indigo")}


def refusal(message: str) -> gr.Error:
    """An error for the visitor to read; the log stays free of it."""
    return gr.Error(message, duration=20, print_exception=False)


def to_int16(audio: torch.Tensor) -> np.ndarray:
    """(samples,) float to int16 at its own level; Gradio would raise floats to full scale."""
    return (audio.clamp(-1, 1) * 32767).round().to(torch.int16).cpu().numpy()


def rate_words(factor: float) -> str:
    """Words for seconds of music per second of work."""
    return (
        f"{factor:.1f} times faster than it sounds" if factor >= 1 else f"{1 / factor:.1f} times slower than it sounds"
    )


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

    def picture(self, mel: torch.Tensor, name: str, seconds: float, high: float, share: float = 1.0) -> np.ndarray:
        """(height, width, 3) figure of a (mel, column) log-mel over `seconds`; beyond `share` of them it stays grey."""
        config = self.pipeline.mel_config
        return np.asarray(mel_figure(mel, config, seconds, name, config.floor_value, high, share=share))

    def blank(self, name: str, seconds: float) -> np.ndarray:
        """The figure before anything is drawn."""
        config = self.pipeline.mel_config
        return self.picture(torch.zeros(config.num_mel_bins, 0), name, seconds, config.floor_value + 1)

    @torch.no_grad()
    def gain(self, idea: torch.Tensor) -> float:
        """A gain for the whole piece, known before its first sound: models play as softly as their recordings.

        The idea itself, made audible, is a short summary whose loudest sample tells about how loud the piece will be.
        """
        summary = self.pipeline.vocoder(idea.to(self.pipeline.vocoder.dtype)).waveform
        return min(HEARD_PEAK / max(summary.abs().max().item(), 1e-5), MAX_GAIN)

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
        drawn = self.picture(idea[0].cpu(), IDEA, length, high)
        yield gr.skip(), None, drawn, self.blank(MEL, length), f"Expanding the idea to {length:.1f} s ..."
        mels: list[torch.Tensor] = []
        chunks: list[torch.Tensor] = []
        gain = self.gain(idea)
        shown, heard_after = 0.0, None
        for chunk in self.pipeline.stream_idea(
            idea, num_frames, callback_on_mel=lambda mel: mels.append(mel[0].cpu())
        ):
            chunks.append(gain * chunk[0].cpu())
            now = time.perf_counter()
            heard_after = heard_after or now - started
            sound = (self.rate, to_int16(chunks[-1])) if self.live else gr.skip()
            if now - shown < SECONDS_BETWEEN_PICTURES:
                yield sound, gr.skip(), gr.skip(), gr.skip(), gr.skip()
                continue
            shown = now
            made = sum(len(part) for part in chunks) / self.rate
            mel = torch.cat(mels, dim=1)
            picture = self.picture(mel, MEL, length, high, mel.shape[1] / frames)
            yield sound, gr.skip(), gr.skip(), picture, f"{made:.1f} of {length:.1f} s are made ..."
        seconds = time.perf_counter() - started
        picture = self.picture(torch.cat(mels, dim=1), MEL, length, high)
        status = (
            f"**{length:.1f} s of music in {seconds:.1f} s**, {rate_words(length / seconds)}; the first sound was "
            f"ready after {heard_after:.1f} s. {origin}"
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
        empty = [self.blank(name, seconds) for name in (IDEA, MEL)]
        yield gr.skip(), None, *empty, f"Drawing an idea in {int(steps)} steps ...", seed
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


def _outputs(player: Player) -> list[gr.components.Component]:
    """Status, players and pictures of a tab."""
    status = gr.Markdown("", elem_classes="status")
    streamed = gr.Audio(
        label="Live, while it is made",
        streaming=True,
        autoplay=True,
        interactive=False,
        visible=player.live,
        buttons=[],
    )
    whole = gr.Audio(label="The whole piece, to keep", type="numpy", interactive=False, buttons=["download"])
    with gr.Row():
        pictures = [
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
    return [streamed, whole, *pictures, status]


def _buttons(name: str, start: str, stop: str) -> list[gr.Button]:
    """The button that starts and the one that stops."""
    with gr.Row():
        return [
            gr.Button(name, variant="primary", elem_id=start, min_width=100),
            gr.Button("Stop", elem_id=stop, min_width=100),
        ]


def _connect(
    function: Callable, inputs: list, outputs: list, buttons: list[gr.Button], status: gr.Markdown, name: str
) -> None:
    """Wire a tab: one piece at a time is made for all visitors; Stop ends the visitor's own."""
    start, stop = buttons
    playing = start.click(
        function,
        inputs,
        outputs,
        api_name=name,
        show_progress_on=status,
        concurrency_id="model",
        concurrency_limit=1,
    )
    stop.click(None, cancels=[playing])
    stop.click(None, [status], [status], js=STOPPED, api_visibility="private")


def _generate_tab(player: Player) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            seconds = gr.Slider(MIN_SECONDS, MAX_SECONDS, value=20, step=1, label="Length in seconds")
            new_seed = gr.Checkbox(True, label="A new seed each time", elem_id="new_seed")
            seed = gr.Number(
                0,
                precision=0,
                minimum=0,
                maximum=MAX_SEED,
                label="Seed",
                info="The same seed, length and steps give the same music.",
            )
            steps = gr.Slider(
                4, 50, value=20, step=1, label="Denoising steps", info="Fewer are faster; the idea gets coarser."
            )
            buttons = _buttons("Generate", "generate", "stop")
            inputs = [seconds, seed, new_seed, steps]
            gr.Examples(
                [[10, 1, False, 20], [20, 7, False, 20], [60, 42, False, 20]],
                inputs,
                label="Examples: choose one, then press Generate",
                example_labels=["10 s, seed 1", "20 s, seed 7", "60 s, seed 42"],
                api_visibility="private",
            )
        with gr.Column(scale=2, min_width=320):
            outputs = _outputs(player)
    _connect(player.generate, inputs, [*outputs, seed], buttons, outputs[-1], "generate")


def _expand_tab(player: Player) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            gr.Markdown(LIMITS)
            recording = gr.Audio(
                label="Recording", type="filepath", sources=["upload", "microphone"], elem_id="recording"
            )
            if EXAMPLE.is_file():
                gr.Examples(
                    [[str(EXAMPLE)]],
                    [recording],
                    label="Example",
                    example_labels=["Opening of Bach's prelude BWV 846, 15 s"],
                    api_visibility="private",
                )
            stretch = gr.Slider(
                0.25,
                4.0,
                value=1.0,
                step=0.25,
                label="Stretch",
                info=f"Length of the result, in times the recording's; {MAX_SECONDS} seconds at most.",
            )
            buttons = _buttons("Expand its idea", "expand", "stop_expanding")
        with gr.Column(scale=2, min_width=320):
            outputs = _outputs(player)
    _connect(player.expand, [recording, stretch], outputs, buttons, outputs[-1], "expand")


def build_demo(pipeline: MelReformerPipeline, live: bool | None = None) -> gr.Blocks:
    """The demo around a pipeline; nothing is loaded or launched here.

    Args:
        pipeline: makes the music.
        live: whether there is a live player; default: when ffmpeg is installed, which Gradio needs for it.
    """
    pipeline.set_progress_bar_config(disable=True)
    live = shutil.which("ffmpeg") is not None if live is None else live
    player = Player(pipeline, live)
    how = HOW.format(columns=pipeline.unet.config.num_columns)
    with gr.Blocks(title="MelReformer", analytics_enabled=False) as demo:
        gr.Markdown(f"# MelReformer\n{how}" + ("" if live else f"\n\n{NO_LIVE}"))
        with gr.Tab("Generate"):
            _generate_tab(player)
        with gr.Tab("Expand a recording"):
            _expand_tab(player)
    return demo.queue(max_size=16)


if __name__ == "__main__":
    build_demo(MelReformerPipeline.from_pretrained("piano-tiny")).launch(**launch_settings())
