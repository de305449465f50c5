"""Gradio demo: generate piano music and hear it while it is made; shrink a recording to its idea and expand it."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its threads must not spin beside other visitors'

import gradio as gr
import numpy as np
import torch

from melreformer_hf._threads import choose_threads
from melreformer_hf.audio.io import read_audio, to_int16, write_audio
from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
from melreformer_hf.plotting import MelSummary, mel_figure

MAX_SECONDS = 120
MIN_SECONDS = 1
MAX_UPLOAD_MEGABYTES = 20
MAX_SEED = 2**31 - 1
STEPS = (4, 50)
STRETCH = (0.25, 4.0)
SECONDS_BETWEEN_PICTURES = 0.7
CACHE_SECONDS = 3600  # files of visitors are deleted after this time
# The idea is drawn in coarse blocks: at its own resolution it could not be told from what it becomes.
IDEA_BLOCKS = 64
IDEA, MEL = "the idea, in coarse blocks", "the mel it becomes"
EXAMPLE = Path(__file__).parent / "prelude.ogg"
HOW = """A diffusion model draws a small **idea** of a piece, {columns} columns wide. An autoregressive model **expands** it
to any length; a vocoder makes it **audible** while it grows. Everything runs on this machine; nothing is downloaded."""
NO_LIVE = "The live player needs `ffmpeg`, which is not installed here: the piece can be heard when it is finished."
LIMITS = f"""Up to {MAX_SECONDS} seconds and {MAX_UPLOAD_MEGABYTES} MB of WAV, FLAC, OGG or MP3 are shrunk to an idea and
expanded again, as loud as they were. The bundled model knows piano only: whatever it hears, it plays as piano."""
# In the browser: no sound of this page goes on.
SILENCE = "() => document.querySelectorAll('audio').forEach(audio => audio.pause())"
CSS = """
.picture img {width: 100%; height: auto; background: white}
.picture button, .picture .image-frame, .picture .image-container {height: auto; width: 100%}
.status {min-height: 3em}
"""


def unchecked(component: gr.components.Component) -> gr.components.Component:
    """Lets what a program sends come through as it is: `check_number` refuses it in words, Gradio with a traceback."""
    component.preprocess = lambda payload: payload
    return component


def launch_settings() -> dict:
    """What `launch` of this demo needs beside address and port."""
    return {"max_file_size": f"{MAX_UPLOAD_MEGABYTES}mb", "css": CSS, "theme": gr.themes.Default(primary_hue="indigo")}


def refusal(message: str) -> gr.Error:
    """An error for the visitor to read; the log stays free of it."""
    return gr.Error(message, duration=20, print_exception=False)


def rate_words(factor: float) -> str:
    """Words for seconds of music per second of work."""
    return (
        f"{factor:.1f} times faster than it sounds" if factor >= 1 else f"{1 / factor:.1f} times slower than it sounds"
    )


def check_number(name: str, value: object, low: float, high: float, whole: bool = False) -> float:
    """A number between limits, or an error that the visitor, or the program that asks, reads."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise refusal(f"{name} must be {kind} from {low:g} to {high:g}, got {value!r}.")
    return int(value) if whole else float(value)


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


class Stops:
    """Which visitors have pressed Stop, per tab. A piece ends by itself when it sees that: so it can leave what was
    made, which an event that Gradio cancels cannot."""

    def __init__(self) -> None:
        self._pressed: set[tuple[str | None, str]] = set()
        self._asked: set[tuple[str | None, str]] = set()

    def start(self, visitor: str | None, tab: str, tabs: tuple[str, ...]) -> None:
        """A piece was asked for in one tab: pieces in others end. While a piece of this tab waits or is made, Gradio
        drops the second press, and a Stop before it stays pressed."""
        self._pressed.update((visitor, other) for other in tabs if other != tab)
        if (visitor, tab) not in self._asked:
            self._pressed.discard((visitor, tab))
        self._asked.add((visitor, tab))

    @contextmanager
    def piece(self, visitor: str | None, tab: str) -> Iterator[Callable[[], bool]]:
        """While a piece is made: gives what tells whether it shall end."""
        try:
            yield lambda: self.pressed(visitor, tab)
        finally:
            self._asked.discard((visitor, tab))

    def stop(self, visitor: str | None, tab: str) -> None:
        """Stop was pressed."""
        self._pressed.add((visitor, tab))

    def pressed(self, visitor: str | None, tab: str) -> bool:
        """Whether the piece of a tab shall end."""
        return (visitor, tab) in self._pressed

    def forget(self, visitor: str | None, tabs: tuple[str, ...]) -> None:
        """A visitor has left, whose pieces Gradio ends: nothing is kept of them."""
        for tab in tabs:
            self._pressed.discard((visitor, tab))
            self._asked.discard((visitor, tab))


def visitor_of(request: gr.Request | None) -> str | None:
    """The visitor's session; `None` for programs without one."""
    return getattr(request, "session_hash", None)


