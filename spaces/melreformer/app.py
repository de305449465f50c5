"""Gradio demo: piano music from notes or from an idea, heard while it is made; MIDI files continued, filled, accompanied
and performed; recordings written down, edited in seconds, shrunk to their idea and expanded, or split into
vocals and instrumental; sounds of a class."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its threads must not spin beside other visitors'
if str(Path(__file__).parent) not in sys.path:
    sys.path.append(str(Path(__file__).parent))  # where this file is not the program itself, as in `melreformer demo`

import gradio as gr
from melreformer_space.limits import MAX_UPLOAD_MEGABYTES
from melreformer_space.players import Players
from melreformer_space.sound import CACHE_SECONDS
from melreformer_space.sounds_tab import sounds_tab
from melreformer_space.stops import visitor_of
from melreformer_space.tabs import edit_tab, expand_tab, generate_tab, midi_tab, separate_tab
from melreformer_space.widgets import SILENCE

from melreformer_hf._threads import choose_threads
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
from melreformer_hf.pipelines.pipeline_midi_generation import MidiGenerationPipeline
from melreformer_hf.pipelines.pipeline_separation import SeparationPipeline
from melreformer_hf.pipelines.pipeline_token_generation import TokenGenerationPipeline

NOTES = """A language model of notes **composes**, a performer turns the notes into a mel, a vocoder makes it **audible**,
while it is written."""
IDEAS = """A diffusion model draws a small **idea** of a piece, {columns} columns wide, and an autoregressive model
**expands** it to any length."""
HERE = "Everything runs on this machine; nothing is downloaded."
NO_LIVE = "The live player needs `ffmpeg`, which is not installed here: a piece can be heard when it is finished."
CSS = """
.picture img {width: 100%; height: auto; background: white}
.picture button, .picture .image-frame, .picture .image-container {height: auto; width: 100%}
.status {min-height: 3em}
.download .empty {min-height: 5em; height: 5em}
"""


def launch_settings() -> dict:
    """What `launch` of this demo needs beside address and port."""
    return {"max_file_size": f"{MAX_UPLOAD_MEGABYTES}mb", "css": CSS, "theme": gr.themes.Default(primary_hue="indigo")}


def build_demo(
    notes: MidiGenerationPipeline | None,
    ideas: MelReformerPipeline | None,
    live: bool | None = None,
    separation: SeparationPipeline | None = None,
    sounds: TokenGenerationPipeline | None = None,
) -> gr.Blocks:
    """The demo around pipelines; nothing is loaded or launched here.

    Args:
        notes: composes, performs and hears; without it there is no MIDI tab.
        ideas: draws and expands ideas; without it no recordings are expanded.
        live: whether there is a live player; default: when ffmpeg is installed, which Gradio needs for it.
        separation: splits recordings; without it there is no such tab.
        sounds: draws sounds of classes and repairs recordings; without it there is no tab of sounds.

    Raises:
        ValueError: there is no pipeline.
    """
    if notes is None and ideas is None and sounds is None:
        raise ValueError("The demo needs a pipeline of notes, of ideas or of sounds, got neither.")
    live = shutil.which("ffmpeg") is not None if live is None else live
    for pipeline in (notes, ideas, separation, sounds):
        if pipeline is not None:
            pipeline.set_progress_bar_config(disable=True)
    players = Players(notes, ideas, live, separation, sounds)

    def leave(request: gr.Request) -> None:
        players.stops.forget(visitor_of(request))

    how = [NOTES] if notes else []
    how += (
        [("Or: a" if notes else "A") + IDEAS[1:].format(columns=ideas.expansion.config.idea_columns)] if ideas else []
    )
    text = " ".join([*how, HERE]) + ("" if live else f"\n\n{NO_LIVE}")
    built = ({"Generate": generate_tab} if notes or ideas else {}) | ({"MIDI": midi_tab} if notes else {})
    built |= {"Edit": edit_tab, "Expand a recording": expand_tab} if ideas else {}
    built |= {"Separate": separate_tab} if separation else {}
    built |= {"Sounds": sounds_tab} if sounds else {}
    with gr.Blocks(title="MelReformer", analytics_enabled=False, delete_cache=(CACHE_SECONDS, CACHE_SECONDS)) as demo:
        gr.Markdown(f"# MelReformer\n{text}")
        for name, build in built.items():
            with gr.Tab(name) as tab:
                build(players)
            # What plays in a tab is not heard in another.
            tab.select(None, js=SILENCE, api_visibility="private")
        demo.unload(leave)
    return demo.queue(max_size=16)


if __name__ == "__main__":
    choose_threads()
    pipelines = [kind.from_pretrained("piano-tiny") for kind in (MidiGenerationPipeline, MelReformerPipeline)]
    separation = SeparationPipeline.from_pretrained("separation-tiny")
    sounds = TokenGenerationPipeline.from_pretrained("sounds-tiny")
    build_demo(*pipelines, separation=separation, sounds=sounds).launch(**launch_settings())
