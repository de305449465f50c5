"""Gradio demo: generate piano music and hear it while it is made; shrink a recording to its idea and expand it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import numpy as np
import torch

from melreformer_hf.audio.io import read_audio
from melreformer_hf.audio.pictures import idea_and_mel
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline

MAX_SECONDS = 120
MAX_UPLOAD_MEGABYTES = 20
DESCRIPTION = """# MelReformer
A diffusion model draws a small *idea* (256 mel columns) and a duration, an autoregressive model expands it, a vocoder
makes it audible. Everything runs in this Space; nothing is downloaded."""


def to_int16(audio: torch.Tensor) -> np.ndarray:
    """(samples,) float to int16 at its own level; Gradio would raise floats to full scale."""
    return (audio.clamp(-1, 1) * 32767).round().to(torch.int16).cpu().numpy()


def generator_of(seed: float) -> torch.Generator:
    """The generator of a seed typed by a visitor."""
    return torch.Generator().manual_seed(int(seed) % 2**63)


def picture_of(output) -> str:
    """PNG of idea and mel."""
    path = Path(tempfile.mkdtemp()) / "idea_and_mel.png"
    return str(idea_and_mel(output.ideas[0], output.mels[0], path))


def build_demo(pipeline: MelReformerPipeline) -> gr.Blocks:
    """The demo around a pipeline; nothing is loaded or launched here."""
    pipeline.set_progress_bar_config(disable=True)
    rate = pipeline.sampling_rate

    def generate(seconds: float, steps: float, seed: float, progress: gr.Progress = gr.Progress()):  # noqa: B008
        def show(_, step: int, __, tensors: dict) -> dict:
            progress((step + 1) / int(steps), desc="drawing the idea")
            return tensors

        output = _checked(
            pipeline,
            num_inference_steps=int(steps),
            audio_length_in_s=float(seconds),
            generator=generator_of(seed),
            callback_on_step_end=show,
        )
        return (rate, to_int16(output.audios[0])), picture_of(output)

    def stream(seconds: float, steps: float, seed: float) -> Iterator[tuple[int, np.ndarray]]:
        chunks = pipeline.stream(
            num_inference_steps=int(steps), audio_length_in_s=float(seconds), generator=generator_of(seed)
        )
        for chunk in chunks:
            yield rate, to_int16(chunk[0])

    def expand(recording: str | None):
        if recording is None:
            raise gr.Error("Upload or record something first.")
        size = Path(recording).stat().st_size / 1e6
        if size > MAX_UPLOAD_MEGABYTES:
            raise gr.Error(f"The file has {size:.1f} MB; at most {MAX_UPLOAD_MEGABYTES} MB are accepted.")
        try:
            waveform, _ = read_audio(recording, rate)
        except (ValueError, FileNotFoundError) as error:
            raise gr.Error(str(error)) from error
        if waveform.numel() > MAX_SECONDS * rate:
            raise gr.Error(
                f"The recording lasts {waveform.numel() / rate:.0f} s; at most {MAX_SECONDS} s are accepted."
            )
        output = _checked(pipeline.expand, waveform=waveform, sampling_rate=rate)
        return (rate, to_int16(output.audios[0])), picture_of(output)

    with gr.Blocks(title="MelReformer") as demo:
        gr.Markdown(DESCRIPTION)
        with gr.Tab("Generate"):
            with gr.Row():
                seconds = gr.Slider(2, MAX_SECONDS, value=20, step=1, label="Seconds")
                steps = gr.Slider(4, 50, value=20, step=1, label="Denoising steps")
                seed = gr.Number(0, precision=0, label="Seed")
            with gr.Row():
                whole = gr.Button("Generate", variant="primary")
                live = gr.Button("Listen while it streams")
                stop = gr.Button("Stop")
            heard = gr.Audio(label="Music", type="numpy")
            streamed = gr.Audio(label="Stream", streaming=True, autoplay=True)
            seen = gr.Image(label="Idea (left) and mel (right)")
            whole.click(generate, [seconds, steps, seed], [heard, seen], api_name="generate")
            playing = live.click(stream, [seconds, steps, seed], streamed, api_name="stream")
            stop.click(None, cancels=[playing])
        with gr.Tab("Expand a recording"):
            gr.Markdown(
                f"At most {MAX_SECONDS} s and {MAX_UPLOAD_MEGABYTES} MB. The model knows piano; other sounds become it."
            )
            recording = gr.Audio(label="Recording", type="filepath")
            again = gr.Button("Expand its idea", variant="primary")
            expanded = gr.Audio(label="Expanded", type="numpy")
            picture = gr.Image(label="Idea (left) and mel (right)")
            again.click(expand, recording, [expanded, picture], api_name="expand")
    return demo.queue(max_size=16)


def _checked(function, **arguments):
    try:
        return function(**arguments)
    except ValueError as error:
        raise gr.Error(str(error)) from error


if __name__ == "__main__":
    build_demo(MelReformerPipeline.from_pretrained("piano-tiny")).launch(max_file_size="20mb")