class Player:
    """Plays ideas of one pipeline: what the outputs of both tabs show, step by step.

    Args:
        pipeline: makes the music.
        live: whether chunks are sent to a live player; else the player gets the piece when it is finished.
    """

    def __init__(self, pipeline: MelReformerPipeline, live: bool) -> None:
        self.pipeline, self.live, self.rate = pipeline, live, pipeline.sampling_rate
        self.stops = Stops()

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
        self, idea: torch.Tensor, num_frames: torch.Tensor, gain: float, started: float, origin: str, stopped: Callable
    ) -> Iterator[tuple]:
        """(player, file, idea, mel, status) while the piece is made.

        Args:
            idea: (1, mel, column).
            num_frames: (1,).
            gain: of the sound.
            started: when the visitor's wait began, of `time.perf_counter`.
            origin: for the status, such as the seed.
            stopped: tells whether the visitor has pressed Stop.
        """
        frames, low = int(num_frames[0]), self.pipeline.mel_config.floor_value
        length = frames / self.pipeline.mel_config.frame_rate
        high = max(idea.max().item() + 1.0, low + 1.0)
        drawn = self.idea_picture(idea[0].cpu(), length, high)
        yield gr.skip(), None, drawn, self.blank(MEL, length), f"Expanding the idea to {length:.1f} s ..."
        summary, chunks, shown, heard_after = MelSummary(frames), [], 0.0, 0.0
        for chunk in self.pipeline.stream_idea(idea, num_frames, callback_on_mel=lambda mel: summary.add(mel[0])):
            chunks.append(to_int16(chunk[0, 0].cpu().numpy(), gain))
            now = time.perf_counter()
            heard_after = heard_after or now - started
            if stopped():
                break
            sound = (self.rate, chunks[-1]) if self.live else gr.skip()
            if now - shown < SECONDS_BETWEEN_PICTURES:
                yield sound, gr.skip(), gr.skip(), gr.skip(), gr.skip()
                continue
            shown = now
            made = sum(len(part) for part in chunks) / self.rate
            picture = self.picture(summary.mel(), MEL, length, high, summary.position / frames)
            yield sound, gr.skip(), gr.skip(), picture, f"{made:.1f} of {length:.1f} s are made ..."
        whole = np.concatenate(chunks)
        made, seconds, file = len(whole) / self.rate, time.perf_counter() - started, self.file(whole)
        picture = self.picture(summary.mel(), MEL, length, high, summary.position / frames)
        if stopped():
            status = f"**Stopped after {made:.1f} of {length:.1f} s**, which can be downloaded. {origin}"
            yield None, file, drawn, picture, status
            return
        status = (
            f"**{length:.1f} s of music in {seconds:.1f} s**, {rate_words(length / seconds)}; the first sound was "
            f"ready after {heard_after:.1f} s. {origin}"
        )
        yield gr.skip() if self.live else (self.rate, whole), file, drawn, picture, status

    def file(self, samples: np.ndarray) -> str:
        """A WAV file of (samples,) int16, in a folder that Gradio takes it from."""
        folder = Path(tempfile.mkdtemp(prefix="melreformer-"))
        return str(write_audio(folder / "piece.wav", torch.from_numpy(samples / 32767.0), self.rate))

    def generate(
        self, seconds: float, seed: float, new_seed: bool, steps: float, request: gr.Request | None = None
    ) -> Iterator[tuple]:
        """Draw an idea and play it; the last output is the seed."""
        with self.stops.piece(visitor_of(request), "generate") as stopped:
            yield from self._generate(seconds, seed, new_seed, steps, stopped)

    def _generate(
        self, seconds: float, seed: float, new_seed: bool, steps: float, stopped: Callable
    ) -> Iterator[tuple]:
        started = time.perf_counter()
        seconds = check_number("The length in seconds", seconds, MIN_SECONDS, MAX_SECONDS)
        steps = check_number("The number of steps", steps, *STEPS, whole=True)
        if not isinstance(new_seed, bool):
            raise refusal(f"Whether there is a new seed must be true or false, got {new_seed!r}.")
        if new_seed:
            seed = random.SystemRandom().randrange(MAX_SEED)
        seed = check_number("The seed", seed, 0, MAX_SEED, whole=True)

        empty = [self.blank(name, seconds) for name in (IDEA, MEL)]
        if stopped():
            yield None, None, *empty, "Stopped.", seed
            return
        yield None, None, *empty, f"Drawing an idea in {steps} steps ...", seed
        generator = torch.Generator().manual_seed(seed)
        drawn = _checked(lambda: self.pipeline.sample_idea(seconds, num_inference_steps=steps, generator=generator))
        gain = self.pipeline.live_gain(drawn.ideas)
        for output in self.play(*drawn, gain, started, f"Seed {seed}.", stopped):
            yield *output, seed

    def expand(self, recording: str | None, stretch: float, request: gr.Request | None = None) -> Iterator[tuple]:
        """Shrink a recording to its idea and play that, `stretch` times as long and as loud as it was."""
        with self.stops.piece(visitor_of(request), "expand") as stopped:
            yield from self._expand(recording, stretch, stopped)

    def _expand(self, recording: str | None, stretch: float, stopped: Callable) -> Iterator[tuple]:
        started = time.perf_counter()
        stretch = check_number("The stretch", stretch, *STRETCH)
        waveform = read_recording(recording, self.rate)
        seconds = waveform.numel() / self.rate
        wanted = max(seconds * stretch, MIN_SECONDS)
        wanted = check_number("The length of the result in seconds", wanted, MIN_SECONDS, MAX_SECONDS)
        drawn = _checked(lambda: self.pipeline.idea_of(waveform, self.rate, wanted))
        origin = f"From the idea of {seconds:.1f} s of {Path(recording).name}."
        yield from self.play(*drawn, 1.0, started, origin, stopped)


def _checked(function: Callable):
    try:
        return function()
    except ValueError as error:
        raise refusal(str(error)) from error


def _outputs(player: Player) -> list[gr.components.Component]:
    """Player, file, pictures and status of a tab. Labels are the names of the API's outputs."""
    status = gr.Markdown("", elem_classes="status", label="status")
    sound = gr.Audio(
        label="The piece, while it is made" if player.live else "The piece",
        streaming=player.live,
        autoplay=player.live,
        interactive=False,
        buttons=[],
    )
    file = gr.File(label="The piece as a WAV file", interactive=False)
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
    return [sound, file, *pictures, status]


def _buttons(name: str, start: str, stop: str) -> list[gr.Button]:
    """The button that starts and the one that stops."""
    with gr.Row():
        return [
            gr.Button(name, variant="primary", elem_id=start, min_width=100),
            gr.Button("Stop", elem_id=stop, min_width=100),
        ]


TABS = ("generate", "expand")


def _connect(player: Player, inputs: list, outputs: list, buttons: list[gr.Button], status: gr.Markdown, tab: str):
    """Wire a tab: one piece at a time is made for all visitors; Stop ends the visitor's own and all its sound."""
    start, stop = buttons

    def begin(request: gr.Request) -> None:
        player.stops.start(visitor_of(request), tab, TABS)

    def end(request: gr.Request) -> None:
        player.stops.stop(visitor_of(request), tab)

    hidden = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    start.click(begin, js=SILENCE, **hidden)
    start.click(
        getattr(player, tab),
        inputs,
        outputs,
        api_name=tab,
        show_progress_on=status,
        concurrency_id="model",
        concurrency_limit=1,
    )
    stop.click(end, js=SILENCE, **hidden)


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
                *STEPS, value=20, step=1, label="Denoising steps", info="Fewer are faster; the idea gets coarser."
            )
            buttons = _buttons("Generate", "generate", "stop")
            inputs = [unchecked(field) for field in (seconds, seed, new_seed, steps)]
            gr.Examples(
                [[10, 1, False, 20], [20, 7, False, 20], [60, 42, False, 20]],
                inputs,
                label="Examples: choose one, then press Generate",
                example_labels=["10 s, seed 1", "20 s, seed 7", "60 s, seed 42"],
                api_visibility="private",
            )
        with gr.Column(scale=2, min_width=320):
            outputs = _outputs(player)
    _connect(player, inputs, [*outputs, seed], buttons, outputs[-1], "generate")


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
                *STRETCH,
                value=1.0,
                step=0.25,
                label="Stretch",
                info=f"Length of the result, in times the recording's; {MAX_SECONDS} seconds at most.",
            )
            buttons = _buttons("Expand its idea", "expand", "stop_expanding")
        with gr.Column(scale=2, min_width=320):
            outputs = _outputs(player)
    _connect(player, [recording, unchecked(stretch)], outputs, buttons, outputs[-1], "expand")


def build_demo(pipeline: MelReformerPipeline, live: bool | None = None) -> gr.Blocks:
    """The demo around a pipeline; nothing is loaded or launched here.

    Args:
        pipeline: makes the music.
        live: whether there is a live player; default: when ffmpeg is installed, which Gradio needs for it.
    """
    pipeline.set_progress_bar_config(disable=True)
    live = shutil.which("ffmpeg") is not None if live is None else live
    player = Player(pipeline, live)

    def leave(request: gr.Request) -> None:
        player.stops.forget(visitor_of(request), TABS)

    how = HOW.format(columns=pipeline.expansion.config.idea_columns)
    with gr.Blocks(title="MelReformer", analytics_enabled=False, delete_cache=(CACHE_SECONDS, CACHE_SECONDS)) as demo:
        gr.Markdown(f"# MelReformer\n{how}" + ("" if live else f"\n\n{NO_LIVE}"))
        with gr.Tab("Generate") as tab:
            _generate_tab(player)
        with gr.Tab("Expand a recording") as other:
            _expand_tab(player)
        for each in (tab, other):  # what plays in a tab is not heard in another
            each.select(None, js=SILENCE, api_visibility="private")
        demo.unload(leave)
    return demo.queue(max_size=16)


if __name__ == "__main__":
    choose_threads()
    build_demo(MelReformerPipeline.from_pretrained("piano-tiny")).launch(**launch_settings())
